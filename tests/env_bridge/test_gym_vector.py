"""`BridgeVectorEnv` against Gymnasium's own vector environment, with resets in the next step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from env_bridge import BridgeVectorEnv
from swarm.errors import ActionError


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v4", "Humanoid-v5"])
def test_steps_flags_and_resets_equal_gymnasium(env_id: str) -> None:
    ours = BridgeVectorEnv(env_id, 3, workers=2)
    theirs = gymnasium.make_vec(env_id, 3, vectorization_mode="sync")
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    ours.action_space.seed(0)
    num_ended = 0
    for _ in range(100):
        action = ours.action_space.sample()
        for left, right in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        num_ended += int(ours._pending.sum())
    assert num_ended > 0 or "HalfCheetah" in env_id
    ours.close()
    theirs.close()


def test_state_comes_back_even_between_end_and_reset() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 2, max_episode_steps=3)
    env.reset(seed=0)
    action = np.ones((2, 6), dtype=np.float32)
    for _ in range(3):
        env.step(action)
    saved = env.get_state()
    first = [env.step(action)[0] for _ in range(4)]
    env.set_state(saved)
    second = [env.step(action)[0] for _ in range(4)]
    np.testing.assert_array_equal(first, second)
    env.close()


def test_action_that_is_not_finite_is_refused() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 2)
    with pytest.raises(ActionError, match="action 0 of environment 0 is inf"):
        env.step(np.full((2, 6), np.inf, dtype=np.float32))
    env.close()
