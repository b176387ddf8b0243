"""Checks of message fields, built once per message type from its annotations. Pure; used by `swarm.codec`.

A rule takes a value and the path to it, and returns the value as the dataclass wants it or raises `CodecError`. The
same rules run before sending and after receiving, so that what one peer may send every peer accepts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Final, TypeAlias

from swarm.errors import CodecError
from swarm.names import NAME, TASK_ID

Rule: TypeAlias = Callable[[object, str], object]

MAX_JSON_DEPTH: Final = 32
MAX_TEXT: Final = 1 << 20
MAX_INT: Final = 2**63 - 1
ARRAYS: Final = "Arrays"

_ENDINGS: Final = frozenset({"done", "failed", "cancelled", "expired"})


def check_id(value: object, path: str) -> str:
    """Return ``value`` if it is an id of an agent, member, peer or kind of work."""
    return _matching(value, path, NAME)


def _check_task_id(value: object, path: str) -> str:
    return _matching(value, path, TASK_ID)


def _check_id_or_empty(value: object, path: str) -> str:
    return "" if value == "" else check_id(value, path)


def _check_ending(value: object, path: str) -> str:
    text = _check_text(value, path)
    if text not in _ENDINGS:
        raise CodecError("bad-value", f"{path} is {text[:40]!r}, expected one of {sorted(_ENDINGS)}")
    return text


def _matching(value: object, path: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str):
        raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected str")
    if not pattern.fullmatch(value):
        raise CodecError("bad-id", f"{path} is {value[:80]!r}, expected {pattern.pattern}")
    return value


def _check_text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected str")
    if len(value) > MAX_TEXT:
        raise CodecError("too-large", f"{path} has {len(value)} characters, at most {MAX_TEXT} are allowed")
    return value


def _check_bool(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected bool")
    return value


def check_count(value: object, path: str) -> int:
    """Return ``value`` if it is an integer in [0, 2**63): every integer on the wire counts something."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected int")
    if not 0 <= value <= MAX_INT:
        raise CodecError("bad-range", f"{path} is {value}, expected 0 <= {path} < 2**63")
    return value


def _check_float(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected float")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CodecError("not-finite", f"{path} is {number}, expected a finite number")
    return number


def _between(low: float, high: float) -> Rule:
    def check(value: object, path: str) -> float:
        number = _check_float(value, path)
        if not low <= number <= high:
            raise CodecError("bad-range", f"{path} is {number}, expected {low} <= {path} <= {high}")
        return number

    return check


def check_json(value: object, path: str, depth: int = 0) -> object:
    """Return ``value`` if it is a tree of None, bool, int, finite float, str, sequences and mappings with str keys."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _check_text(value, path)
    if isinstance(value, int):
        if not -MAX_INT - 1 <= value <= MAX_INT:
            raise CodecError("bad-range", f"{path} is {value}, expected a 64-bit integer")
        return value
    if isinstance(value, float):
        return _check_float(value, path)
    if depth == MAX_JSON_DEPTH:
        raise CodecError("too-deep", f"{path} is nested more than {MAX_JSON_DEPTH} levels")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_key(key, path)
            check_json(item, path, depth + 1)
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        for item in value:
            check_json(item, path, depth + 1)
        return value
    raise CodecError(
        "bad-type", f"{path} holds a {type(value).__name__}; expected JSON-like data (plain Python values)"
    )


def _check_key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise CodecError("bad-key", f"{path} has a key of type {type(key).__name__}, expected str")
    return key


def _mapping_of(rule: Rule) -> Rule:
    def check(value: object, path: str) -> dict[str, object]:
        if not isinstance(value, Mapping):
            raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected a mapping")
        return {_check_key(key, path): rule(item, f"{path}.{key}"[:120]) for key, item in value.items()}

    return check


def _check_json_mapping(value: object, path: str) -> object:
    if not isinstance(value, Mapping):
        raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected a mapping")
    return check_json(value, path)


def _tuple_of(rule: Rule) -> Rule:
    def check(value: object, path: str) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise CodecError("bad-type", f"{path} is {type(value).__name__}, expected a tuple")
        return tuple(rule(item, path) for item in value)

    return check


def _optional(rule: Rule) -> Rule:
    return lambda value, path: None if value is None else rule(value, path)


_BASE_RULES: Final[Mapping[str, Rule]] = {
    "str": _check_text,
    "bool": _check_bool,
    "int": check_count,
    "float": _check_float,
    "Json": check_json,
}

_ID_FIELDS: Final = frozenset({"submitter", "agent", "owner", "judge", "kind", "stream", "peer"})
_ID_TUPLES: Final = frozenset({"eligible", "awaited", "seats", "skills"})
_FIELD_RULES: Final[Mapping[str, Rule]] = {
    "task_id": _check_task_id,
    "Cancel.agent": _check_id_or_empty,
    "Ended.status": _check_ending,
    "lease_s": _between(0.0, 1e9),
    "deadline_s": _optional(_between(0.0, 1e9)),
    "fraction": _between(0.0, 1.0),
    "cost": _between(0.0, 1e300),
    "uncertainty": _between(0.0, 1e300),
    **dict.fromkeys(_ID_FIELDS, check_id),
    **dict.fromkeys(_ID_TUPLES, _tuple_of(check_id)),
}


def _rule_of(annotation: str) -> Rule:
    """Build the rule of one annotation. Raises ``TypeError`` for one that cannot travel."""
    if annotation in _BASE_RULES:
        return _BASE_RULES[annotation]
    if annotation.endswith(" | None"):
        return _optional(_rule_of(annotation.removesuffix(" | None")))
    if annotation == "Mapping[str, Json]":
        return _check_json_mapping
    if annotation.startswith("Mapping[str, ") and annotation.endswith("]"):
        return _mapping_of(_rule_of(annotation[len("Mapping[str, ") : -1]))
    if annotation.startswith("tuple[") and annotation.endswith(", ...]"):
        return _tuple_of(_rule_of(annotation[len("tuple[") : -len(", ...]")]))
    raise TypeError(f"a message field of type {annotation!r} cannot travel; see swarm.validation for those that can")


def rules_of(message_type: type) -> tuple[tuple[str, Rule | None], ...]:
    """Return (field name, rule) of each field in order; the rule is None for a field of arrays.

    Raises:
        TypeError: an annotation is not one of those that can travel.
    """
    rules: list[tuple[str, Rule | None]] = []
    for field in fields(message_type):
        annotation = str(field.type)
        if annotation == ARRAYS:
            rules.append((field.name, None))
            continue
        rule = _FIELD_RULES.get(f"{message_type.__name__}.{field.name}") or _FIELD_RULES.get(field.name)
        rules.append((field.name, rule or _rule_of(annotation)))
    return tuple(rules)
