"""Workers of a `BridgeVectorEnv` that die, hang or are interrupted: nothing is lost but what they had in hand."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode

from env_bridge import crew, worker_process
from env_bridge.physics import RobotSimulation
from env_bridge.stepping import LEFT
from env_bridge.vector_env import find_robot
from swarm.environment import TaskParameters
from swarm.errors import ConfigError, PeerLost, SwarmError
from tests.env_bridge.worker_tests import NUM_ENVS, OWN_CLASS, ROBOT, kill, make, random_actions, wait_for_both


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("begin", ["step", "step_async"])
def test_a_robots_worker_that_is_lost_with_nothing_in_hand_costs_nothing(sign: signal.Signals, begin: str) -> None:
    env, plain = make(ROBOT, patience_s=0.5), make(ROBOT, workers=0)
    actions = random_actions(env, 3)
    for each in (env, plain):
        each.reset(seed=0)
    for worker in range(2):
        kill(env, worker, sign)
    for action in actions:
        got = getattr(env, begin)(action) or env.step_wait()
        np.testing.assert_array_equal(got[0], plain.step(action)[0])
        assert "lost" not in got[4]
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, plain.get_state()[name])
    assert env.num_replaced >= 1
    env.close()
    plain.close()


def test_an_environment_that_a_lost_worker_had_in_hand_is_marked_and_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env, plain = make(ROBOT), make(ROBOT, workers=0)
    actions = random_actions(env, 3)
    for each in (env, plain):
        each.reset(seed=0)
    crew_of_env = env._lanes._crew  # type: ignore[attr-defined]
    board = crew_of_env._board
    begin = crew_of_env.begin

    def begin_and_lose() -> None:
        kill(env, 0, signal.SIGSTOP)
        begin()
        board.counters[LEFT] -= 1  # as the worker does that is killed now
        kill(env, 0)

    with monkeypatch.context() as patch:
        patch.setattr(crew_of_env, "begin", begin_and_lose)
        observation, reward, terminated, truncated, infos = env.step(actions[0])
    expected = plain.step(actions[0])
    np.testing.assert_array_equal(infos["lost"], [True, False, False, False])
    np.testing.assert_array_equal(truncated, [True, False, False, False])
    assert not terminated.any()
    assert reward[0] == 0.0
    np.testing.assert_array_equal(observation[1:], expected[0][1:])
    np.testing.assert_array_equal(reward[1:], expected[1][1:])
    first = observation[0]
    observation, reward, terminated, truncated, infos = env.step(actions[1])
    assert "lost" not in infos
    assert not (terminated | truncated).any()
    assert reward[0] == 0.0, "this step is the reset of that row"
    assert (observation[0] != first).any()
    np.testing.assert_array_equal(observation[1:], plain.step(actions[1])[0][1:])
    assert env.num_replaced == 1
    env.close()
    plain.close()


def test_what_a_lost_worker_costs_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    observations = []
    for _ in range(2):
        env = make(ROBOT)
        env.reset(seed=5)
        crew_of_env = env._lanes._crew  # type: ignore[attr-defined]
        monkeypatch.setattr(crew_of_env, "finish", partial(finish_and_lose, crew_of_env.finish, 2))
        observations.append(env.step(random_actions(env, 1)[0])[0][2])
        env.close()
    np.testing.assert_array_equal(*observations)


def finish_and_lose(finish: Callable[[], tuple[int, ...]], row: int) -> tuple[int, ...]:
    return (*finish(), row)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_a_lost_row_ends_its_episode_in_every_autoreset_mode_and_with_sensors(
    mode: AutoresetMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"autoreset_mode": mode, "tasks": [TaskParameters(observation_delay=2, sensor_noise=0.1)] * NUM_ENVS}
    env, plain = make(ROBOT, **options), make(ROBOT, **options | {"workers": 0})
    actions = random_actions(env, 2)
    for each in (env, plain):
        each.reset(seed=0)
    crew_of_env = env._lanes._crew  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(crew_of_env, "finish", partial(finish_and_lose, crew_of_env.finish, 2))
        observation, reward, terminated, truncated, infos = env.step(actions[0])
    expected = plain.step(actions[0])
    lost, others = np.arange(NUM_ENVS) == 2, np.arange(NUM_ENVS) != 2
    np.testing.assert_array_equal(infos["lost"], lost)
    np.testing.assert_array_equal(truncated, lost)
    assert not terminated.any()
    assert reward[2] == 0.0
    assert np.isfinite(observation).all()
    if mode is AutoresetMode.SAME_STEP:
        np.testing.assert_array_equal(infos["_final_obs"], lost)
    else:
        with pytest.raises(gymnasium.error.ResetNeeded, match="environment 2 has ended"):
            env.step(actions[1])
        observation = env.reset(options={"reset_mask": lost})[0]
    np.testing.assert_array_equal(observation[others], expected[0][others])
    np.testing.assert_array_equal(env.step(actions[1])[0][others], plain.step(actions[1])[0][others])
    env.close()
    plain.close()


def test_workers_killed_at_any_moment_harm_no_environment_but_those_in_their_hands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env, plain = make("Humanoid-v5", 8), make("Humanoid-v5", 8, workers=0)
    actions = itertools.cycle(random_actions(env, 50))
    for each in (env, plain):
        each.reset(seed=0)
    intact = np.ones(8, dtype=np.bool_)
    for number in range(crew.MAX_REPLACED):
        victim = env.worker_pids[number % 2]
        killer = threading.Timer(0.0007 * (number + 1), os.kill, (victim, signal.SIGKILL))
        killer.start()
        while killer.is_alive() or env.num_replaced <= number:
            action = next(actions)
            env.step_async(action)
            observation, reward, *_, infos = env.step_wait()
            expected = plain.step(action)
            intact &= ~infos.get("lost", np.zeros(8, dtype=np.bool_))
            np.testing.assert_array_equal(observation[intact], expected[0][intact])
            np.testing.assert_array_equal(reward[intact], expected[1][intact])
        killer.join()
        wait_for_both(env, plain, actions)
    assert env.num_replaced == crew.MAX_REPLACED
    assert (~intact).sum() <= crew.MAX_REPLACED, "each had no more than one in hand"
    kill(env, 0)
    with pytest.raises(PeerLost, match=r"the 6th within 30 s: giving up"):
        env.step(next(actions))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(next(actions))
    monkeypatch.setattr(crew, "REPLACED_WITHIN_S", 0.0)  # as if that was long ago
    for each in (env, plain):
        each.reset(seed=1)
    wait_for_both(env, plain, actions)
    action = next(actions)
    np.testing.assert_array_equal(env.step(action)[0], plain.step(action)[0])
    env.close()
    plain.close()


def test_a_replacement_knows_the_tasks_of_before_and_those_given_while_it_started() -> None:
    env, plain = make(ROBOT), make(ROBOT, workers=0)
    actions = itertools.cycle(random_actions(env, 20))
    heavy, light = [TaskParameters(mass=1.5)] * NUM_ENVS, [TaskParameters(mass=0.7)] * NUM_ENVS
    for each in (env, plain):
        each.set_tasks(heavy)
        each.reset(seed=0)
    for worker in range(2):
        kill(env, worker)
    action = next(actions)
    for each in (env, plain):
        each.step(action)
        each.set_tasks(light)
    wait_for_both(env, plain, actions)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, plain.get_state()[name])
    env.close()
    plain.close()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_worker_with_rows_of_its_own_is_replaced_and_they_are_marked(sign: signal.Signals) -> None:
    env = make(OWN_CLASS, patience_s=1.5)
    env.reset(seed=0)
    action = random_actions(env, 1)[0]
    env.step(action)
    kill(env, 1, sign)
    _, reward, terminated, truncated, infos = env.step(action)
    np.testing.assert_array_equal(infos["lost"], [False, False, True, True])
    np.testing.assert_array_equal(truncated, [False, False, True, True])
    assert not terminated.any()
    assert (reward[:2] != 0).all()
    assert (reward[2:] == 0).all()
    observation, reward, _, truncated, infos = env.step(action)
    assert "lost" not in infos
    assert (reward[2:] == 0).all(), "the rows of the new worker are reset"
    assert not truncated.any()
    assert np.isfinite(observation).all()
    assert env.num_replaced == 1
    env.close()


def test_worker_with_rows_of_its_own_lost_between_steps_is_told_by_everything_but_a_reset() -> None:
    env = make(OWN_CLASS)
    observation, _ = env.reset(seed=0)
    kill(env, 0)
    with pytest.raises(PeerLost, match="environments 0, 1 lost their worker"):
        env.get_state()
    again, _ = env.reset(seed=0)
    np.testing.assert_array_equal(again, observation)
    kill(env, 1)
    again, _ = env.reset(seed=0)
    np.testing.assert_array_equal(again, observation)
    assert env.num_replaced == 2
    kill(env, 1)
    env.reset(options={"reset_mask": np.array([True, False, True, False])})
    action = random_actions(env, 1)[0]
    for _ in range(2):
        with pytest.raises(PeerLost, match="environments 3 lost their worker"):
            env.step(action)
    env.reset(options={"reset_mask": np.array([False, False, False, True])})
    env.step(action)
    env.close()


def test_a_crew_that_cannot_join_leaves_no_process() -> None:
    before = set(psutil.Process().children())
    robot = find_robot(ROBOT, {})
    assert robot is not None
    with pytest.raises(SwarmError):
        RobotSimulation(robot, NUM_ENVS, crew.ProcessCrew(2, "Ant-v4", {}, NUM_ENVS))
    assert set(psutil.Process().children()) == before


def test_answer_that_nobody_waited_for_is_not_taken_for_another() -> None:
    env = make(OWN_CLASS)
    env.reset(seed=0)
    before = env.get_state()
    worker = env._lanes._pieces[0].worker  # type: ignore[attr-defined]
    worker.send("set_tasks", {"tasks": [{}, {}]})  # and then something came between
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, before[name])
    env.close()


@pytest.mark.parametrize("env_id", [ROBOT, OWN_CLASS])
def test_no_worker_survives_its_environment(env_id: str) -> None:
    env = make(env_id)
    processes = [psutil.Process(pid) for pid in env.worker_pids]
    assert len(processes) == 2
    env.close()
    assert not any(process.is_running() for process in processes)


def test_a_stopped_worker_that_a_long_letter_cannot_be_sent_to_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    num_envs = 8000
    env = make(ROBOT, num_envs, workers=1)
    env.reset(seed=0)
    kill(env, 0, signal.SIGSTOP)
    monkeypatch.setattr(worker_process, "LONG_PATIENCE_S", 0.5)
    env.set_tasks([TaskParameters(mass=1.5, gravity=1.1, friction=0.9, damping=1.2)] * num_envs)
    assert env.num_replaced == 1
    env.close()


@pytest.mark.parametrize("patience_s", [0.0, 1e-4, 1e7, float("nan"), "long"])
def test_patience_is_a_number_of_seconds_that_a_socket_can_wait(patience_s: Any) -> None:
    with pytest.raises(ConfigError, match=r"got patience_s=.*; expected seconds from 0.001 to 1000000"):
        make(ROBOT, patience_s=patience_s)


@pytest.mark.parametrize("env_id", [ROBOT, OWN_CLASS])
def test_an_environment_that_is_dropped_leaves_neither_workers_nor_memory(env_id: str) -> None:
    def of_mine() -> list[str]:
        paths = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
        return sorted(path for path in paths if "memfd" in path or "socket" in path)

    me, before = psutil.Process(), of_mine()
    children = set(me.children())
    env = make(env_id)
    env.reset(seed=0)
    assert len(set(me.children()) - children) == 2
    del env
    gc.collect()
    assert set(me.children()) == children
    assert of_mine() == before
