"""Rollouts: continuing equals not stopping, resets in the same step, one episode each, faults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from env_bridge.packed import unpack
from env_bridge.rollout import RolloutCancelled, run_packed, run_rollout
from env_bridge.vector_env import Step, VectorEnv
from swarm.environment import RolloutRequest, RolloutResult, TaskParameters
from swarm.errors import ActionError, CodecError, ConfigError
from swarm.policy import PolicyInput

SIZES = {
    "HalfCheetah-v4": (17, 6),
    "Ant-v4": (27, 8),
    "Humanoid-v4": (376, 17),
    "Ant-v5": (105, 8),
    "Pusher-v5": (23, 7),
}
EIGHT = (TaskParameters(),) * 8


class LinearPolicy:
    """tanh of fixed random projections of observation, reward and a decaying state: all that it is told counts."""

    state_size = 3

    def __init__(self, observation_size: int, action_size: int) -> None:
        generator = np.random.default_rng(7)
        self.weight = generator.normal(size=(observation_size, action_size)).astype(np.float32)
        self.mixing = generator.normal(size=(3, action_size)).astype(np.float32)

    def act(self, given: PolicyInput) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        state = np.where(given.reset[:, None], np.float32(0), given.state) * np.float32(0.9)
        state = state + given.reward[:, None] * np.float32(0.01) + np.float32(0.1)
        bounded = np.clip(given.observation, -5, 5)
        return np.tanh(bounded @ self.weight + state @ self.mixing + given.noise), state


def request(env_id: str = "HalfCheetah-v4", num_steps: int | None = 10, **changes: object) -> RolloutRequest:
    base = RolloutRequest(env_id=env_id, tasks=EIGHT, seed=3, num_steps=num_steps, policy="random")
    return replace(base, **changes)  # type: ignore[arg-type]


def assert_same(left: RolloutResult, right: RolloutResult) -> None:
    assert left.columns.keys() == right.columns.keys()
    for name, column in left.columns.items():
        np.testing.assert_array_equal(column, right.columns[name], err_msg=name)
    assert left.snapshot.keys() == right.snapshot.keys()
    for name, array in left.snapshot.items():
        np.testing.assert_array_equal(array, right.snapshot[name], err_msg=name)
    assert left.episodes == right.episodes


@pytest.mark.parametrize("env_id", SIZES)
def test_fifty_steps_equal_twenty_then_thirty_from_the_saved_snapshot(env_id: str, tmp_path: Path) -> None:
    policy = LinearPolicy(*SIZES[env_id])
    whole = run_rollout(request(env_id, 50), policy=policy)
    first = run_rollout(request(env_id, 20), policy=policy)
    save_file(dict(first.snapshot), tmp_path / "snapshot.safetensors")
    snapshot = load_file(tmp_path / "snapshot.safetensors")
    second = run_rollout(
        request(env_id, 30, snapshot=snapshot, policy_state=first.policy_state, seed=99), policy=policy, workers=2
    )
    joined = replace(
        second,
        columns={name: np.concatenate((column, second.columns[name])) for name, column in first.columns.items()},
        episodes=first.episodes + second.episodes,
    )
    assert_same(whole, joined)
    np.testing.assert_array_equal(whole.policy_state, second.policy_state)
    if env_id.startswith(("Ant", "Humanoid")):
        assert whole.episodes, "the test wants resets inside"


def test_rollout_is_a_pure_function_even_in_an_environment_used_before() -> None:
    wanted = run_rollout(request(num_steps=15, noise_seed=1))
    env = VectorEnv("HalfCheetah-v4", 8)
    shifted = (TaskParameters(gravity=2.0, mass=1.5),) * 8
    run_rollout(request(num_steps=30, noise_seed=2, tasks=shifted), env=env)
    assert_same(wanted, run_rollout(request(num_steps=15, noise_seed=1), env=env))


def test_blocks_of_eight_act_alone_so_more_environments_change_nothing_for_the_first() -> None:
    policy = LinearPolicy(17, 6)
    eight = run_rollout(request(num_steps=12), policy=policy)
    sixteen = run_rollout(request(num_steps=12, tasks=EIGHT * 2), policy=policy)
    np.testing.assert_array_equal(eight.columns["observation"], sixteen.columns["observation"][:, :8])


def test_finished_episode_restarts_in_the_same_step_and_keeps_its_true_last_observation() -> None:
    result = run_rollout(request(num_steps=9, max_episode_steps=4, noise_seed=0))
    columns = result.columns
    assert columns["truncated"][3].all()
    assert columns["reset"][:, 0].tolist() == [True, False, False, False, True, False, False, False, True]
    assert (columns["next_observation"][3] != columns["observation"][4]).any(axis=1).all()
    np.testing.assert_array_equal(columns["next_observation"][2], columns["observation"][3])
    assert columns["valid"].all()
    assert len(result.episodes) == 16
    first = result.episodes[0]
    assert (first.environment, first.length, first.terminated) == (0, 4, False)
    assert first.total_reward == pytest.approx(float(columns["reward"][:4, 0].sum()), rel=1e-5)


@pytest.mark.parametrize("num_steps", [60, None])
def test_what_follows_each_row_is_what_the_environment_showed_before_any_reset(
    num_steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[NDArray[np.float32]] = []
    step = VectorEnv.step

    def watched(*given: Any) -> Step:
        result = step(*given)
        shown.append(result.observation.astype(np.float32))
        return result

    monkeypatch.setattr(VectorEnv, "step", watched)
    columns = run_rollout(request("Hopper-v4", num_steps, noise_seed=5, max_episode_steps=40)).columns
    valid, ended = columns["valid"], columns["terminated"] | columns["truncated"]
    assert columns["terminated"].any(), "the test wants falls inside"
    np.testing.assert_array_equal(columns["next_observation"][valid], np.stack(shown)[valid])
    going_on = (valid & ~ended)[:-1]
    np.testing.assert_array_equal(columns["next_observation"][:-1][going_on], columns["observation"][1:][going_on])


def test_a_packed_result_whose_columns_do_not_fit_is_refused() -> None:
    wanted = request(num_steps=9, max_episode_steps=4)
    packed = run_packed(wanted, VectorEnv(wanted.env_id, 8))
    without = {name: column for name, column in packed.columns.items() if name != "ended_observation"}
    ended, observation = packed.columns["ended_observation"], packed.columns["observation"]
    for columns in (
        without,
        without | {"ended_observation": ended[:1]},  # which NumPy would give to all episodes
        without | {"ended_observation": ended, "observation": observation[1:]},
    ):
        with pytest.raises(CodecError, match="bad-array"):
            unpack(replace(packed, columns=columns))
    assert len(unpack(packed).columns["next_observation"]) == 9


def test_one_episode_each_masks_what_follows_the_end() -> None:
    result = run_rollout(request("Humanoid-v4", None, noise_seed=5))
    lengths = {episode.environment: episode.length for episode in result.episodes}
    assert sorted(lengths) == list(range(8))
    valid = result.columns["valid"]
    assert [int(count) for count in valid.sum(axis=0)] == [lengths[index] for index in range(8)]
    assert valid.shape[0] == max(lengths.values())
    assert result.num_steps == sum(lengths.values())
    assert not result.columns["observation"][~valid].any()
    assert result.snapshot["reset"].all()


def test_policy_sees_reset_reward_and_its_own_state() -> None:
    seen: list[PolicyInput] = []

    class Recorder(LinearPolicy):
        def act(self, given: PolicyInput) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            seen.append(given)
            return super().act(given)

    result = run_rollout(request(num_steps=6, max_episode_steps=3), policy=Recorder(17, 6))
    assert [bool(given.reset[0]) for given in seen] == [True, False, False, True, False, False]
    np.testing.assert_array_equal(seen[2].reward, result.columns["reward"][1])
    assert not seen[3].reward.any()
    assert all(given.observation.shape == (8, 17) for given in seen)


def test_columns_keep_the_actions_of_the_policy_and_the_environment_gets_them_scaled() -> None:
    columns = run_rollout(request("Humanoid-v4", 5, noise_seed=1)).columns
    assert 0.8 < float(np.abs(columns["action"]).max()) <= 1.0
    env = VectorEnv("Humanoid-v4", 8)
    env.seed([(3, index) for index in range(8)])
    env.reset()
    step = env.step((columns["action"][0].astype(np.float64) * 0.4).astype(np.float32))
    np.testing.assert_allclose(step.reward, columns["reward"][0], rtol=1e-5)


def test_policy_that_gives_nan_is_named_by_place_and_nothing_is_stepped() -> None:
    class Broken(LinearPolicy):
        def act(self, given: PolicyInput) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            action, state = super().act(given)
            action[6, 2] = np.inf
            return action, state

    with pytest.raises(ActionError, match="action 2 of environment 6 is inf"):
        run_rollout(request(), policy=Broken(17, 6))


def test_diverged_environment_is_reset_and_its_row_is_invalid() -> None:
    first = run_rollout(request(num_steps=3, noise_seed=1))
    snapshot = {name: array.copy() for name, array in first.snapshot.items()}
    snapshot["physics"][4, 1] = 1e200  # position x: MuJoCo calls it huge and resets the simulation itself
    result = run_rollout(request(num_steps=5, noise_seed=2, snapshot=snapshot))
    valid = result.columns["valid"]
    assert not valid[0, 4]
    assert valid.sum() == valid.size - 1
    assert result.columns["reset"][1].tolist() == [index == 4 for index in range(8)]
    assert all(np.isfinite(column).all() for column in result.columns.values())
    assert result.columns["reward"][0, 4] == 0.0
    assert not result.episodes


def test_recorded_positions_belong_to_the_observations() -> None:
    result = run_rollout(request(num_steps=5, noise_seed=1, record_qpos=True))
    qpos = result.columns["qpos"]
    assert qpos.shape == (5, 8, 9)
    np.testing.assert_array_equal(qpos[:, :, 1:].astype(np.float32), result.columns["observation"][:, :, :8])


def test_stop_is_heard_between_steps() -> None:
    with pytest.raises(RolloutCancelled):
        run_rollout(request(num_steps=100), should_stop=lambda: True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": EIGHT[:5]}, "multiple of 8"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 100_000_000}, "do not fit"),
        ({"seed": -1}, "seed=-1"),
        ({"policy": "rondom"}, "unknown policy 'rondom'; installed policies: .*random"),
        ({"env_id": "HalfCheetah-v9"}, "unknown environment"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
        ({"snapshot": {"physics": np.zeros(3)}}, "snapshot array 'elapsed'"),
        ({"policy_state": np.zeros((8, 4), dtype=np.float32)}, r"expected float32 \(8, 0\)"),
        ({"tasks": (TaskParameters(crippled=6),) * 8}, "actuators 0 to 5"),
        ({"tasks": (TaskParameters(gravity=float("nan")),) * 8}, "gravity=nan"),
        ({"tasks": (TaskParameters(direction=1.0),) * 8}, "planar robot"),
        ({"env_id": "Pusher-v5", "tasks": (TaskParameters(velocity=1.0),) * 8}, "no target velocity"),
    ],
)
def test_request_that_does_not_fit_is_one_clear_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_rollout(request(**changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_snapshot_of_another_robot_is_refused() -> None:
    other = run_rollout(request("Ant-v4", 2))
    with pytest.raises(ConfigError, match="snapshot array 'physics'"):
        run_rollout(request(snapshot=other.snapshot))
