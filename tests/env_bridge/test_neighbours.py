"""Shares of a rollout: whoever is ahead steps what is on a neighbour's board, and nobody sees a difference."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from env_bridge.neighbours import THROUGH, Neighbours, Share, open_progress, shares_of
from env_bridge.physics import RobotSimulation
from env_bridge.robots import robot_for
from env_bridge.shared_arrays import open_memory
from env_bridge.stepping import LEFT
from env_bridge.vector_env import VectorEnv
from swarm.environment import TaskParameters

ENV_ID = "Hopper-v4"
TASKS = tuple(TaskParameters(gravity=1.0 + 0.05 * index) for index in range(16))
FIRST, SECOND = shares_of(TASKS, (0, 8, 16))


@pytest.fixture(name="memory")
def made_memory() -> Iterator[int]:
    memory = open_memory()
    yield memory
    os.close(memory)


def make(memory: int, share: Share) -> tuple[VectorEnv, Neighbours]:
    """One share's environments, reset."""
    robot = robot_for(ENV_ID)
    assert robot is not None
    env = VectorEnv(ENV_ID, 8, crew=Neighbours(memory, share, robot))
    simulation = env.simulation
    assert isinstance(simulation, RobotSimulation)
    assert isinstance(simulation.crew, Neighbours)
    start(env, share.first)
    return env, simulation.crew


def start(env: VectorEnv, first: int) -> None:
    env.set_tasks(TASKS[first : first + 8])
    env.seed(range(first, first + 8))
    env.reset()


def actions() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).uniform(-1.0, 1.0, (8, 3)).astype(np.float32)


def test_a_share_says_what_it_is() -> None:
    assert (FIRST.first, FIRST.of, SECOND.first, SECOND.of) == (0, 16, 8, 16)
    assert Share.from_json(SECOND.to_json()) == SECOND
    nominal = shares_of((TaskParameters(),) * 16, (0, 8, 16))
    assert nominal[0].tasks == (), "nothing to tell"


def test_who_is_through_steps_for_a_neighbour_under_the_neighbours_tasks(memory: int) -> None:
    progress = open_progress(memory, 2)
    (_, helper), (env, _) = make(memory, FIRST), make(memory, SECOND)
    plain = VectorEnv(ENV_ID, 8)
    start(plain, 8)
    env.send(actions())
    crew = env.simulation.crew  # type: ignore[attr-defined]
    thread = threading.Thread(target=_be_through, args=(helper, FIRST))
    thread.start()
    while crew._own.board.counters[LEFT] > 0:  # nobody but the neighbour steps
        assert thread.is_alive()
    step = env.wait()
    progress[1] = THROUGH
    thread.join(10)
    assert not thread.is_alive(), "it has gone on helping nobody"
    wanted = plain.step(actions())
    np.testing.assert_array_equal(step.observation, wanted.observation)
    np.testing.assert_array_equal(step.reward, wanted.reward)
    for each in (env, plain):
        each.close()


def _be_through(helper: Neighbours, share: Share) -> None:
    with helper.rollout(share):
        pass


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (1, 2), (0, 1)])
def test_who_is_not_ahead_helps_nobody(memory: int, ours: int, theirs: int) -> None:
    progress = open_progress(memory, 2)
    (_, helper), (env, _) = make(memory, FIRST), make(memory, SECOND)
    with helper.rollout(FIRST):
        env.send(actions())
        progress[:] = ours, theirs
        assert not helper._help()
        progress[1] = THROUGH
    env.wait()
    env.close()


def test_a_last_simulation_is_left_to_its_own_process(memory: int) -> None:
    open_progress(memory, 2)
    (_, helper), (env, _) = make(memory, FIRST), make(memory, SECOND)
    env.send(actions(), np.arange(8) == 3)
    _be_through(helper, FIRST)  # returns at once
    assert env.simulation.crew._own.board.counters[LEFT] == 1  # type: ignore[attr-defined]
    env.wait()
    env.close()
