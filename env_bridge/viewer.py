"""Frames of a vector environment's simulations, drawn as Gymnasium's own class draws them.

Letters: E environments, S integration state, H and W pixels.

Gymnasium draws where bodies were when MuJoCo last derived that, which a step does before it moves them for the last
time: a frame lags the state by the last physics step. So a robot's last step is made again, from the state before it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from env_bridge.models import make_environments
from env_bridge.render import find_backend
from env_bridge.stepping import FIELD, STATE
from swarm.errors import ConfigError

MODES: Final = ("rgb_array", "depth_array")
DRAWN: Final = ("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir",
                "xpos", "xquat", "xmat", "xipos", "ximat", "subtree_com", "ten_length")  # fmt: skip
"""Arrays of ``MjData`` that pictures are made of; of environments of their own class, a state holds them."""


class Viewer:
    """One environment of Gymnasium's class that takes each simulation's state in turn.

    Args:
        env_id: one of MuJoCo's.
        render_mode: one of `MODES`.
        options: of the class's constructor, those about pictures included.

    Raises:
        ConfigError: another mode, an environment that is not MuJoCo's, or nothing can be drawn on this machine.
    """

    def __init__(self, env_id: str, render_mode: str, options: Mapping[str, Any]) -> None:
        check_mode(render_mode)
        self._backend = find_backend()
        (self._env,) = make_environments(env_id, 1, {**options, "render_mode": render_mode})
        if not isinstance(self._env.unwrapped, MujocoEnv):
            raise ConfigError(f"{env_id} is not a MuJoCo environment: it cannot be drawn from its state")
        self._mujoco = self._env.unwrapped
        self._env.reset(seed=0)
        self._cameras: dict[int, NDArray[np.float64]] = {}
        self._failure: str | None = None

    def draw(
        self, state: Mapping[str, NDArray[np.generic]], before: NDArray[np.float64] | None
    ) -> tuple[NDArray[Any], ...]:
        """Return one frame (H, W, …) for each environment.

        Args:
            state: as `BridgeVectorEnv.get_state` gives it.
            before: (E, S) integration states before the last step; ``None``: unknown.

        Raises:
            ConfigError: nothing can be drawn.
        """
        if self._failure is not None:  # a GL library that failed once may end the process the next time
            raise ConfigError(self._failure)
        physics = np.asarray(state["physics"], np.float64)
        frames = []
        arrays = {name: state[f"{FIELD}{name}"] for name in DRAWN if f"{FIELD}{name}" in state}
        is_whole = len(arrays) == len(DRAWN)  # of a class of its own
        for row, now in enumerate(physics):
            if before is None or not self._repeat(before[row], now):
                self._place(now)
            for name in DRAWN if is_whole else ():
                getattr(self._mujoco.data, name)[...] = arrays[name][row]
            frames.append(self._draw(row))
        return tuple(frames)

    def _place(self, physics: NDArray[np.float64]) -> None:
        """As after a reset to this state."""
        model, data = self._mujoco.model, self._mujoco.data
        mujoco.mj_resetData(model, data)
        mujoco.mj_setState(model, data, physics, STATE)
        mujoco.mj_forward(model, data)

    def _repeat(self, before: NDArray[np.float64], now: NDArray[np.float64]) -> bool:
        """Step from ``before`` with the actions of ``now``; whether that leads to ``now``, to the last bit.

        It does not where ``now`` comes from a reset or from `set_state`, or where dynamics were changed.
        """
        model, data = self._mujoco.model, self._mujoco.data
        mujoco.mj_resetData(model, data)
        mujoco.mj_setState(model, data, now, STATE)
        action = data.ctrl.copy()
        mujoco.mj_setState(model, data, before, STATE)
        self._mujoco.do_simulation(action, self._mujoco.frame_skip)
        reached = np.zeros_like(now)
        mujoco.mj_getState(model, data, reached, STATE)
        return reached.tobytes() == now.tobytes()

    def _draw(self, row: int) -> NDArray[Any]:
        """A frame of what ``data`` holds, by the camera of that row, which looks where the robot first was."""
        try:
            with _chosen(self._backend):
                if row in self._cameras:
                    renderer: Any = self._mujoco.mujoco_renderer
                    renderer.viewer.cam.lookat[:] = self._cameras[row]
                    return np.array(self._env.render())
                return self._draw_first(row)
        except Exception as error:  # GL libraries raise whatever they like
            reason = " ".join(str(error).split())[:200]
            self._failure = f"cannot draw with MUJOCO_GL={self._backend or '(unset)'}: {type(error).__name__}: {reason}"
            raise ConfigError(self._failure) from error

    def _draw_first(self, row: int) -> NDArray[Any]:
        renderer: Any = self._mujoco.mujoco_renderer
        if renderer.viewer is not None:  # another row's: begin as Gymnasium does with each environment's own
            renderer.viewer._init_camera()
            renderer._set_cam_config()
        frame = np.array(self._env.render())
        self._cameras[row] = renderer.viewer.cam.lookat.copy()
        return frame

    def close(self) -> None:
        """Release the renderer."""
        self._env.close()


@contextlib.contextmanager
def _chosen(backend: str | None) -> Iterator[None]:
    """Have Gymnasium, which reads ``MUJOCO_GL`` when it opens a renderer, take what draws here."""
    before = os.environ.get("MUJOCO_GL")
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)


def check_mode(render_mode: str) -> None:
    """Raise ``ConfigError`` for a mode that a vector environment cannot have."""
    if render_mode not in MODES:
        raise ConfigError(f"got render_mode={render_mode!r}; expected one of {', '.join(MODES)}, or none")
