"""What a round does to the shared world model: members' gradients of it, its next version, how well it predicts.

Everything here is a function of what is pinned, and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from agents.config import TeamConfig
from agents.learning.maml import adapted_loss, meta_gradients
from agents.learning.windows import Windows, cut_windows, sample_windows, split_windows
from agents.learning.world_model import (
    apply_gradients,
    encoder_parameters,
    prediction_error,
    prediction_gradients,
    world_to_arrays,
)
from agents.pinned import Pinned, View
from agents.plan import NOMINAL, SHIFTED, group_of
from agents.randomness import generator
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE

QUALITY_WINDOWS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberGradients:
    """Gradients of the world model, (G, P) float32 each: ``prediction`` and, where there are shifted rows, ``meta``."""

    arrays: dict[str, NDArray[np.generic]]
    num_samples: int


def member_gradients(pinned: Pinned, member: str, round_index: int) -> MemberGradients:
    """Return gradients on windows that ``member`` draws: prediction, and MAML's outer loop."""
    team = pinned.team
    group, config = group_of(team, member), team.world
    world, scales = pinned.world(group), pinned.scales(group)
    rng = generator(team.seed, round_index, "gradient", member)
    arrays: dict[str, NDArray[np.generic]] = {}
    if pinned.rows[NOMINAL] >= config.window:
        view, number = pinned.view(group), config.gradients_per_round
        windows = sample_windows(
            view.columns, view.stream.states, rng, number * config.windows_per_batch, config.window
        )
        arrays["prediction"] = prediction_gradients(world, windows, scales, number)
    if num_stretches(pinned):
        shifted = pinned.view(group, SHIFTED)
        gradients = []
        for _ in range(config.meta_gradients_per_round):
            support, query = task_windows(pinned, shifted, rng, config.meta_tasks)
            gradients.append(meta_gradients(world, support, query, scales, config))
        arrays["meta"] = np.concatenate(gradients)
    return MemberGradients(arrays=arrays, num_samples=config.windows_per_batch * config.window)


def apply_to_world(
    pinned: Pinned, group: str, gradients: Arrays, round_index: int
) -> tuple[bytes, Arrays, Mapping[str, Json]]:
    """Return the next world model as a file, its encoder's weights, and how well the pinned one predicts.

    Meta-gradients are applied after the prediction gradients, each in turn.
    """
    world, config = pinned.world(group), pinned.team.world
    for kind in ("prediction", "meta"):
        if kind in gradients:
            world = apply_gradients(world, np.array(gradients[kind], np.float32), config)
    weights = {name: value.numpy() for name, value in encoder_parameters(world).items()}
    return save(world_to_arrays(world)), weights, world_quality(pinned, group, round_index)


def world_quality(pinned: Pinned, group: str, round_index: int) -> dict[str, Json]:
    """Return how the pinned world model predicts: relative to repeating the last value, and after inner steps."""
    config, scales = pinned.team.world, pinned.scales(group)
    rng = generator(pinned.team.seed, round_index, "quality", group)
    quality: dict[str, Json] = {}
    if pinned.rows[NOMINAL] >= config.window:
        view = pinned.view(group)
        windows = sample_windows(view.columns, view.stream.states, rng, QUALITY_WINDOWS, config.window)
        found = prediction_error(pinned.world(group), windows, scales)
        quality |= {"error": found["mse"], "persistence": found["persistence_mse"], "ratio": found["ratio"]}
    if num_stretches(pinned):
        shifted = pinned.view(group, SHIFTED)
        support, query = task_windows(pinned, shifted, rng, QUALITY_WINDOWS)
        before, after = adapted_loss(pinned.world(group), support, query, scales, config)
        quality |= {"meta_before": before, "meta_after": after}
    return quality


def task_windows(pinned: Pinned, view: View, rng: np.random.Generator, num_tasks: int) -> tuple[Windows, Windows]:
    """Draw support and query windows of ``window / 2`` steps, side by side within one stretch under one task."""
    half, steps = pinned.team.world.window // 2, stretch_steps(pinned.team)
    stretch = rng.integers(0, num_stretches(pinned), size=num_tasks)
    offset = rng.integers(0, steps - 2 * half + 1, size=num_tasks)
    environment = rng.integers(0, BLOCK_SIZE, size=num_tasks)
    starts = np.stack([stretch * steps + offset, environment], axis=1)
    return split_windows(cut_windows(view.columns, view.stream.states, starts, 2 * half), half)


def stretch_steps(team: TeamConfig) -> int:
    """Return the rows of one stretch under shifted dynamics."""
    return team.rounds.shifted_steps // BLOCK_SIZE


def num_stretches(pinned: Pinned) -> int:
    """Return the whole stretches under shifted dynamics that are long enough for support and query."""
    if stretch_steps(pinned.team) < pinned.team.world.window:
        return 0
    return pinned.rows[SHIFTED] // stretch_steps(pinned.team)
