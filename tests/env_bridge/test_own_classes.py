"""Environments that step through a class of their own: what they draw, and actions that are no vectors."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from env_bridge import BridgeVectorEnv
from swarm.errors import ActionError, ConfigError
from tests.env_bridge import dice
from tests.env_bridge.test_gym_vector import assert_same_infos

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


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("workers", [0, 2])
def test_seeds_reach_generators_that_a_class_made_itself_as_under_gymnasium(workers: int, mode: AutoresetMode) -> None:
    ours = BridgeVectorEnv(dice.ENV_ID, 4, workers=workers, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: gymnasium.make(dice.ENV_ID)] * 4, autoreset_mode=mode)
    action = np.zeros((4, 1), np.float32)
    assert ours.reset(seed=7)[1]["resets"].tolist() == [1] * 4
    theirs.reset(seed=7)
    for seed in (7, [3, None, 5, None], None):
        mine, right = ours.reset(seed=seed), theirs.reset(seed=seed)
        np.testing.assert_array_equal(mine[0], right[0])
        assert_same_infos(mine[1], right[1])
        assert ours.np_random_seed == theirs.np_random_seed
        for _ in range(dice.MAX_STEPS if mode is AutoresetMode.DISABLED else 3 * dice.MAX_STEPS):
            mine, right = ours.step(action), theirs.step(action)
            for got, wanted in zip(mine[:4], right[:4], strict=True):
                np.testing.assert_array_equal(got, wanted)
            assert_same_infos(mine[4], right[4])
        assert [one.random() for one in ours.np_random] == [one.random() for one in deepcopy(theirs.np_random)]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_class_that_is_given_no_seed_is_told_none(workers: int) -> None:
    env = BridgeVectorEnv(dice.ENV_ID, 2, workers=workers)
    _, infos = env.reset()
    assert infos["was_seeded"].tolist() == [False, False]
    assert len({one.random() for one in env.np_random}) == 2
    assert env.np_random_seed == (-1, -1)
    _, infos = env.reset(seed=[1, None])
    assert infos["was_seeded"].tolist() == [True, False]
    env.close()


def test_attributes_and_methods_of_objects_in_this_process_are_within_reach() -> None:
    env = BridgeVectorEnv(dice.ENV_ID, 2)
    env.reset(seed=0)
    assert env.get_attr("resets") == (1, 1)
    assert env.call("count", 10) == (11, 11)
    env.set_attr("resets", [5, 6])
    assert env.get_attr("resets") == (5, 6)
    env.set_attr("resets", 2)
    assert env.get_attr("resets") == (2, 2)
    with pytest.raises(ConfigError, match="got 3 values of 'resets' for 2 environments"):
        env.set_attr("resets", [1, 2, 3])
    env.step_async(np.zeros((2, 1), np.float32))
    with pytest.raises(gymnasium.error.AlreadyPendingCallError, match="call step_wait first"):
        env.get_attr("resets")
    env.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        env.get_attr("resets")


@pytest.mark.parametrize(
    ("env_id", "advice"), [(dice.ENV_ID, "make them with workers=0"), ("Hopper-v5", "use set_tasks, get_state")]
)
def test_what_is_no_object_in_this_process_is_refused_in_one_line(env_id: str, advice: str) -> None:
    env = BridgeVectorEnv(env_id, 2, workers=1)
    assert env.get_attr("action_space") == (env.single_action_space,) * 2
    for refused in (
        lambda: env.get_attr("resets"),
        lambda: env.call("count", 1),
        lambda: env.set_attr("resets", 1),
    ):
        with pytest.raises(AttributeError, match=advice) as caught:
            refused()
        assert "\n" not in str(caught.value)
    env.close()
