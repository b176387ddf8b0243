"""`BridgeVecEnv` beside Stable-Baselines3's own `DummyVecEnv`, and PPO on it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from env_bridge.sb3 import BridgeVecEnv
from swarm.environment import TaskParameters
from swarm.errors import ActionError, ConfigError

NUM_ENVS = 3


def assert_same(left: Any, right: Any) -> None:
    """Assert that two infos hold the same names and values."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Hopper-v5", "Humanoid-v4"])
def test_three_hundred_steps_equal_those_of_stable_baselines3s_own_environments(env_id: str) -> None:
    limit = 70
    ours = BridgeVecEnv(env_id, NUM_ENVS, max_episode_steps=limit)
    theirs = make_vec_env(env_id, NUM_ENVS, env_kwargs={"max_episode_steps": limit})
    theirs = theirs.unwrapped
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    for env in (ours, theirs):
        env.seed(7)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert_all_same(ours.reset_infos, theirs.reset_infos)
    generator = np.random.default_rng(0)
    low, high = theirs.action_space.low, theirs.action_space.high
    num_ended = 0
    for _ in range(300):
        action = generator.uniform(low, high, size=(NUM_ENVS, low.size)).astype(np.float32)
        *left, ours_infos = ours.step(action)
        *right, their_infos = theirs.step(action)
        for mine, other in zip(left, right, strict=True):
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype
        for info in their_infos:
            info.pop("episode", None)  # of the Monitor that make_vec_env puts around each
        assert_all_same(ours_infos, their_infos)
        assert_all_same(ours.reset_infos, theirs.reset_infos)
        num_ended += int(left[2].sum())
    assert num_ended >= 300 // limit * NUM_ENVS
    ours.close()
    theirs.close()


def assert_all_same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    """Assert that the infos of all environments hold the same."""
    for mine, other in zip(left, right, strict=True):
        assert_same(mine, other)


def test_ppo_trains_on_it_under_a_monitor_and_the_policy_can_be_evaluated() -> None:
    env = VecMonitor(BridgeVecEnv("HalfCheetah-v4", 4, max_episode_steps=50))
    agent = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    agent.learn(2_048)
    assert agent.num_timesteps == 2_048
    assert agent.ep_info_buffer is not None
    assert {episode["l"] for episode in agent.ep_info_buffer} == {50}
    assert any((old != new).any() for old, new in zip(before, agent.policy.parameters(), strict=True))
    mean_reward, _ = evaluate_policy(agent, env, n_eval_episodes=4)
    assert np.isfinite(mean_reward)
    env.close()


def test_ppo_on_it_learns_the_same_bits_as_on_stable_baselines3s_own_environments() -> None:
    weights = []
    for env in (BridgeVecEnv("Hopper-v5", 2), make_vec_env("Hopper-v5", 2)):
        agent = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=3, device="cpu")
        agent.learn(128)
        weights.append(b"".join(parameter.detach().numpy().tobytes() for parameter in agent.policy.parameters()))
        env.close()
    assert weights[0] == weights[1]


def test_its_wrapper_that_normalises_works_on_it() -> None:
    env = VecNormalize(BridgeVecEnv("HalfCheetah-v4", 2))
    env.seed(0)
    env.reset()
    observation, *_ = env.step(np.zeros((2, 6), dtype=np.float32))
    assert isinstance(observation, np.ndarray)
    assert np.abs(observation).max() <= 10.0
    env.close()


def test_options_and_tasks_arrive() -> None:
    action = np.ones((2, 6), dtype=np.float32)
    rewards = []
    for options in ({}, {"ctrl_cost_weight": 0.0}, {"tasks": (TaskParameters(mass=2.0),) * 2}):
        env = BridgeVecEnv("HalfCheetah-v4", 2, **options)
        env.seed(0)
        env.reset()
        rewards.append(env.step(action)[1])
        env.close()
    np.testing.assert_allclose(rewards[1], rewards[0] + 0.6, rtol=1e-5)
    assert (rewards[2] != rewards[0]).all()


def test_tasks_can_be_changed_between_episodes() -> None:
    env = BridgeVecEnv("HalfCheetah-v4", 2)
    action = np.ones((2, 6), dtype=np.float32)
    rewards = []
    for task in (TaskParameters(), TaskParameters(velocity=2.0)):
        env.set_tasks((task,) * 2)
        env.seed(0)
        env.reset()
        _, reward, _, infos = env.step(action)
        rewards.append(reward)
    speed = np.array([info["x_velocity"] for info in infos])
    np.testing.assert_allclose(rewards[1] - rewards[0], -np.abs(speed - 2.0) - speed, rtol=1e-4)
    env.close()


def test_a_simulation_that_broke_down_is_named_in_the_info_of_its_last_step() -> None:
    env = BridgeVecEnv("HalfCheetah-v4", 2, workers=0)
    env.seed(0)
    env.reset()
    state = {name: array.copy() for name, array in env._env.get_state().items()}
    state["physics"][1, 1] = 1e200  # position x: MuJoCo calls it huge and resets the simulation itself
    env._env.set_state(state)
    _, _, done, infos = env.step(np.zeros((2, 6), dtype=np.float32))
    assert done.tolist() == [False, True]
    assert infos[1]["diverged"]
    assert "diverged" not in infos[0]
    assert "diverged" not in env.reset_infos[1]
    env.close()


