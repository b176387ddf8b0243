"""The fast robots equal Gymnasium's classes bit for bit (gymnasium 1.4, mujoco 3.17, numpy 2.4)."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from env_bridge.robots import robot_for
from env_bridge.vector_env import VectorEnv
from swarm.errors import ActionError, ConfigError

ROBOTS = [
    f"{name}-v{version}" for name in ("HalfCheetah", "Ant", "Humanoid", "Walker2d", "Hopper") for version in (4, 5)
]
STEPS = 300


@pytest.mark.parametrize("env_id", ROBOTS)
def test_observation_reward_and_flags_equal_gymnasium_over_resets(env_id: str) -> None:
    assert robot_for(env_id) is not None
    seeds = (0, 11)
    ours = VectorEnv(env_id, len(seeds))
    theirs = [gymnasium.make(env_id) for _ in seeds]
    ours.seed(seeds)
    expected = np.stack([env.reset(seed=seed)[0] for env, seed in zip(theirs, seeds, strict=True)])
    np.testing.assert_array_equal(ours.reset(), expected)
    generator = np.random.default_rng(5)
    low, high = theirs[0].action_space.low, theirs[0].action_space.high
    num_ended = 0
    for _ in range(STEPS):
        action = generator.uniform(1.2 * low, 1.2 * high, size=(len(seeds), low.size)).astype(np.float32)
        step = ours.step(action)
        for index, env in enumerate(theirs):
            observation, reward, terminated, truncated, _ = env.step(action[index])
            np.testing.assert_array_equal(step.observation[index], observation)
            assert step.reward[index] == reward
            assert (step.terminated[index], step.truncated[index]) == (terminated, truncated)
        assert not step.diverged.any()
        for index in np.flatnonzero(step.ended):
            num_ended += 1
            np.testing.assert_array_equal(ours.reset([int(index)])[index], theirs[index].reset()[0])
    assert num_ended > 0 or "HalfCheetah" in env_id
    for env in theirs:
        env.close()


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Ant-v5", "Humanoid-v4", "Pusher-v5"])
def test_two_stepping_workers_give_the_same_bits_as_one(env_id: str) -> None:
    bits = []
    for workers in (1, 2):
        env = VectorEnv(env_id, 5, workers=workers)
        env.seed([(3, index) for index in range(5)])
        seen = [env.reset()]
        generator = np.random.default_rng(0)
        for _ in range(40):
            step = env.step(generator.uniform(-0.4, 0.4, size=(5, env.spec.action_size)).astype(np.float32))
            seen += [step.observation, step.reward]
            env.reset([int(index) for index in np.flatnonzero(step.ended)])
        env.close()
        bits.append(b"".join(array.tobytes() for array in seen))
    assert bits[0] == bits[1]


def test_time_limit_truncates_at_the_step_where_gymnasium_does() -> None:
    ours = VectorEnv("HalfCheetah-v4", 1, max_episode_steps=7)
    ours.reset()
    flags = [bool(ours.step(np.zeros((1, 6), dtype=np.float32)).truncated[0]) for _ in range(7)]
    assert flags == [False] * 6 + [True]


def test_action_that_is_not_finite_is_refused_by_place_and_steps_nothing() -> None:
    env = VectorEnv("Ant-v4", 3)
    env.seed([0, 1, 2])
    env.reset()
    before = env.get_state()
    action = np.zeros((3, 8), dtype=np.float32)
    action[2, 5] = np.nan
    with pytest.raises(ActionError, match="action 5 of environment 2 is nan"):
        env.step(action)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_unknown_environment_is_one_line_with_the_nearest_id() -> None:
    with pytest.raises(ConfigError, match="did you mean 'HalfCheetah-v4'") as caught:
        VectorEnv("HalfCheeta-v4", 1)
    assert "\n" not in str(caught.value)


def test_environment_with_discrete_actions_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a one-dimensional Box"):
        VectorEnv("CartPole-v1", 1)


def test_any_other_id_steps_through_its_own_class() -> None:
    ours, theirs = VectorEnv("Pusher-v5", 1), gymnasium.make("Pusher-v5")
    ours.seed([4])
    np.testing.assert_array_equal(ours.reset()[0], theirs.reset(seed=4)[0])
    action = np.full((1, 7), 0.3, dtype=np.float32)
    for _ in range(20):
        observation, reward, *_ = theirs.step(action[0])
        step = ours.step(action)
        np.testing.assert_array_equal(step.observation[0], observation)
        assert step.reward[0] == reward
    theirs.close()
