"""Workers of a `BridgeVectorEnv` that die, hang or are interrupted: nothing is lost but what they had in hand."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from env_bridge import BridgeVectorEnv, crew
from env_bridge.physics import RobotSimulation
from env_bridge.stepping import TAKEN
from env_bridge.vector_env import find_robot
from swarm.environment import TaskParameters
from swarm.errors import PeerLost, SwarmError

ROBOT = "HalfCheetah-v4"
OWN_CLASS = "Pusher-v5"
"""Steps through Gymnasium's class, in workers that each have their own rows."""
NUM_ENVS = 4


def make(env_id: str, num_envs: int = NUM_ENVS, **options: Any) -> BridgeVectorEnv:
    return BridgeVectorEnv(env_id, num_envs, **{"workers": 2, **options})


def random_actions(env: BridgeVectorEnv, steps: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-0.4, 0.4, (steps, *env.action_space.shape)).astype(np.float32)


def kill(env: BridgeVectorEnv, index: int, sign: signal.Signals = signal.SIGKILL) -> None:
    """Return when the signal has done its work."""
    process = psutil.Process(env.worker_pids[index])
    process.send_signal(sign)
    if sign == signal.SIGKILL:
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)


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
        board.counters[TAKEN] += 1  # as the worker does that is killed now
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


def wait_for_both(env: BridgeVectorEnv, plain: BridgeVectorEnv, actions: Iterator[NDArray[np.float32]]) -> None:
    """Step both until all workers of the first have joined."""
    deadline, all_asked = time.monotonic() + 60.0, False
    while not all_asked:
        assert time.monotonic() < deadline, "a replacement does not join"
        action = next(actions)
        env.step_async(action)
        all_asked = len(env.waits_for()) == len(env.worker_pids)
        env.step_wait()
        plain.step(action)


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
    with pytest.raises(PeerLost, match="environments 3 lost their worker"):
        env.step(action)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    env.step(action)
    env.close()


@pytest.mark.parametrize("env_id", [ROBOT, OWN_CLASS])
def test_interrupted_wait_is_finished_by_the_next_call_and_costs_no_worker(
    env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, plain = make(env_id), make(env_id, workers=0)
    actions = random_actions(env, 3)
    for each in (env, plain):
        each.reset(seed=0)
        each.step(actions[0])
    env.step_async(actions[1])
    with monkeypatch.context() as patch:
        patch.setattr("env_bridge.worker_process.receive_byte_into", _interrupt)
        patch.setattr(crew, "LOOKS", 0)
        with pytest.raises(KeyboardInterrupt):
            env.step_wait()
    plain.step(actions[1])
    np.testing.assert_array_equal(env.step(actions[2])[0], plain.step(actions[2])[0])
    assert env.num_replaced == 0
    env.close()
    plain.close()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["begin", "finish"])
def test_a_step_that_is_interrupted_while_the_caller_steps_does_not_disturb_the_next(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, plain = make(ROBOT), make(ROBOT, workers=0)
    actions = random_actions(env, 3)
    for each in (env, plain):
        each.reset(seed=0)
    before = env.get_state()
    with monkeypatch.context() as patch:
        done = getattr(env._lanes._crew, place)  # type: ignore[attr-defined]

        def interrupted() -> None:
            if place == "begin":
                done()
            raise KeyboardInterrupt

        patch.setattr(env._lanes._crew, place, interrupted)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            env.step(actions[0])
    if place == "begin":
        with pytest.raises(gymnasium.error.ResetNeeded, match="failed half way"):
            env.step(actions[1])
        env.set_state(before)
    else:
        plain.step(actions[0])
    np.testing.assert_array_equal(env.step(actions[2])[0], plain.step(actions[2])[0])
    env.close()
    plain.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that came as a process was started
def test_an_interrupt_at_any_moment_leaves_a_step_done_or_undone_or_says_that_it_is_neither(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crew, "MAX_REPLACED", 1000)  # an interrupt while a worker is told to step costs that worker
    env, plain = make(ROBOT), make(ROBOT, workers=0)
    env.reset(seed=0)
    plain.reset(seed=0)
    wait_for_both(env, plain, itertools.repeat(random_actions(env, 1)[0]))
    rng = np.random.default_rng(0)
    outcomes, replaced = [], 0
    before_handler = signal.signal(signal.SIGALRM, _interrupt)
    try:
        for action in random_actions(env, 60):
            before = plain.get_state()
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 6e-4))
                env.step(action)
                time.sleep(0.001)
            except KeyboardInterrupt:
                plain.step(action)
                outcomes.append(_outcome(env, action, before, plain.get_state()))
            env.set_state(plain.get_state())
            if env.num_replaced > replaced:  # starting processes takes time, in which the next interrupt would come
                wait_for_both(env, plain, itertools.repeat(action))
                replaced = env.num_replaced
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before_handler)
    assert {"done", "undone", "torn"} >= set(outcomes) >= {"done"}
    assert len(outcomes) > 30
    env.close()
    plain.close()


def _outcome(
    env: BridgeVectorEnv,
    action: NDArray[np.float32],
    before: Mapping[str, NDArray[Any]],
    after: Mapping[str, NDArray[Any]],
) -> str:
    """What became of an interrupted step; fails where that is not said truly."""
    found = env.get_state()
    for outcome, expected in (("undone", before), ("done", after)):
        if all(np.array_equal(found[name], expected[name]) for name in expected):
            return outcome
    with pytest.raises(gymnasium.error.ResetNeeded, match="failed half way"):
        env.step(action)
    return "torn"


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
