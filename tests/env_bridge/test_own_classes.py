"""Environments that step through a class of their own: what they draw, and actions that are no vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from env_bridge import BridgeVectorEnv
from swarm.errors import ActionError

ENV_ID = "Drunk-v0"


class Drunk(gymnasium.Env[np.ndarray, np.ndarray]):
    """Walks in the plane, and draws at each step where to."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2, 3), np.float32)

    def reset(self, **given: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=given.get("seed"))
        self.place = self.np_random.standard_normal(2)
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = self.place + action.sum(axis=1) + self.np_random.standard_normal(2)
        return self.place.copy(), 0.0, False, False, {}

    def get_state(self) -> np.ndarray:
        return self.place.copy()

    def set_state(self, state: np.ndarray) -> None:
        self.place = state.copy()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(ENV_ID, entry_point=Drunk, max_episode_steps=50)
    yield
    del gymnasium.registry[ENV_ID]


def test_a_restored_state_goes_on_with_the_generators_of_then() -> None:
    env = BridgeVectorEnv(ENV_ID, 2)
    env.reset(seed=0)
    action = np.zeros((2, 2, 3), np.float32)
    env.step(action)
    state = env.get_state()
    first = [env.step(action)[0] for _ in range(3)]
    env.set_state(state)
    np.testing.assert_array_equal([env.step(action)[0] for _ in range(3)], first)
    other = BridgeVectorEnv(ENV_ID, 2)
    other.set_state(state)
    np.testing.assert_array_equal([other.step(action)[0] for _ in range(3)], first)
    env.close()
    other.close()


def test_an_action_out_of_range_is_named_by_its_place() -> None:
    env = BridgeVectorEnv(ENV_ID, 2, actions="strict")
    env.reset(seed=0)
    action = np.zeros((2, 2, 3), np.float32)
    action[1, 0, 2] = 1.5
    with pytest.raises(ActionError, match=r"action 0 2 of environment 1 is 1\.5, expected -1 to 1; nothing"):
        env.step(action)
    env.close()
