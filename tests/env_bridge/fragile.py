"""An environment of its own class that counts its steps and breaks where it is told to, ``Fragile-v0``."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np

ENV_ID = f"{__name__}:Fragile-v0"
STEP, END, RAISE, DIE = 0.0, -1.0, 1.0, 0.5
"""Actions."""


class Fragile(gymnasium.Env[np.ndarray, np.ndarray]):
    """See the module."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = np.zeros(1)
        if options:
            raise RuntimeError("the reset broke")
        return self.steps.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if action[0] == RAISE:
            raise RuntimeError("the step broke")
        if action[0] == DIE:
            os._exit(3)
        self.steps += 1
        return self.steps.copy(), 1.0, bool(action[0] == END), False, {}

    def get_state(self) -> np.ndarray:
        return self.steps.copy()

    def set_state(self, state: np.ndarray) -> None:
        self.steps = state.copy()


gymnasium.register("Fragile-v0", entry_point=Fragile, max_episode_steps=1000)
