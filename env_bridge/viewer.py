"""Frames of a vector environment's simulations, drawn as Gymnasium's own class draws them.

Letters: E environments, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from swarm.errors import ConfigError

MODES: Final = ("rgb_array", "depth_array")


class Viewer:
    """One environment of Gymnasium's class that takes each simulation's position in turn. Needs a working MUJOCO_GL.

    Args:
        env_id: one of MuJoCo's.
        render_mode: one of `MODES`.
        options: of the class's constructor, those about pictures included.

    Raises:
        ConfigError: another mode, or an environment that is not MuJoCo's.
    """

    def __init__(self, env_id: str, render_mode: str, options: Mapping[str, Any]) -> None:
        check_mode(render_mode)
        self._env = gymnasium.make(env_id, render_mode=render_mode, disable_env_checker=True, **options)
        if not isinstance(self._env.unwrapped, MujocoEnv):
            raise ConfigError(f"{env_id} is not a MuJoCo environment: it cannot be drawn from its state")
        self._mujoco = self._env.unwrapped
        self._env.reset(seed=0)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many generalised positions and velocities there are."""
        return int(self._mujoco.model.nq), int(self._mujoco.model.nv)

    def draw(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """Return one frame (H, W, …) for each row of generalised positions and velocities (E, …)."""
        frames = []
        for position, velocity in zip(qpos, qvel, strict=True):
            self._mujoco.set_state(position, velocity)  # type: ignore[no-untyped-call]
            frames.append(np.array(self._env.render()))
        return tuple(frames)

    def close(self) -> None:
        """Release the renderer."""
        self._env.close()


def check_mode(render_mode: str) -> None:
    """Raise ``ConfigError`` for a mode that a vector environment cannot have."""
    if render_mode not in MODES:
        raise ConfigError(f"got render_mode={render_mode!r}; expected one of {', '.join(MODES)}, or none")
