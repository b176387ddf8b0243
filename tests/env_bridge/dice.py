"""An environment with a generator of its own besides Gymnasium's, ``Dice-v0``; it tells how it was reset."""

from __future__ import annotations

import random
from typing import Any

import gymnasium
import numpy as np

ENV_ID = f"{__name__}:Dice-v0"
MAX_STEPS = 3


class Dice(gymnasium.Env[np.ndarray, np.ndarray]):
    """See the module."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self.resets:
            self.own = random.Random(seed)
        self.resets += 1
        return self._roll(), {"resets": self.resets, "was_seeded": seed is not None}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._roll(), self.own.random(), False, False, {}

    def _roll(self) -> np.ndarray:
        return np.array([self.own.random(), self.np_random.random()])

    def count(self, number: int) -> int:
        return self.resets + number


gymnasium.register("Dice-v0", entry_point=Dice, max_episode_steps=MAX_STEPS)
