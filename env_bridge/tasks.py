"""Tasks and shifts as data: parsing, named suites, ranges. Imports neither mujoco nor gymnasium.

A suite is a seeded generator of `TaskParameters`, as long as one wants; its train and test halves are disjoint because
they draw from disjoint ranges, not only because they draw other numbers.

=================== ============================================== ==================================================
suite               train                                          test
=================== ============================================== ==================================================
``halfcheetah-vel`` target velocity in [0, 3) m/s, not in the      target velocity in [1.25, 1.75) m/s
                    test range
``halfcheetah-dir`` heading 0 and pi in turn                       none: both headings are for training
``ant-dir``         heading in even twelfths of the circle         heading in odd twelfths of the circle
``humanoid-dir``    the same                                       the same
``shift-train``     gravity, mass, friction and damping all        none: use ``shift-test``
                    1.5^U[-2, 2], actuator gain in [0.7, 1)
``shift-test``      none: use ``shift-train``                      in turn: one of the four factors 1.5^±U[2, 3],
                                                                   actuator gain in [0.5, 0.7), or one of the first
                                                                   six actuators crippled
=================== ============================================== ==================================================
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Final

import numpy as np

from swarm.environment import TaskParameters
from swarm.errors import ConfigError
from swarm.messages import Json

NOMINAL: Final = TaskParameters()
GOALS: Final = ("velocity", "direction")
FACTORS: Final = ("gravity", "mass", "friction", "damping", "actuator_gain")
SHIFTED_FACTORS: Final = ("gravity", "mass", "friction", "damping")
NUM_ACTUATORS: Final[Mapping[str, int]] = {"HalfCheetah": 6, "Ant": 8, "Humanoid": 17, "Walker2d": 6, "Hopper": 3}
PLANAR_ROBOTS: Final = ("HalfCheetah", "Walker2d", "Hopper")
TEST_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Closed range of a task parameter and its unit, for checks and for help texts."""

    low: float
    high: float
    unit: str


RANGES: Final[Mapping[str, Range]] = {
    "velocity": Range(low=-50.0, high=50.0, unit="m/s"),
    "direction": Range(low=-2 * math.pi, high=2 * math.pi, unit="rad"),
    "gravity": Range(low=0.0, high=10.0, unit="factor"),
    "mass": Range(low=0.05, high=20.0, unit="factor"),
    "friction": Range(low=0.0, high=20.0, unit="factor"),
    "damping": Range(low=0.0, high=50.0, unit="factor"),
    "actuator_gain": Range(low=-5.0, high=5.0, unit="factor"),
    "crippled": Range(low=0, high=1000, unit="actuator index"),
}


def has_nominal_dynamics(task: TaskParameters) -> bool:
    """Whether ``task`` leaves the model as it is."""
    return task.crippled is None and all(getattr(task, name) == 1.0 for name in FACTORS)


def has_own_reward(task: TaskParameters) -> bool:
    """Whether ``task`` leaves the environment's reward as it is."""
    return task.velocity is None and task.direction is None


def check_task(task: TaskParameters) -> TaskParameters:
    """Return ``task``. Raises ``ConfigError`` for a value that is not finite or outside its range."""
    for name in (field.name for field in fields(task)):
        value = getattr(task, name)
        if value is not None:
            _check_value(name, value)
    return task


def check_task_fits(task: TaskParameters, env_id: str) -> TaskParameters:
    """Return ``task`` if the robot of ``env_id`` can do it; of unknown robots, the bridge says so when it starts.

    Raises:
        ConfigError: a value outside its range, an actuator that the robot does not have, a heading out of its plane.
    """
    check_task(task)
    robot = env_id.partition("-")[0]
    actuators = NUM_ACTUATORS.get(robot)
    if task.crippled is not None and actuators is not None and task.crippled >= actuators:
        raise ConfigError(f"task parameter crippled={task.crippled}: {robot} has actuators 0 to {actuators - 1}")
    if task.direction is not None and robot in PLANAR_ROBOTS and abs(math.sin(task.direction)) > 1e-6:
        raise ConfigError(f"task parameter direction={task.direction:g}: {robot} is planar and can only go 0 or pi")
    return task


def combine(task: TaskParameters, shift: TaskParameters) -> TaskParameters:
    """Return ``task`` with everything that ``shift`` changes."""
    return replace(task, **task_to_json(shift))  # type: ignore[arg-type]  # names and types are those of the fields


def _check_value(name: str, value: float) -> None:
    allowed = RANGES[name]
    if not math.isfinite(value) or not allowed.low <= value <= allowed.high:
        raise ConfigError(
            f"task parameter {name}={value:g}: expected a {allowed.unit} between {allowed.low:g} and {allowed.high:g}"
        )


def _check_name(name: str) -> None:
    if name not in RANGES:
        nearest = difflib.get_close_matches(name, RANGES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"unknown task parameter {name!r}; did you mean {nearest!r}? (known: {', '.join(RANGES)}; "
            "written as gravity=1.5,friction=0.5)"
        )


