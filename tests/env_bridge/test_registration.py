"""The ids of `env_bridge.registration` in Gymnasium's registry, and Gymnasium's vector wrappers around them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import vector as wrappers

from env_bridge import BridgeVectorEnv, registration
from swarm.errors import ConfigError


@pytest.mark.parametrize("env_id", registration.IDS)
def test_make_vec_gives_the_bridge_under_gymnasiums_own_time_limit(env_id: str) -> None:
    env = gymnasium.make_vec(f"bridge/{env_id}", num_envs=2)
    assert isinstance(env, BridgeVectorEnv)
    assert env.num_envs == 2
    assert env.spec is not None
    assert env.spec.id == f"bridge/{env_id}"
    known = gymnasium.registry[env_id]
    assert env.spec.max_episode_steps == known.max_episode_steps
    assert env.spec.reward_threshold == known.reward_threshold
    env.close()


def test_options_of_make_vec_arrive_in_the_bridge_and_change_what_gymnasium_would_change() -> None:
    options = {"max_episode_steps": 3, "ctrl_cost_weight": 0.7}
    ours = gymnasium.make_vec("bridge/HalfCheetah-v5", 3, vectorization_mode="vector_entry_point", workers=0, **options)
    theirs = gymnasium.make_vec("HalfCheetah-v5", 3, vectorization_mode="sync", **options)
    np.testing.assert_array_equal(ours.reset(seed=4)[0], theirs.reset(seed=4)[0])
    theirs.action_space.seed(0)
    for _ in range(8):
        action = theirs.action_space.sample()
        for left, right in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
            np.testing.assert_array_equal(left, right)
    ours.close()
    theirs.close()


def test_single_environments_of_an_id_are_those_of_gymnasium() -> None:
    ours, theirs = gymnasium.make("bridge/Hopper-v5"), gymnasium.make("Hopper-v5")
    assert type(ours.unwrapped) is type(theirs.unwrapped)
    np.testing.assert_array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    with closing(gymnasium.make_vec("bridge/Hopper-v5", 2, vectorization_mode="sync")) as both:
        assert isinstance(both, gymnasium.vector.SyncVectorEnv)
    ours.close()
    theirs.close()


def test_environment_can_be_made_again_from_its_own_spec() -> None:
    with closing(gymnasium.make_vec("bridge/Ant-v5", 3, max_episode_steps=9)) as env:
        assert env.spec is not None
        spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    with closing(gymnasium.make_vec(spec)) as again:
        assert isinstance(again, BridgeVectorEnv)
        assert again.num_envs == 3
        assert again.describe().max_episode_steps == 9


def test_option_that_the_robot_does_not_have_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="ctrl_kost_weight") as caught:
        gymnasium.make_vec("bridge/HalfCheetah-v5", 2, ctrl_kost_weight=0.7)
    assert "\n" not in str(caught.value)


def test_gymnasium_finds_an_id_by_the_modules_name_in_a_new_process_and_nothing_is_printed() -> None:
    program = (
        "import sys, gymnasium\n"
        "assert not any(name.startswith('env_bridge') for name in sys.modules)\n"
        "import env_bridge.registration\n"
        "assert 'mujoco' not in sys.modules\n"
        "assert gymnasium.spec('bridge/Walker2d-v5').vector_entry_point\n"
        "env = gymnasium.make_vec('env_bridge.registration:bridge/Walker2d-v5', num_envs=2, workers=0)\n"
        "assert type(env).__name__ == 'BridgeVectorEnv'\n"
        "env.close()\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_registering_again_changes_nothing_and_says_nothing() -> None:
    before = gymnasium.registry["bridge/Ant-v4"]
    registration.register()
    assert gymnasium.registry["bridge/Ant-v4"] is before


def test_module_has_no_entry_points_but_its_ids() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Ant-v9'"):
        getattr(registration, "Ant-v9")


def test_episode_statistics_of_gymnasiums_wrapper_are_those_of_gymnasiums_environments() -> None:
    found = []
    for env_id in ("bridge/Hopper-v5", "Hopper-v5"):
        env = wrappers.RecordEpisodeStatistics(gymnasium.make_vec(env_id, 4))
        env.reset(seed=0)
        env.action_space.seed(0)
        episodes = []
        for _ in range(80):
            *_, infos = env.step(env.action_space.sample())
            if "episode" in infos:
                ended = infos["_episode"]
                episodes.append((infos["episode"]["r"][ended].tolist(), infos["episode"]["l"][ended].tolist()))
        env.close()
        found.append(episodes)
    assert found[0] == found[1]
    assert len(found[0]) > 3


def test_wrappers_that_normalise_see_the_same_numbers_as_over_gymnasiums_environments() -> None:
    found = []
    for env_id in ("bridge/Hopper-v5", "Hopper-v5"):
        env = wrappers.NormalizeReward(wrappers.NormalizeObservation(gymnasium.make_vec(env_id, 3)))
        seen = [env.reset(seed=0)[0]]
        env.action_space.seed(0)
        for _ in range(40):
            observation, reward, *_ = env.step(env.action_space.sample())
            seen += [observation, reward]
        env.close()
        found.append(b"".join(array.tobytes() for array in seen))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "wrapper",
    [
        wrappers.ClipAction,
        wrappers.FlattenObservation,
        wrappers.DictInfoToList,
        lambda env: wrappers.ClipReward(env, -1.0, 1.0),
        lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
    ],
)
def test_wrapper_of_gymnasium_gives_the_same_around_the_bridge(wrapper: object) -> None:
    assert callable(wrapper)
    ours, theirs = (wrapper(gymnasium.make_vec(env_id, 2)) for env_id in ("bridge/Hopper-v5", "Hopper-v5"))
    np.testing.assert_array_equal(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    ours.action_space.seed(0)
    for _ in range(30):
        action = ours.action_space.sample()
        left, right = ours.step(action), theirs.step(action)
        for mine, other in zip(left[:4], right[:4], strict=True):
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype
        assert ours.observation_space.contains(left[0])
    ours.close()
    theirs.close()
