"""Interrupts and errors of environments at any moment: what was asked for is done, undone, or refused until mended."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from env_bridge import BridgeVectorEnv, crew, worker_process
from env_bridge.stepping import Stepper
from env_bridge.worker_process import WorkerProcess
from swarm.environment import TaskParameters
from swarm.errors import ConfigError, PeerLost, SwarmError
from tests.env_bridge import fragile
from tests.env_bridge.worker_tests import NUM_ENVS, OWN_CLASS, ROBOT, kill, make, random_actions, wait_for_both


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
        patch.setattr(WorkerProcess, "look_for_answer", lambda *_: None)  # it may find the answer first
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
                time.sleep(0.25)  # at most: it comes here at the latest, however late, and nowhere below
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
    try:
        found = env.get_state()
    except gymnasium.error.ResetNeeded:
        with pytest.raises(gymnasium.error.ResetNeeded, match="failed half way"):
            env.step(action)
        return "torn"
    for outcome, expected in (("undone", before), ("done", after)):
        if all(np.array_equal(found[name], expected[name]) for name in expected):
            return outcome
    raise AssertionError("neither done nor undone, and nothing says so")


def interrupt_call(monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str, number: int) -> None:
    """Have the ``number``-th call of a method from now on end in an interrupt, once it has done its work."""
    calls, method = itertools.count(1), getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        result = method(*arguments, **named)
        if next(calls) == number:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, call)


def actions_of(*actions: float) -> NDArray[np.float32]:
    return np.array(actions, np.float32)[:, None]


def assert_refused_until_reset(env: BridgeVectorEnv, action: NDArray[np.float32]) -> None:
    """It is neither stepped nor read before all environments were reset."""
    for ask in (lambda: env.step(action), env.get_state):
        with pytest.raises(gymnasium.error.ResetNeeded, match="failed half way"):
            ask()
    env.reset(seed=0, options={"reset_mask": np.arange(env.num_envs) == 0})
    with pytest.raises(gymnasium.error.ResetNeeded, match="failed half way"):
        env.step(action)
    env.reset(seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_reset_is_no_reset(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    env, plain = make(ROBOT, workers=workers), make(ROBOT, workers=0)
    action = random_actions(env, 1)[0]
    for each in (env, plain):
        each.reset(seed=0)
    env.step(action)
    with monkeypatch.context() as patch:
        interrupt_call(patch, Stepper, "gather", 2)
        with pytest.raises(KeyboardInterrupt):
            env.reset()
    assert_refused_until_reset(env, action)
    np.testing.assert_array_equal(env.step(action)[0], plain.step(action)[0])
    env.close()
    plain.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_class_that_raises_in_its_reset_or_step_is_not_stepped_on(workers: int) -> None:
    env = make(fragile.ENV_ID, 2, workers=workers)
    env.reset(seed=0)
    with pytest.raises((RuntimeError, SwarmError), match="the reset broke"):
        env.reset(options={"break": True})
    assert_refused_until_reset(env, actions_of(fragile.STEP, fragile.STEP))
    with pytest.raises((RuntimeError, SwarmError), match="the step broke"):
        env.step(actions_of(fragile.STEP, fragile.RAISE))
    assert_refused_until_reset(env, actions_of(fragile.STEP, fragile.STEP))
    np.testing.assert_array_equal(env.step(actions_of(fragile.STEP, fragile.STEP))[0], [[1.0], [1.0]])
    env.close()


def test_a_step_that_failed_beside_resets_leaves_nothing_to_the_next_one() -> None:
    env = make(fragile.ENV_ID, 2, workers=0, tasks=[TaskParameters(observation_delay=3)] * 2)
    env.reset(seed=0)
    env.step(actions_of(fragile.END, fragile.STEP))
    with pytest.raises(RuntimeError, match="the step broke"):  # while the other is reset
        env.step(actions_of(fragile.STEP, fragile.RAISE))
    env.reset(seed=0)
    seen = [env.step(actions_of(fragile.STEP, fragile.STEP))[0][:, 0].tolist() for _ in range(5)]
    assert seen == [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    env.close()


@pytest.mark.parametrize("name", ["_send_tasks", "_end_sending"])
def test_interrupted_tasks_are_to_be_given_again_before_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env, plain = make(ROBOT), make(ROBOT, workers=0)
    actions, heavy = random_actions(env, 8), [TaskParameters(mass=1.5)] * NUM_ENVS
    for each in (env, plain):
        each.reset(seed=0)
    with monkeypatch.context() as patch:
        interrupt_call(patch, crew.ProcessCrew, name, 1)
        with pytest.raises(KeyboardInterrupt):
            env.set_tasks(heavy)
    with pytest.raises(gymnasium.error.ResetNeeded, match="give them again"):
        env.step(actions[0])
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="give them again"):
        env.step(actions[0])
    with pytest.raises(ConfigError, match="3 tasks"):
        env.set_tasks(heavy[:3])
    with pytest.raises(gymnasium.error.ResetNeeded, match="give them again"):
        env.step(actions[0])
    for each in (env, plain):
        each.set_tasks(heavy)
    for action in actions:
        np.testing.assert_array_equal(env.step(action)[0], plain.step(action)[0])
    env.close()
    plain.close()


def test_an_interrupted_set_state_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(OWN_CLASS)
    action = random_actions(env, 1)[0]
    env.reset(seed=0)
    state = env.get_state()
    with monkeypatch.context() as patch:
        interrupt_call(patch, WorkerProcess, "wait", 3)  # two read the state that it would go back to
        with pytest.raises(KeyboardInterrupt):
            env.set_state(state)
    with pytest.raises(gymnasium.error.ResetNeeded, match="failed half way"):
        env.step(action)
    env.set_state(state)
    env.step(action)
    with pytest.raises(ConfigError, match="physics"):
        env.set_state({name: array for name, array in state.items() if name != "physics"})
    env.step(action)
    env.close()


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("began", ["step", "get_state", "reset"])
def test_an_interrupt_while_a_worker_is_replaced_leaves_its_rows_lost(
    began: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(fragile.ENV_ID, 2, tasks=[TaskParameters(observation_delay=2)] * 2)
    env.reset(seed=0)
    forward = actions_of(fragile.STEP, fragile.STEP)
    env.step(forward)
    kill(env, 1)
    begin = {"step": lambda: env.step(forward), "get_state": env.get_state, "reset": lambda: env.reset(seed=0)}[began]
    before_it = 0 if began == "step" else 1  # answers of the other worker
    with monkeypatch.context() as patch:
        interrupt_call(patch, WorkerProcess, "wait", before_it + call)  # of: make, set_tasks, reset
        with pytest.raises(KeyboardInterrupt):
            begin()
    if began == "step":
        observation, reward, _, truncated, infos = env.step_wait()
        np.testing.assert_array_equal(infos["lost"], [False, True])
        np.testing.assert_array_equal(truncated, [False, True])
        np.testing.assert_array_equal(reward, [1.0, 0.0])
        np.testing.assert_array_equal(observation[1], [0.0])
    elif began == "get_state":
        with pytest.raises(PeerLost, match="environments 1 lost their worker"):
            env.step(forward)
        with pytest.raises(PeerLost, match="environments 1 lost their worker"):
            env.get_state()
        env.reset(options={"reset_mask": np.array([False, True])})
        np.testing.assert_array_equal(env.step(forward)[1], [1.0, 1.0])
    env.reset(seed=0)
    seen = [env.step(forward)[0][:, 0].tolist() for _ in range(4)]
    assert seen == [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], "the tasks are known"
    env.close()


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_step_that_lost_rows_and_was_never_fetched_counts_as_failed(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(fragile.ENV_ID, 2, autoreset_mode=mode)
    forward = actions_of(fragile.STEP, fragile.STEP)
    env.reset(seed=0)
    env.step(forward)
    with monkeypatch.context() as patch:  # while an answer is read: it is cut in two, and its worker lost
        patch.setattr(worker_process, "receive_letter", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            env.step(forward)
    assert_refused_until_reset(env, forward)
    np.testing.assert_array_equal(env.step(forward)[0], [[1.0], [1.0]])
    assert env.num_replaced == 1
    env.close()


def test_an_interrupt_while_a_time_limit_is_set_leaves_none_that_nobody_knows_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = make(OWN_CLASS)
    worker = env._lanes._pieces[0].worker  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        set_patience = worker_process.set_patience

        def interrupted(connection: Any, seconds: float) -> None:
            set_patience(connection, 1.0)
            raise KeyboardInterrupt

        patch.setattr(worker_process, "set_patience", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker._wait_for(1.0)
    told: list[float] = []
    monkeypatch.setattr(worker_process, "set_patience", lambda _, seconds: told.append(seconds))
    worker._wait_for(worker_process.PATIENCE_S)
    assert told == [worker_process.PATIENCE_S]
    monkeypatch.undo()
    env.close()
