"""Actions of every kind of space: what is taken as it is, and what is refused before anything is stepped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import SyncVectorEnv

from env_bridge import AsyncBridgeVectorEnv, BridgeVectorEnv
from swarm.errors import ActionError

SPACES: dict[str, gymnasium.Space[Any]] = {
    "Switch-v0": Discrete(3, start=1),
    "Switches-v0": MultiDiscrete([[2, 3], [4, 5]]),
    "Lamps-v0": MultiBinary(3),
    "Valve-v0": Box(0.5, 1.0, (), np.float32),
    "Steps-v0": Box(1, 3, (2,), np.int8),
}


class Careful(gymnasium.Env[np.ndarray, Any]):
    """Tells the sum of its actions, and refuses what its space does not contain."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, name: str) -> None:
        self.action_space = SPACES[name]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.sum = np.zeros(1)
        return self.sum.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action)), f"{action!r} is no action"
        self.sum += np.sum(action)
        return self.sum.copy(), float(self.sum[0]), False, False, {"sum": self.sum.copy()}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for name in SPACES:
        gymnasium.register(name, entry_point=Careful, kwargs={"name": name}, max_episode_steps=50)
    yield
    for name in SPACES:
        del gymnasium.registry[name]


def started(env_id: str, **options: Any) -> BridgeVectorEnv:
    env = BridgeVectorEnv(env_id, 2, **options)
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("actions", ["gymnasium", "strict"])
@pytest.mark.parametrize("env_id", SPACES)
def test_a_class_that_refuses_zeros_is_stepped_as_gymnasium_steps_it(env_id: str, actions: str) -> None:
    ours = BridgeVectorEnv(env_id, 2, actions=actions)
    theirs = SyncVectorEnv([lambda: gymnasium.make(env_id)] * 2)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    theirs.action_space.seed(0)
    for _ in range(20):
        action = theirs.action_space.sample()
        mine, right = ours.step(action), theirs.step(action)
        for got, wanted in zip(mine[:4], right[:4], strict=True):
            np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(mine[4]["sum"], right[4]["sum"])
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("env_id", "given", "text"),
    [
        ("Switch-v0", [1.0, 1.9], r"action of environment 1 is 1\.9, expected a whole number from -"),
        ("Switch-v0", [np.nan, 1], "action of environment 0 is nan, expected a whole number"),
        ("Switch-v0", [2, np.inf], "action of environment 1 is inf, expected a whole number"),
        ("Switch-v0", np.array([1, 2**64 - 1], np.uint64), "action of environment 1 is 18446744073709551615"),
        ("Switch-v0", [1], r"actions have shape \(1,\), expected \(2,\)"),
        ("Lamps-v0", [[0, 1, 257], [0, 0, 0]], "action 2 of environment 0 is 257, expected .* from -128 to 127"),
        ("Switches-v0", np.full((2, 2, 2), 0.5), r"action 0 0 of environment 0 is 0\.5"),
        ("Steps-v0", [[1, 2], [3, 300]], "action 1 of environment 1 is 300"),
        ("Valve-v0", [1.0, np.nan], "action of environment 1 is nan"),
        ("Valve-v0", [1.0, 1e300], "action of environment 1 is inf"),
        ("Valve-v0", ["1", "0.5"], "are an array of <U3, expected numbers"),
        ("Valve-v0", [1.0, 1j], "are an array of complex128, expected numbers"),
        ("Valve-v0", [1.0, None], "are an array of object, expected numbers"),
        ("Valve-v0", {0: 1.0, 1: 1.0}, "of type dict are an array of object"),
        ("Valve-v0", [[1.0], [1.0, 0.5]], r"of type list are no array of numbers \(.*inhomogeneous"),
    ],
)
def test_what_is_no_action_is_one_clear_line_and_steps_nothing(env_id: str, given: Any, text: str) -> None:
    env = started(env_id)
    with pytest.raises(ActionError, match=text) as caught:
        env.step(given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("nothing was stepped")
    action = np.ones(env.action_space.shape)
    assert env.step(action)[0].tolist() == [[action[0].sum()]] * 2
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("env_id", "given", "text"),
    [
        ("CartPole-v1", [1, 7], "action of environment 1 is 7, expected 0 to 1"),
        ("CartPole-v1", np.array([-1, 0]), "action of environment 0 is -1, expected 0 to 1"),
        ("CartPole-v1", [1, 0.9], r"action of environment 1 is 0\.9, expected a whole number"),
        ("Pusher-v5", np.pad([[3.0]], ((1, 0), (4, 2))), "action 4 of environment 1 is 3, expected -2 to 2"),
    ],
)
def test_out_of_range_is_refused_for_every_space_where_that_was_asked_for(
    env_id: str, given: Any, text: str, workers: int
) -> None:
    env = started(env_id, actions="strict", workers=workers)
    with pytest.raises(ActionError, match=text) as caught:
        env.step(given)
    assert "\n" not in str(caught.value)
    env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
    env.close()


@pytest.mark.parametrize(
    ("env_id", "given", "text"),
    [
        ("Switch-v0", [1, 4], "action of environment 1 is 4, expected 1 to 3"),
        ("Switches-v0", np.full((2, 2, 2), 2), "action 0 0 of environment 0 is 2, expected 0 to 1"),
        ("Lamps-v0", [[0, 1, 0], [0, -1, 0]], "action 1 of environment 1 is -1, expected 0 to 1"),
        ("Valve-v0", [0.5, 0.25], r"action of environment 1 is 0\.25, expected 0\.5 to 1"),
        ("Steps-v0", [[1, 2], [3, 0]], "action 1 of environment 1 is 0, expected 1 to 3"),
    ],
)
def test_limits_of_every_space_are_its_own(env_id: str, given: Any, text: str) -> None:
    env = started(env_id, actions="strict")
    with pytest.raises(ActionError, match=text):
        env.step(given)
    env.close()


def test_whole_numbers_of_any_type_are_taken() -> None:
    env = started("Switch-v0")
    for step, given in enumerate(([1, 3], [1.0, 3.0], np.array([1, 3], np.uint8), (np.float32(1), np.int16(3))), 1):
        assert env.step(given)[0].tolist() == [[step], [3 * step]]  # type: ignore[arg-type]
    env.close()


async def test_a_coroutine_is_told_in_the_same_words() -> None:
    async with await AsyncBridgeVectorEnv.open("CartPole-v1", 2, workers=1, actions="strict") as env:
        await env.reset(seed=0)
        for given, text in (
            ([0, 7], "action of environment 1 is 7, expected 0 to 1"),
            ([0, 0.5], r"action of environment 1 is 0\.5"),
            ([[0], [0, 1]], "no array of numbers"),
            ("up", "an array of <U2"),
            ({}, "of type dict"),
        ):
            with pytest.raises(ActionError, match=text) as caught:
                await env.step(given)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
        await env.step(np.array([0, 1]))
