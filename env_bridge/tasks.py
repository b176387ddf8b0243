"""Tasks and shifts as data: units, ranges, parsing. Imports neither mujoco nor gymnasium; suites are in `suites`."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Final, cast

from swarm.environment import TaskParameters
from swarm.errors import ConfigError
from swarm.messages import Json

NOMINAL: Final = TaskParameters()
NONE_ALLOWED: Final = tuple(field.name for field in fields(TaskParameters) if field.default is None)
WHOLE_NUMBERS: Final = ("crippled", "observation_delay")
FACTORS: Final = ("gravity", "mass", "friction", "damping", "actuator_gain")
NUM_ACTUATORS: Final[Mapping[str, int]] = {
    "HalfCheetah": 6, "Ant": 8, "Humanoid": 17, "Walker2d": 6, "Hopper": 3, "HumanoidStandup": 17, "Pusher": 7,
    "Reacher": 2, "Swimmer": 2, "InvertedPendulum": 1, "InvertedDoublePendulum": 1,
}  # fmt: skip
"""Of all MuJoCo robots of Gymnasium, by `robot_name`."""
PLANAR_ROBOTS: Final = ("HalfCheetah", "Walker2d", "Hopper")
SIDEWAYS: Final = 1e-6
"""How far out of its plane (radians, metres) a goal of a planar robot may lie, for rounding."""


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
    "goal_x": Range(low=-1000.0, high=1000.0, unit="m"),
    "goal_y": Range(low=-1000.0, high=1000.0, unit="m"),
    "observation_delay": Range(low=0, high=100, unit="environment steps"),
    "sensor_noise": Range(low=0.0, high=100.0, unit="units of each observation"),
}
"""One entry for each field of `TaskParameters`, in its order."""


def robot_name(env_id: str) -> str:
    """The robot of an id of Gymnasium or the bridge, ``Ant`` of ``Ant-v4``; of other ids, something unknown."""
    return env_id.rpartition(":")[2].removeprefix("bridge/").partition("-")[0]


def has_nominal_dynamics(task: TaskParameters) -> bool:
    """Whether ``task`` leaves the model as it is."""
    return task.crippled is None and all(getattr(task, name) == 1.0 for name in FACTORS)


def has_own_reward(task: TaskParameters) -> bool:
    """Whether ``task`` leaves the environment's reward as it is."""
    return task.velocity is None and task.direction is None and goal_position(task) is None


def has_own_sensors(task: TaskParameters) -> bool:
    """Whether ``task`` leaves observations as they are."""
    return task.observation_delay == 0 and task.sensor_noise == 0.0


def goal_position(task: TaskParameters) -> tuple[float, float] | None:
    """Target position (x, y) in metres, or ``None`` where there is none; a missing coordinate is 0."""
    if task.goal_x is None and task.goal_y is None:
        return None
    return (task.goal_x or 0.0, task.goal_y or 0.0)


def check_task(task: TaskParameters) -> TaskParameters:
    """Return ``task``, NumPy's numbers as Python's.

    Raises:
        ConfigError: a value of a wrong type, not finite or outside its range, or a target position besides another
            goal.
    """
    given = {field.name: getattr(task, field.name) for field in fields(task)}
    plain = {name: _read_value(name, value) for name, value in given.items()}
    if any(type(plain[name]) is not type(value) for name, value in given.items()):
        task = TaskParameters(**plain)  # type: ignore[arg-type]  # types checked above
    others = [name for name in ("velocity", "direction") if getattr(task, name) is not None]
    if others and goal_position(task) is not None:
        goal = next(name for name in ("goal_x", "goal_y") if getattr(task, name) is not None)
        raise ConfigError(
            f"task parameters {goal} and {others[0]} exclude each other: a target position pays for distance alone; "
            "keep one of them"
        )
    return task


def check_task_fits(task: TaskParameters, env_id: str) -> TaskParameters:
    """Return ``task`` if the robot of ``env_id`` can do it; of unknown robots, the bridge says so when it starts.

    Raises:
        ConfigError: a value outside its range, an actuator that the robot does not have, a goal out of its plane.
    """
    check_task(task)
    robot = robot_name(env_id)
    actuators = NUM_ACTUATORS.get(robot)
    if task.crippled is not None and actuators is not None and task.crippled >= actuators:
        raise ConfigError(f"task parameter crippled={task.crippled}: {robot} has actuators 0 to {actuators - 1}")
    if robot in PLANAR_ROBOTS:
        check_goal_in_plane(task, f"{robot} is planar and")
    return task


def check_goal_in_plane(task: TaskParameters, who: str = "a planar robot") -> None:
    """Raise ``ConfigError`` for a goal that a planar robot cannot have."""
    if task.direction is not None and abs(math.sin(task.direction)) > SIDEWAYS:
        raise ConfigError(f"task parameter direction={task.direction:g}: {who} can only go 0 or pi")
    if task.goal_y is not None and abs(task.goal_y) > SIDEWAYS:
        raise ConfigError(f"task parameter goal_y={task.goal_y:g}: {who} can only go along x (goal_x)")


def combine(task: TaskParameters, shift: TaskParameters) -> TaskParameters:
    """Return ``task`` with everything that ``shift`` changes."""
    return replace(task, **task_to_json(shift))  # type: ignore[arg-type]  # names and types are those of the fields


def _read_value(name: str, value: object) -> float | int | None:
    """Return a value as a number of Python's. Raises ``ConfigError`` for a wrong type, or outside its range."""
    allowed = RANGES[name]
    if value is None and name in NONE_ALLOWED:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral if name in WHOLE_NUMBERS else Real):
        got = " ".join(reprlib.repr(value).split())
        raise ConfigError(f"task parameter {name}={got}: expected {_kind(name)} ({allowed.unit})")
    number = cast("float", value)
    if not allowed.low <= number <= allowed.high:  # nor is what is not finite
        raise ConfigError(
            f"task parameter {name}={_as_float(number):g}: expected a number from {allowed.low:g} to {allowed.high:g} "
            f"({allowed.unit})"
        )
    return int(number) if isinstance(value, Integral) else float(number)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _kind(name: str) -> str:
    return "a whole number" if name in WHOLE_NUMBERS else "a number"


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
            values[name] = int(literal) if name in WHOLE_NUMBERS else float(literal)
        except ValueError:
            raise ConfigError(f"shift {part!r}: expected {_kind(name)} after '=', in {RANGES[name].unit}") from None
    return task_from_json(values)


def task_from_json(values: Mapping[str, Json]) -> TaskParameters:
    """Task from plain data. Raises ``ConfigError`` as `parse_shift` does."""
    for name in values:
        _check_name(name)
    return check_task(replace(NOMINAL, **values))  # type: ignore[arg-type]  # types are checked next


def task_to_json(task: TaskParameters) -> dict[str, Json]:
    """Plain data of ``task``: only what differs from the nominal task."""
    return {name: value for name, value in asdict(task).items() if value != getattr(NOMINAL, name)}
