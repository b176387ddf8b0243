"""Named suites of tasks: seeded, as long as one wants, train and test halves disjoint. Imports no mujoco, no gymnasium.

A suite is a generator of `TaskParameters`; its halves are disjoint because they draw from disjoint ranges, not only
because they draw other numbers. ``docs/tasks.md`` has the list with sources.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Final

import numpy as np

from env_bridge.tasks import NUM_ACTUATORS, robot_name, task_from_json
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

SHIFTED_FACTORS: Final = ("gravity", "mass", "friction", "damping")
SHIFTS: Final = 20
"""Length of the cycle of kinds in ``shift-test``."""
TEST_SEED: Final = 0
CRIPPLED: Final = 6
"""One of so many actuators is crippled, of a robot that has as many."""


def _velocity(generator: np.random.Generator, index: int, *, test: bool) -> TaskParameters:
    if test:
        return TaskParameters(velocity=float(generator.uniform(1.25, 1.75)))
    drawn = float(generator.uniform(0.0, 2.5))
    return TaskParameters(velocity=drawn if drawn < 1.25 else drawn + 0.5)


def _two_headings(generator: np.random.Generator, index: int, *, test: bool) -> TaskParameters:
    if test:
        raise ConfigError("suite 'halfcheetah-dir' has two headings, both for training; it has no test half")
    return TaskParameters(direction=math.pi * (index % 2))


def _any_heading(generator: np.random.Generator, index: int, *, test: bool) -> TaskParameters:
    sector = 2 * int(generator.integers(6)) + int(test)
    return TaskParameters(direction=float((sector + generator.random()) * math.pi / 6))


def _shift_train(generator: np.random.Generator, index: int, *, test: bool) -> TaskParameters:
    if test:
        raise ConfigError("suite 'shift-train' is for training; use 'shift-test'")
    gravity, mass, friction, damping = (float(value) for value in 1.5 ** generator.uniform(-2, 2, size=4))
    gain = float(generator.uniform(0.7, 1.0))
    return TaskParameters(gravity=gravity, mass=mass, friction=friction, damping=damping, actuator_gain=gain)


def _shift_test(generator: np.random.Generator, index: int, *, test: bool) -> TaskParameters:
    """Of each 20 tasks, 18 go three times through the six kinds of dynamics; two with old observations end them."""
    if not test:
        raise ConfigError("suite 'shift-test' is for testing; use 'shift-train'")
    exponent = float(generator.uniform(2, 3)) * (1.0 if generator.random() < 0.5 else -1.0)
    place = index % SHIFTS
    if place >= SHIFTS - 2:
        return TaskParameters(observation_delay=1 + place % 2)
    which = place % (len(SHIFTED_FACTORS) + 2)
    if which < len(SHIFTED_FACTORS):
        return task_from_json({SHIFTED_FACTORS[which]: 1.5**exponent})
    if which == len(SHIFTED_FACTORS):
        return TaskParameters(actuator_gain=float(generator.uniform(0.5, 0.7)))
    return TaskParameters(crippled=int(generator.integers(CRIPPLED)))


def _ant_goal(generator: np.random.Generator, index: int, *, test: bool) -> TaskParameters:
    """Uniform over the area between 1 and 3 m; even twelfths of the ring are for training, odd ones for testing."""
    bearing = _any_heading(generator, index, test=test).direction or 0.0
    radius = math.sqrt(generator.uniform(1.0, 9.0))
    return TaskParameters(goal_x=radius * math.cos(bearing), goal_y=radius * math.sin(bearing))


def _walker_params(generator: np.random.Generator, index: int, *, test: bool) -> TaskParameters:
    """Each exponent from [-3, 3]: from the even twelfths of that range for training, from the odd ones for testing."""
    sectors = 2 * generator.integers(6, size=3) + int(test)
    mass, friction, damping = (float(value) for value in -3.0 + (sectors + generator.random(3)) / 2)
    return TaskParameters(mass=1.5**mass, friction=1.5**friction, damping=1.3**damping)


SUITES: Final[Mapping[str, Callable[..., TaskParameters]]] = {
    "halfcheetah-vel": _velocity,
    "halfcheetah-dir": _two_headings,
    "ant-dir": _any_heading,
    "humanoid-dir": _any_heading,
    "shift-train": _shift_train,
    "shift-test": _shift_test,
    "ant-goal": _ant_goal,
    "walker-params": _walker_params,
}
"""A suite's place in this table names its random stream, so that new ones are added at the end."""

