"""What a user of the bridge may say wrongly: each time one line of `ConfigError`, and nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import pytest

from env_bridge import AsyncBridgeVectorEnv, BridgeVectorEnv, branch, suite
from env_bridge.tasks import check_task
from swarm.environment import TaskParameters
from swarm.errors import ConfigError


@contextmanager
def refused(text: str) -> Iterator[None]:
    with pytest.raises(ConfigError, match=text) as caught:
        yield
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"observation_delay": 1.5}, r"observation_delay=1\.5: expected a whole number \(environment steps\)"),
        ({"observation_delay": 1.0}, r"observation_delay=1\.0: expected a whole number"),
        ({"observation_delay": None}, "observation_delay=None: expected a whole number"),
        ({"crippled": True}, r"crippled=True: expected a whole number \(actuator index\)"),
        ({"crippled": 1.5}, r"crippled=1\.5: expected a whole number"),
        ({"crippled": np.float64(1.0)}, r"crippled=np\.float64\(1\.0\): expected a whole number"),
        ({"gravity": None}, r"gravity=None: expected a number \(factor\)"),
        ({"gravity": False}, "gravity=False: expected a number"),
        ({"gravity": 10**400}, "gravity=inf: expected a number from 0 to 10"),
        ({"velocity": "3"}, r"velocity='3': expected a number \(m/s\)"),
        ({"velocity": np.ones((3, 3))}, r"velocity=array\(.*: expected a number"),
        ({"velocity": 1j}, r"velocity=1j: expected a number"),
        ({"velocity": -(10**400)}, "velocity=-inf: expected a number from -50 to 50"),
        ({"goal_x": float("nan")}, "goal_x=nan: expected a number from -1000 to 1000"),
    ],
)
def test_a_task_of_a_wrong_type_is_one_clear_line(task: dict[str, Any], text: str) -> None:
    with refused(text):
        check_task(TaskParameters(**task))
    env = BridgeVectorEnv("HalfCheetah-v4", 1)
    with refused(text):
        env.set_tasks([TaskParameters(**task)])
    env.close()


def test_numbers_of_numpy_in_a_task_are_taken_as_pythons_here_and_by_workers() -> None:
    task = TaskParameters(velocity=np.float32(1.5), crippled=np.int64(2), gravity=np.float64(2.0))  # type: ignore[arg-type]
    plain = check_task(task)
    assert plain == TaskParameters(velocity=1.5, crippled=2, gravity=2.0)
    assert [type(value) for value in (plain.velocity, plain.crippled, plain.gravity)] == [float, int, float]
    assert check_task(plain) is plain
    for workers in (0, 2):
        env = BridgeVectorEnv("HalfCheetah-v4", 2, workers=workers, tasks=[task] * 2)
        env.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_episode_steps": 2.5}, r"max_episode_steps=2\.5; expected a whole number of steps above 0"),
        ({"max_episode_steps": float("nan")}, "max_episode_steps=nan; expected a whole number"),
        ({"max_episode_steps": float("inf")}, "max_episode_steps=inf; expected a whole number"),
        ({"max_episode_steps": "5"}, "max_episode_steps='5'; expected a whole number"),
        ({"max_episode_steps": True}, "max_episode_steps=True; expected a whole number"),
        ({"max_episode_steps": -1}, "max_episode_steps=-1; expected a whole number"),
        ({"num_envs": True}, "num_envs=True"),
        ({"workers": False}, "workers=False"),
        ({"workers": "2"}, "workers='2'"),
        ({"patience_s": True}, "patience_s=True"),
        ({"actions": ["strict"]}, r"actions=\['strict'\]; expected one of gymnasium, strict"),
        ({"autoreset_mode": [1]}, r"autoreset_mode=\[1\]; expected one of NEXT_STEP"),
        ({"autoreset_mode": None}, "autoreset_mode=None; expected one of NEXT_STEP"),
        ({"env_id": None}, "an environment of type NoneType; expected its id, as text"),
        ({"env_id": gymnasium.spec("Ant-v5")}, "an environment of type EnvSpec; expected its id, as text"),
        ({"env_id": ".:X"}, "'.:X': expected the whole name of the module"),
        ({"env_id": "no_such_module:X"}, "put the module where Python finds it"),
        ({"env_id": ""}, "unknown environment ''"),
    ],
)
def test_an_argument_of_a_wrong_type_is_one_clear_line(arguments: dict[str, Any], text: str) -> None:
    with refused(text):
        BridgeVectorEnv(**{"env_id": "HalfCheetah-v4", "num_envs": 2, **arguments})


def test_a_time_limit_may_be_a_number_of_numpy_also_for_workers() -> None:
    for env_id in ("Hopper-v4", "Pusher-v5"):
        env = BridgeVectorEnv(env_id, 2, workers=2, max_episode_steps=np.int64(3))  # type: ignore[arg-type]
        env.reset(seed=0)
        action = np.zeros(env.action_space.shape, np.float32)
        assert [bool(env.step(action)[3].all()) for _ in range(3)] == [False, False, True]
        env.close()


def test_options_of_a_reset_that_name_nothing_are_refused_and_the_episode_goes_on() -> None:
    env = BridgeVectorEnv("HalfCheetah-v4", 2)
    env.reset(seed=0)
    with refused(r"got reset options \[1\]; expected a dictionary"):
        env.reset(options=[1])  # type: ignore[arg-type]
    env.step(np.zeros((2, 6), np.float32))
    env.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seed": -1}, "suite 'ant-dir': got seed=-1; expected a whole number from 0"),
        ({"seed": 0.5}, r"got seed=0\.5"),
        ({"seed": None}, "got seed=None"),
        ({"count": -1}, "got count=-1; expected a whole number from 0"),
        ({"count": 2.0}, r"got count=2\.0"),
        ({"name": None}, "unknown suite None; did you mean"),
        ({"name": ["ant-dir"]}, r"unknown suite \['ant-dir'\]; did you mean 'ant-dir'"),
    ],
)
def test_a_suite_asked_for_wrongly_is_one_clear_line(arguments: dict[str, Any], text: str) -> None:
    with refused(text):
        suite(**{"name": "ant-dir", "count": 2, "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"workers": None}, "workers=None; a coroutine needs at least one worker"),
        ({"workers": 1.0}, r"workers=1\.0; a coroutine needs"),
        ({"max_episode_steps": 2.5}, r"max_episode_steps=2\.5"),
        ({"env_id": None}, "of type NoneType"),
        ({"tasks": [TaskParameters(observation_delay=1.5)]}, "expected a whole number"),  # type: ignore[arg-type]
    ],
)
async def test_a_coroutine_gets_the_same_lines(arguments: dict[str, Any], text: str) -> None:
    with refused(text):
        await AsyncBridgeVectorEnv.open(**{"env_id": "HalfCheetah-v4", **arguments})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"index": -1}, "got index=-1; the state has environments 0 to 1"),
        ({"index": 2}, "got index=2; the state has environments 0 to 1"),
        ({"index": 0.0}, r"got index=0\.0"),
        ({"copies": 0}, "got copies=0; expected a whole number of at least 1"),
        ({"copies": -1}, "got copies=-1"),
        ({"copies": 2.0}, r"got copies=2\.0"),
        ({"state": None}, "expected the arrays that get_state returned"),
        ({"state": {}}, "not of as many environments"),
        ({"state": {"physics": np.zeros((2, 3)), "elapsed": np.zeros(3)}}, "not of as many environments"),
    ],
)
def test_a_branch_that_cannot_be_is_one_clear_line(arguments: dict[str, Any], text: str) -> None:
    state = {"physics": np.zeros((2, 3)), "elapsed": np.zeros(2)}
    with refused(text):
        branch(**{"state": state, "index": 0, "copies": 3, **arguments})
    assert branch(state, np.int64(1), np.int64(3))["physics"].shape == (3, 3)  # type: ignore[arg-type]
