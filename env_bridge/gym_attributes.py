"""What Gymnasium's environments say about themselves, for a vector of them: their spec and their metadata."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from env_bridge.gym_physics import GymSimulation
from env_bridge.lanes import LaneOptions
from env_bridge.vector_env import VectorEnv, import_id

UNKNOWN_SEED: Final = -1
"""Gymnasium's word for it."""


def effective_spec(given: LaneOptions, max_episode_steps: int | None, render_mode: str | None) -> EnvSpec:
    """The spec of each environment, as that of ``gymnasium.make`` with the same time limit and options."""
    spec = copy.deepcopy(gymnasium.spec(import_id(given.env_id)))
    spec.kwargs |= copy.deepcopy(dict(given.options)) | ({} if render_mode is None else {"render_mode": render_mode})
    spec.max_episode_steps = max_episode_steps
    return spec


def class_metadata(env: VectorEnv) -> Mapping[str, Any]:
    """The metadata of an environment's class; of a robot's the frames per second, too, which follow from its steps."""
    if isinstance(env.simulation, GymSimulation):
        return env.simulation.metadata
    creator = gymnasium.spec(env.env_id).entry_point
    known: Mapping[str, Any] = (creator if callable(creator) else load_env_creator(str(creator))).metadata  # type: ignore[union-attr]
    return {**known, "render_fps": int(np.round(1.0 / env.simulation.timestep_s))}