SUITE_ROBOTS: Final[Mapping[str, str]] = {
    "halfcheetah-vel": "HalfCheetah",
    "halfcheetah-dir": "HalfCheetah",
    "ant-dir": "Ant",
    "humanoid-dir": "Humanoid",
    "ant-goal": "Ant",
    "walker-params": "Walker2d",
}
"""Robots that a suite is made for; the suites of shifts fit every robot in `NUM_ACTUATORS`, see `suite`."""


def suite(
    name: str, *, count: int, seed: int, test: bool | None = None, env_id: str = ""
) -> tuple[TaskParameters, ...]:
    """Draw ``count`` tasks of the named suite; the first n of more tasks are the same as n tasks.

    Args:
        name: a key of `SUITES`.
        count: how many.
        seed: names the stream; train and test halves use different streams.
        test: which half; ``None``: test for ``shift-test``, else train.
        env_id: whose robot is to do them: where ``shift-test`` cripples an actuator, it is one that the robot has. Of a
            robot that is not in `NUM_ACTUATORS`, and where none is named, it is one of the first six.

    Raises:
        ConfigError: an unknown suite, a half that it does not have, or no count or seed.
    """
    _check_suite_name(name)
    for what, number in (("count", count), ("seed", seed)):
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"suite {name!r}: got {what}={number!r}; expected a whole number from 0")
    half = name == "shift-test" if test is None else test
    entropy = [seed, list(SUITES).index(name), int(half)]
    drawn = (SUITES[name](np.random.default_rng([*entropy, index]), index, test=half) for index in range(count))
    return tuple(_within(task, NUM_ACTUATORS.get(robot_name(env_id), CRIPPLED)) for task in drawn)


def train_and_test_tasks(
    name: str, env_id: str, *, num_train: int, num_test: int, seed: int
) -> tuple[tuple[TaskParameters, ...], tuple[TaskParameters, ...]]:
    """Return the tasks that a run of ``env_id`` trains on and those it is tested on.

    Training tasks follow the run's seed; test tasks are the same for every run. ``shift-train`` is tested on
    ``shift-test``, ``halfcheetah-dir`` on both of its headings.

    Raises:
        ConfigError: an unknown suite, one that is only for testing, or one made for another robot.
    """
    _check_suite_name(name)
    robot = SUITE_ROBOTS.get(name)
    if robot is not None and robot_name(env_id) != robot:
        raise ConfigError(f"suite {name!r} is for {robot}, not for {env_id}; choose another with suite=…")
    return suite(name, count=num_train, seed=seed, test=False), held_out_tasks(name, num_test, env_id)


def held_out_tasks(name: str, count: int, env_id: str = "") -> tuple[TaskParameters, ...]:
    """Return the first ``count`` test tasks of a suite, the same for every run.

    Raises:
        ConfigError: as `suite`, which has ``env_id``, too.
    """
    _check_suite_name(name)
    tested = "shift-test" if name == "shift-train" else name
    return suite(tested, count=count, seed=TEST_SEED, test=tested != "halfcheetah-dir", env_id=env_id)


def _within(task: TaskParameters, num_actuators: int) -> TaskParameters:
    return task if task.crippled is None else replace(task, crippled=task.crippled % num_actuators)


def _check_suite_name(name: str) -> None:
    if not isinstance(name, str) or name not in SUITES:
        nearest = difflib.get_close_matches(str(name), SUITES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown suite {name!r}; did you mean {nearest!r}? (known: {', '.join(SUITES)})")