def parse_shift(text: str) -> TaskParameters:
    """Read ``"gravity=1.5,friction=0.5"``; the empty text is the nominal task.

    Raises:
        ConfigError: an unknown key (the nearest valid one is named), a key twice, or a value that is no number, not
            finite or out of range.
    """
    values: dict[str, Json] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, separator, literal = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise ConfigError(f"shift {part!r}: expected key=value, as in gravity=1.5,friction=0.5")
        _check_name(name)
        if name in values:
            raise ConfigError(f"shift {text!r} names {name!r} twice; keep one of them")
        try:
            values[name] = int(literal) if name == "crippled" else float(literal)
        except ValueError:
            kind = "a whole number" if name == "crippled" else "a number"
            raise ConfigError(f"shift {part!r}: expected {kind} after '='") from None
    return task_from_json(values)


def task_from_json(values: Mapping[str, Json]) -> TaskParameters:
    """Task from plain data. Raises ``ConfigError`` as `parse_shift` does."""
    checked: dict[str, float | int | None] = {}
    for name, value in values.items():
        _check_name(name)
        is_number = isinstance(value, int if name == "crippled" else int | float) and not isinstance(value, bool)
        if not is_number and not (value is None and (name in GOALS or name == "crippled")):
            raise ConfigError(f"task parameter {name}={value!r}: expected a number")
        checked[name] = value  # type: ignore[assignment]  # narrowed by is_number
    return check_task(replace(NOMINAL, **checked))  # type: ignore[arg-type]  # names and types checked above


def task_to_json(task: TaskParameters) -> dict[str, Json]:
    """Plain data of ``task``: only what differs from the nominal task."""
    return {name: value for name, value in asdict(task).items() if value != getattr(NOMINAL, name)}


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
    if not test:
        raise ConfigError("suite 'shift-test' is for testing; use 'shift-train'")
    exponent = float(generator.uniform(2, 3)) * (1.0 if generator.random() < 0.5 else -1.0)
    which = index % (len(SHIFTED_FACTORS) + 2)
    if which < len(SHIFTED_FACTORS):
        return task_from_json({SHIFTED_FACTORS[which]: 1.5**exponent})
    if which == len(SHIFTED_FACTORS):
        return TaskParameters(actuator_gain=float(generator.uniform(0.5, 0.7)))
    return TaskParameters(crippled=int(generator.integers(6)))


SUITES: Final[Mapping[str, Callable[..., TaskParameters]]] = {
    "halfcheetah-vel": _velocity,
    "halfcheetah-dir": _two_headings,
    "ant-dir": _any_heading,
    "humanoid-dir": _any_heading,
    "shift-train": _shift_train,
    "shift-test": _shift_test,
}


SUITE_ROBOTS: Final[Mapping[str, str]] = {
    "halfcheetah-vel": "HalfCheetah",
    "halfcheetah-dir": "HalfCheetah",
    "ant-dir": "Ant",
    "humanoid-dir": "Humanoid",
}
"""Robots that a suite is made for; the suites of shifts fit every robot."""


def is_registered(env_id: str) -> bool:
    """Whether Gymnasium knows ``env_id``; imports gymnasium at the first call."""
    import gymnasium

    return env_id in gymnasium.registry


def suite(name: str, *, count: int, seed: int, test: bool | None = None) -> tuple[TaskParameters, ...]:
    """Draw ``count`` tasks of the named suite; the first n of more tasks are the same as n tasks.

    Args:
        name: a key of `SUITES`.
        count: how many.
        seed: names the stream; train and test halves use different streams.
        test: which half; ``None``: test for ``shift-test``, else train.

    Raises:
        ConfigError: an unknown suite, or a half that it does not have.
    """
    _check_suite_name(name)
    half = name == "shift-test" if test is None else test
    entropy = [seed, list(SUITES).index(name), int(half)]
    return tuple(SUITES[name](np.random.default_rng([*entropy, index]), index, test=half) for index in range(count))


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
    if robot is not None and env_id.partition("-")[0] != robot:
        raise ConfigError(f"suite {name!r} is for {robot}, not for {env_id}; choose another with suite=…")
    return suite(name, count=num_train, seed=seed, test=False), held_out_tasks(name, num_test)


def held_out_tasks(name: str, count: int) -> tuple[TaskParameters, ...]:
    """Return the first ``count`` test tasks of a suite, the same for every run. Raises ``ConfigError`` as `suite`."""
    _check_suite_name(name)
    tested = "shift-test" if name == "shift-train" else name
    return suite(tested, count=count, seed=TEST_SEED, test=tested != "halfcheetah-dir")


def _check_suite_name(name: str) -> None:
    if name not in SUITES:
        nearest = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown suite {name!r}; did you mean {nearest!r}? (known: {', '.join(SUITES)})")