def test_seeds_count_once_and_episodes_after_that_go_on_with_the_generator() -> None:
    env = BridgeVecEnv("Hopper-v5", 2)
    assert env.seed(5) == [5, 6]
    first, second = env.reset(), env.reset()
    assert (first != second).any()
    env.seed(5)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(env.reset(), second)
    env.close()


def test_what_is_common_is_answered_and_what_needs_an_object_is_refused_by_name() -> None:
    env = BridgeVecEnv("Hopper-v5", 3)
    assert env.get_attr("render_mode") == [None] * 3
    assert [spec.id for spec in env.get_attr("spec", indices=[0, 2])] == ["Hopper-v5"] * 2
    assert env.get_attr("action_space", indices=1) == [env.action_space]
    assert env.has_attr("spec")
    assert not env.has_attr("sim")
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert env.env_is_wrapped(gymnasium.Wrapper, indices=0) == [False]
    assert env.get_images() == [None] * 3
    with pytest.raises(AttributeError, match="have no attribute 'sim'; known: action_space"):
        env.get_attr("sim")
    with pytest.raises(AttributeError, match="'gravity' that can be set; give options to the constructor"):
        env.set_attr("gravity", 1.0)
    with pytest.raises(AttributeError, match="have no method 'compute_reward'"):
        env.env_method("compute_reward", 1.0)
    env.set_options({})
    with pytest.raises(ConfigError, match="reset options"):
        env.set_options({"pose": 1})
    env.close()
    env.close()


def test_spec_says_the_limit_and_options_that_hold() -> None:
    env = BridgeVecEnv("Hopper-v5", 2, max_episode_steps=30, ctrl_cost_weight=0.5)
    theirs = make_vec_env("Hopper-v5", 2, env_kwargs={"max_episode_steps": 30, "ctrl_cost_weight": 0.5})
    for ours, other in zip(env.get_attr("spec"), theirs.get_attr("spec"), strict=True):
        assert ours.max_episode_steps == other.max_episode_steps == 30
        assert ours.kwargs["ctrl_cost_weight"] == other.kwargs["ctrl_cost_weight"]
    env.close()
    theirs.close()


def drawing_environment() -> dict[str, str]:
    """Variables of a child that can draw here; skips the test where none can."""
    check = [sys.executable, "-m", "env_bridge.render", "--check"]
    for backend in ("egl", "osmesa"):
        environment = os.environ | {"MUJOCO_GL": backend, "OMP_NUM_THREADS": "1"}
        if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
            return environment
    pytest.skip("neither MUJOCO_GL=egl nor osmesa draws here")


def test_what_is_drawn_are_the_tiles_of_stable_baselines3s_own_environments() -> None:
    environment = drawing_environment()
    program = (
        "import numpy as np\n"
        "from stable_baselines3.common.env_util import make_vec_env\n"
        "from env_bridge.sb3 import BridgeVecEnv\n"
        "given = {'render_mode': 'rgb_array', 'width': 64, 'height': 48}\n"
        "pictures = []\n"
        "for env in (BridgeVecEnv('Hopper-v5', 2, **given), make_vec_env('Hopper-v5', 2, env_kwargs=given)):\n"
        "    assert env.get_attr('render_mode') == ['rgb_array'] * 2\n"
        "    env.seed(0)\n"
        "    env.reset()\n"
        "    env.step(np.zeros((2, 3), np.float32))\n"
        "    assert len(env.get_images()) == 2\n"
        "    pictures.append(env.render())\n"
        "    env.close()\n"
        "np.testing.assert_array_equal(*pictures)\n"
        "print(pictures[0].shape)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(96, 64, 3)\n"), done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"autoreset_mode": "NEXT_STEP"}, "autoreset_mode is always SAME_STEP"),
        ({"render_mode": "human"}, "got render_mode='human'; Stable-Baselines3 draws with 'rgb_array'"),
        ({"render_mode": "depth_array"}, "got render_mode='depth_array'"),
        ({"render_mode": ["rgb_array"]}, r"got render_mode=\['rgb_array'\]"),
        ({"max_episode_steps": 2.5}, "expected a whole number of steps"),
    ],
)
def test_what_it_cannot_be_is_one_clear_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        BridgeVecEnv("Hopper-v5", 2, **options)
    assert "\n" not in str(caught.value)


def test_action_that_is_not_finite_is_refused_and_training_can_go_on() -> None:
    env = BridgeVecEnv("HalfCheetah-v4", 2)
    env.seed(0)
    env.reset()
    with pytest.raises(ActionError, match="action 0 of environment 0 is nan"):
        env.step(np.full((2, 6), np.nan, dtype=np.float32))
    observation, *_ = env.step(np.zeros((2, 6), dtype=np.float32))
    assert np.isfinite(observation).all()
    env.close()


def test_without_stable_baselines3_one_line_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['stable_baselines3'] = None\n"
        "from swarm.errors import ConfigError\n"
        "try:\n"
        "    import env_bridge.sb3\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "pip install 'ssm-swarm[sb3]'" in done.stdout
