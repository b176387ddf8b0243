"""Reading the constructor options of Gymnasium's robots: exactly those that a class takes, exactly their types."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from swarm.errors import ConfigError

Reader: TypeAlias = Callable[[object], Any]
"""Returns an option's value, or raises ``ValueError`` with what was expected."""

EXACT_INTEGERS: Final = 2**53
"""Beyond it, an integer need not have an equal float."""


def flag(value: object) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def number(value: object) -> float:
    """A finite Python number. Integers stay integers: Gymnasium's infos then hold integers as well."""
    if (type(value) is int and abs(value) <= EXACT_INTEGERS) or (type(value) is float and math.isfinite(value)):
        return value
    raise ValueError("a finite number of Python's (numpy's would change the precision of rewards)")


def scale(value: object) -> float:
    """A finite number, not below zero."""
    if number(value) < 0:
        raise ValueError("a number not below 0")
    return number(value)


def count(value: object) -> int:
    """A whole number above zero."""
    if type(value) is int and 0 < value <= EXACT_INTEGERS:
        return value
    raise ValueError("a whole number above 0")


def limits(value: object) -> tuple[float, float]:
    """Two numbers, lowest first; either may be infinite."""
    if isinstance(value, tuple | list) and len(value) == 2:
        low, high = value
        if type(low) in (int, float) and type(high) in (int, float) and low <= high:
            return (float(low), float(high))
    raise ValueError("two numbers, the lowest first")


def path(value: object) -> str:
    """The name of a model file."""
    if type(value) is str and value:
        return value
    raise ValueError("the path of a model file, as text")


def body(value: object) -> int | str:
    """A body's number or name."""
    if (type(value) is int and 0 <= value <= EXACT_INTEGERS) or (type(value) is str and value):
        return value
    raise ValueError("the number or the name of a body")


def _or_none(reader: Reader) -> Reader:
    """What ``reader`` reads, or ``None``."""
    return lambda value: None if value is None else reader(value)


def _text(value: object) -> str:
    if type(value) is str:
        return value
    raise ValueError("text")


def _camera(value: object) -> int:
    if type(value) is int and -1 <= value <= EXACT_INTEGERS:
        return value
    raise ValueError("the number of a camera, or -1")


def _settings(value: object) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    raise ValueError("a dictionary")


PICTURES: Final[Mapping[str, Reader]] = {
    "render_mode": _or_none(_text),
    "width": count,
    "height": count,
    "camera_id": _or_none(_camera),
    "camera_name": _or_none(_text),
    "default_camera_config": _or_none(_settings),
    "max_geom": count,
    "visual_options": _or_none(_settings),
}
PICTURE_OPTIONS: Final = frozenset(PICTURES)
"""Options of Gymnasium's classes that change pictures only."""


def read_options(
    env_id: str, readers: Mapping[str, Reader], elsewhere: Mapping[str, Reader], given: Mapping[str, object]
) -> dict[str, Any]:
    """Read ``given`` by the ``readers`` of each option.

    Args:
        elsewhere: readers of the robot's other version, to say what only that one takes.

    Raises:
        ConfigError: an option that there is not, naming the nearest, or a value of the wrong type.
    """
    values = {}
    for name, value in given.items():
        reader = readers.get(name)
        if reader is None:
            raise ConfigError(_refuse(env_id, readers, elsewhere, name))
        try:
            values[name] = reader(value)
        except (ValueError, OverflowError) as error:
            got = " ".join(reprlib.repr(value).split())
            raise ConfigError(f"{env_id}: option {name} is {got}; expected {error}") from error
    return values


def _refuse(env_id: str, readers: Mapping[str, Reader], elsewhere: Mapping[str, Reader], name: str) -> str:
    if name in PICTURE_OPTIONS:
        return f"{env_id}: option {name!r} is about pictures, and nothing is drawn without render_mode; leave it out"
    nearest = difflib.get_close_matches(name, readers, n=1, cutoff=0.0)[0]
    other = " (its other version does)" if name in elsewhere else ""
    return f"{env_id} takes no option {name!r}{other}; did you mean {nearest!r}?"
