"""`BridgeVectorEnv` equals Gymnasium's `SyncVectorEnv`: every array, every info with its mask, in each mode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from env_bridge import BridgeVectorEnv
from env_bridge.gym_vector import branch
from swarm.environment import TaskParameters
from swarm.errors import ActionError, ConfigError

SEED = 20


def assert_same_infos(ours: dict[str, Any], theirs: dict[str, Any], place: str = "infos") -> None:
    assert list(ours) == list(theirs), place
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert_same_infos(ours[key], value, f"{place}/{key}")
        else:
            assert ours[key].dtype == value.dtype, f"{place}/{key}"
            assert ours[key].shape == value.shape, f"{place}/{key}"
            for mine, expected in zip(ours[key], value, strict=True):
                assert type(mine) is type(expected), f"{place}/{key}"
                np.testing.assert_array_equal(mine, expected, err_msg=f"{place}/{key}")


def make_pair(
    env_id: str, num_envs: int, mode: AutoresetMode, *, workers: int, limit: int, **options: Any
) -> tuple[BridgeVectorEnv, SyncVectorEnv]:
    ours = BridgeVectorEnv(env_id, num_envs, workers=workers, autoreset_mode=mode, max_episode_steps=limit, **options)
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make(env_id, max_episode_steps=limit, **options)] * num_envs, autoreset_mode=mode
    )
    return ours, theirs


def assert_equal_steps(ours: BridgeVectorEnv, theirs: SyncVectorEnv, num_steps: int) -> int:
    """Step both and compare everything; return how many episodes ended."""
    observation, infos = ours.reset(seed=SEED)
    expected, expected_infos = theirs.reset(seed=SEED)
    np.testing.assert_array_equal(observation, expected)
    assert_same_infos(infos, expected_infos)
    theirs.action_space.seed(1)
    num_ended = 0
    for _ in range(num_steps):
        action = theirs.action_space.sample()
        mine, right = ours.step(action), theirs.step(action)
        for got, wanted in zip(mine[:4], right[:4], strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
        assert_same_infos(mine[4], right[4])
        ended = right[2] | right[3]
        num_ended += int(ended.sum())
        if theirs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
            observation, infos = ours.reset(options={"reset_mask": ended.copy()})
            expected, expected_infos = theirs.reset(options={"reset_mask": ended.copy()})
            np.testing.assert_array_equal(observation, expected)
            assert_same_infos(infos, expected_infos)
    ours.close()
    theirs.close()
    return num_ended


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "HalfCheetah-v5", "Ant-v5", "Hopper-v4", "Humanoid-v5"])
def test_every_array_and_info_equals_gymnasium_in_each_autoreset_mode(env_id: str, mode: AutoresetMode) -> None:
    ours, theirs = make_pair(env_id, 3, mode, workers=0, limit=23)
    assert assert_equal_steps(ours, theirs, 60) >= 6


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("env_id", ["Walker2d-v5", "CartPole-v1", "Pusher-v5", "FrozenLake-v1"])
def test_workers_change_nothing_not_even_of_environments_of_their_own_class(env_id: str, mode: AutoresetMode) -> None:
    ours, theirs = make_pair(env_id, 5, mode, workers=2, limit=23)
    assert assert_equal_steps(ours, theirs, 60) >= 6


@pytest.mark.parametrize("workers", [0, 2])
def test_spaces_are_gymnasiums(workers: int) -> None:
    for env_id in ("Ant-v4", "Humanoid-v5", "CartPole-v1"):
        ours, theirs = make_pair(env_id, 3, AutoresetMode.NEXT_STEP, workers=workers, limit=10)
        for name in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            assert getattr(ours, name) == getattr(theirs, name)
        ours.close()
        theirs.close()


def test_what_step_returns_is_the_callers_to_keep() -> None:
    for workers in (0, 2):
        env = BridgeVectorEnv("Ant-v5", 4, workers=workers)
        env.reset(seed=0)
        action = np.zeros(env.action_space.shape, np.float32)
        observation, reward, _, _, infos = env.step(action)
        kept = [observation.copy(), reward.copy(), *(infos[key].copy() for key in sorted(infos))]
        for _ in range(3):
            env.step(action + 0.5)
        for before, now in zip(kept, [observation, reward, *(infos[key] for key in sorted(infos))], strict=True):
            np.testing.assert_array_equal(before, now)
        env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_restored_state_continues_bit_for_bit_and_branches_start_alike(workers: int) -> None:
    env = BridgeVectorEnv("Hopper-v5", 4, workers=workers, max_episode_steps=15)
    env.reset(seed=3)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, size=(40, 4, 3)).astype(np.float32)
    for action in actions[:20]:
        env.step(action)
    state = env.get_state()
    first = [env.step(action) for action in actions[20:]]
    other = BridgeVectorEnv("Hopper-v5", 4, workers=2 - workers, max_episode_steps=15)
    other.set_state(state)
    for action, expected in zip(actions[20:], first, strict=True):
        for got, wanted in zip(other.step(action)[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(got, wanted)
    copies = BridgeVectorEnv("Hopper-v5", 6, workers=workers, max_episode_steps=15)
    copies.set_state(branch(state, 2, 6))
    observation, reward, *_ = copies.step(np.tile(actions[20, 2], (6, 1)))
    np.testing.assert_array_equal(observation, np.tile(first[0][0][2], (6, 1)))
    np.testing.assert_array_equal(reward, np.full(6, first[0][1][2]))
    for each in (env, other, copies):
        each.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_action_that_is_not_finite_is_refused_by_place_and_steps_nothing(workers: int) -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 3, workers=workers)
    env.reset(seed=0)
    before = env.get_state()
    action = np.zeros((3, 6), np.float32)
    action[1, 4] = np.inf
    with pytest.raises(ActionError, match="action 4 of environment 1 is inf"):
        env.step(action)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, before[name])
    env.close()


def test_action_out_of_range_is_refused_where_that_was_asked_for() -> None:
    env = BridgeVectorEnv("Humanoid-v4", 2, actions="strict")
    env.reset(seed=0)
    action = np.zeros((2, 17), np.float32)
    action[1, 3] = 0.5
    with pytest.raises(ActionError, match=r"action 3 of environment 1 is 0\.5, expected -0\.4 to 0\.4"):
        env.step(action)
    env.step(np.full((2, 17), 0.4, np.float32))
    env.close()


@pytest.mark.parametrize("state", [None, 3, {"physics": [1.0]}])
def test_what_is_no_state_is_refused_and_changes_nothing(state: Any) -> None:
    env = BridgeVectorEnv("Hopper-v4", 2)
    env.reset(seed=np.int64(3))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected the arrays that get_state returned"):
        env.set_state(state)
    with pytest.raises(ConfigError, match=r"got seed array\(3\); expected a whole number"):
        env.reset(seed=np.array(3))  # type: ignore[arg-type]
    env.step(np.zeros((2, 3), np.float32))
    env.close()


def test_a_class_without_a_state_to_read_cannot_be_saved() -> None:
    env = BridgeVectorEnv("CartPole-v1", 2)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"CartPole-v1 is no MuJoCo environment .* has no get_state\(\)"):
        env.get_state()
    env.close()


def test_finishing_a_step_that_was_not_begun_is_refused() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 2, workers=2)
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.NoAsyncCallError):
        env.step_wait()
    assert env.num_replaced == 0
    env.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        env.step_wait()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_refused_leaves_everything_as_it_was(workers: int) -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 4, workers=workers)
    env.reset(seed=0)
    before = env.get_state()
    impossible = [TaskParameters(), TaskParameters(crippled=7), TaskParameters(), TaskParameters()]
    with pytest.raises(ConfigError, match="crippled=7"):
        env.set_tasks(impossible)
    broken = {name: array.copy() for name, array in before.items()}
    broken["physics"][1, 0] = np.nan
    with pytest.raises(ConfigError, match="not finite"):
        env.set_state(broken)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, before[name])
    env.step(np.zeros((4, 6), np.float32))
    env.close()


def test_diverged_simulation_is_marked_truncated_and_reset() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 2)
    env.reset(seed=0)
    state = env.get_state()
    broken = {name: array.copy() for name, array in state.items()}
    broken["physics"][1, 5] = 1e12  # a position that no solver survives
    env.set_state(broken)
    marked = np.zeros(2, dtype=bool)
    for _ in range(20):
        _, _, terminated, truncated, infos = env.step(np.ones((2, 6), np.float32))
        if "diverged" in infos:
            marked |= infos["diverged"]
            assert truncated[infos["diverged"]].all()
            assert not terminated.any()
    np.testing.assert_array_equal(marked, [False, True])
    assert env.num_diverged >= 1
    observation, *_ = env.step(np.zeros((2, 6), np.float32))
    assert np.isfinite(observation).all()
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_divergence_is_noticed_in_environments_of_their_own_class_and_gives_nothing_that_is_not_finite(
    mode: AutoresetMode,
) -> None:
    env = BridgeVectorEnv("InvertedPendulum-v5", 2, autoreset_mode=mode)
    env.reset(seed=0)
    broken = {name: array.copy() for name, array in env.get_state().items()}
    broken["physics"][1, 3] = 1e12
    env.set_state(broken)
    observation, reward, _, truncated, infos = env.step(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(infos["diverged"], [False, True])
    assert truncated[1]
    assert reward[1] == 0.0
    assert np.isfinite(observation).all()
    assert env.num_diverged == 1
    env.close()


def test_tasks_change_at_a_reset() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 2, workers=0)
    env.reset(seed=0)
    _, plain, *_ = env.step(np.ones((2, 6), np.float32))
    env.reset(seed=0, options={"tasks": [TaskParameters(), TaskParameters(velocity=2.0)]})
    _, asked, *_ = env.step(np.ones((2, 6), np.float32))
    assert asked[0] == plain[0]
    assert asked[1] != plain[1]
    env.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"workers": -1}, "workers=-1"),
        ({"actions": "clip"}, "actions='clip'"),
        ({"autoreset_mode": "never"}, "autoreset_mode='never'"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
        ({"num_envs": 2.5}, r"num_envs=2\.5"),
        ({"patience_s": 0}, "patience_s=0"),
        ({"tasks": [3, 4]}, "expected one TaskParameters"),
        ({"tasks": []}, "got 0 tasks for 2"),
        ({"tasks": [TaskParameters(gravity=float("nan"))] * 2}, "gravity=nan"),
        ({"ctrl_cost_wait": 1.0}, "ctrl_cost_weight"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_line(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        BridgeVectorEnv("HalfCheetah-v5", **{"num_envs": 2, **arguments})
    assert "\n" not in str(caught.value)


def test_seeds_and_options_that_do_not_fit_are_one_clear_line() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 2)
    for seed, text in (
        ([0], "got 1 seeds for 2"),
        (-1, "whole numbers from 0"),
        ([0.5, 1], r"got seed 0\.5"),
        (1.5, r"got seed 1\.5"),
        (True, "got seed True"),
        (1 << 70, "below 2"),
    ):
        with pytest.raises(ConfigError, match=text):
            env.reset(seed=seed)  # type: ignore[arg-type]
    first, _ = env.reset(seed=np.int64(3))  # type: ignore[arg-type]
    again, _ = env.reset(seed=[3, 4])
    np.testing.assert_array_equal(first, again)
    env.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        env.reset()
    with pytest.raises(ConfigError, match=r"cannot be sent to a worker.*use workers=0"):
        BridgeVectorEnv("Pusher-v5", 2, workers=2, default_camera_config={"lookat": np.zeros(3)})


def test_stepping_before_a_reset_is_gymnasiums_error() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros((1, 6), np.float32))
    env.close()


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("HalfCheetah-v4", {}),
        ("HalfCheetah-v5", {"frame_skip": 3, "render_mode": "rgb_array"}),
        ("Humanoid-v5", {"healthy_reward": 2.0}),
        ("CartPole-v1", {}),
        ("Pusher-v5", {}),
    ],
)
def test_spec_metadata_and_render_mode_are_gymnasiums(env_id: str, options: dict[str, Any]) -> None:
    ours, theirs = make_pair(env_id, 2, AutoresetMode.SAME_STEP, workers=0, limit=7, **options)
    assert ours.spec == theirs.envs[0].spec
    assert ours.metadata == theirs.metadata
    assert ours.render_mode == theirs.render_mode
    assert ours.get_attr("spec") == tuple(env.spec for env in theirs.envs)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Pusher-v5"])
@pytest.mark.parametrize("workers", [0, 2])
def test_generators_and_their_seeds_are_those_of_the_last_reset(workers: int, env_id: str) -> None:
    ours, theirs = make_pair(env_id, 3, AutoresetMode.NEXT_STEP, workers=workers, limit=4)
    for seed in (5, [7, None, 9]):
        ours.reset(seed=seed)
        theirs.reset(seed=seed)
        for _ in range(6):
            action = theirs.action_space.sample()
            ours.step(action)
            theirs.step(action)
        assert ours.np_random_seed == ours.get_attr("np_random_seed") == theirs.np_random_seed
        for mine, right in zip(ours.np_random, theirs.np_random, strict=True):
            assert mine.bit_generator.state == right.bit_generator.state
    ours.set_state(ours.get_state())
    assert ours.np_random_seed == (-1, -1, -1)
    ours.close()
    theirs.close()
