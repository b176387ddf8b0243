"""Turn plain data into configuration dataclasses: every key known, every type right, every number in its range.

A mistake ends in one line of ``ConfigError`` that names the place, what was found, what is expected, and, for a
misspelt key, the nearest valid one. `RANGES` has an entry for each numeric setting of a scenario.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from env_bridge.tasks import RANGES as TASK_RANGES
from swarm.errors import ConfigError

DataT = TypeVar("DataT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An interval of allowed numbers; ``low`` itself is excluded where ``above`` is true."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.above else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        return f"{'more than' if self.above else 'at least'} {self.low:g} and at most {self.high:g}"


def _at_least(low: float, high: float) -> Range:
    return Range(low=low, high=high)


def _above(low: float, high: float) -> Range:
    return Range(low=low, high=high, above=True)


RANGES: Final[Mapping[str, Range]] = {
    "processes": _at_least(1, 64),
    "workers": _at_least(1, 64),
    "team.seed": _at_least(0, 2**31 - 1),
    "team.budget_steps": _at_least(1, 10**9),
    "team.report_episodes": _at_least(1, 1_000),
    **{f"team.task.{name}": Range(low=task.low, high=task.high) for name, task in TASK_RANGES.items()},
    "team.member.projection": _at_least(0, 1_024),
    "team.member.encoder_width": _at_least(1, 1_024),
    "team.member.encoder_states": _at_least(1, 1_024),
    "team.member.feature_scale": _at_least(0, 100),
    "team.member.actor_hidden": _at_least(1, 4_096),
    "team.member.critic_hidden": _at_least(1, 4_096),
    "team.sac.batch_size": _at_least(1, 65_536),
    "team.sac.learning_rate": _above(0, 1),
    "team.sac.reward_scale": _above(0, 1_000),
    "team.sac.discount": _at_least(0, 1),
    "team.sac.target_rate": _above(0, 1),
    "team.sac.target_entropy": _at_least(-100, 100),
    "team.sac.policy_delay": _at_least(1, 100),
    "team.sac.average_rate": _at_least(0, 1),
    "team.sac.own_share": _at_least(0, 1),
    "team.sac.pooled_targets": _at_least(1, 2),
    "team.sac.discounts": _at_least(0, 1),
    "team.sac.guidance": _at_least(0, 1_000),
    "team.sac.guidance_distance": _above(0, 100),
    "team.sac.imitation": _at_least(0, 1_000),
    "team.sac.reset_every": _at_least(0, 10**9),
    "team.sac.reset_layers": _at_least(1, 3),
    "team.world.window": _at_least(2, 4_096),
    "team.world.learning_rate": _above(0, 1),
    "team.world.encoder_rate": _at_least(0, 10),
    "team.world.hidden": _at_least(1, 4_096),
    "team.world.gradients_per_round": _at_least(0, 1_000),
    "team.world.windows_per_batch": _at_least(1, 4_096),
    "team.world.context_size": _at_least(1, 256),
    "team.world.inner_learning_rate": _above(0, 10),
    "team.world.inner_steps": _at_least(0, 100),
    "team.world.meta_order": _at_least(1, 2),
    "team.world.meta_tasks": _at_least(1, 1_000),
    "team.world.meta_gradients_per_round": _at_least(0, 1_000),
    "team.world.max_gradient_norm": _above(0, 1e9),
    "team.world.imagine_horizon": _at_least(1, 1_000),
    "team.world.imagine_cut": _above(0, 1e9),
    "team.rounds.steps": _at_least(1, 10**6),
    "team.rounds.random_steps": _at_least(0, 10**9),
    "team.rounds.updates_per_step": _at_least(0, 1_000),
    "team.rounds.lot": _at_least(1, 10**6),
    "team.rounds.max_share": _above(0, 1),
    "team.rounds.concentration": _at_least(0, 100),
    "team.rounds.shifted_every": _at_least(0, 10**6),
    "team.rounds.shifted_steps": _at_least(1, 10**6),
    "team.rounds.seat_steps": _at_least(1, 10**6),
    "team.rounds.evaluate_every": _at_least(0, 10**6),
    "team.rounds.evaluation_blocks": _at_least(1, 1_000),
    "team.rounds.evaluation_steps": _at_least(1, 10**6),
    "team.rounds.adapt_every": _at_least(0, 10**6),
    "team.rounds.adapt_steps": _at_least(1, 10**6),
    "team.rounds.patience_s": _above(0, 86_400),
    "team.trials.episodes": _at_least(1, 1_000),
    "team.trials.episode_steps": _at_least(2, 10**6),
    "team.trials.train_tasks": _at_least(1, 10_000),
    "team.trials.test_tasks": _at_least(1, 1_000),
    "team.trials.exploration": _at_least(0, 1),
    "team.adapt.episodes": _at_least(1, 1_000),
    "team.adapt.evaluation_blocks": _at_least(1, 1_000),
    "team.adapt.transitions": _at_least(2, 1_000),
    "team.adapt.reach": _above(0, 1),
    "team.adapt.sigma": _above(0, 10),
}
"""Allowed values per numeric setting, by dotted path; for tuples, of each element."""


def settings_of(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give (dotted path, type) of every setting below ``cls``, sections excluded."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        hint, path = hints[field.name], prefix + field.name
        if is_dataclass(hint):
            yield from settings_of(hint, path + ".")  # type: ignore[arg-type]
        else:
            yield path, hint


def nearest(word: str, known: list[str]) -> str:
    """Return ``; did you mean 'x'?`` for the most similar known word, or an empty text."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def decode(cls: type[DataT], data: object, path: str = "") -> DataT:
    """Build ``cls`` from a mapping; keys that are missing keep their defaults.

    Args:
        cls: a dataclass whose fields are str, bool, int, float, tuples of these, ``X | None`` or such dataclasses.
        data: what was read.
        path: dotted path of ``data`` in its file, ending in a dot, for messages and `RANGES`.

    Raises:
        ConfigError: an unknown key, a wrong type, a number that is not finite or out of range, a missing value.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path.rstrip('.') or 'the scenario'} is {describe(data)}; expected a table of settings")
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            raise ConfigError(_unknown_key(str(key), names, cls, path))
    try:
        return cls(**{key: convert(hints[key], value, path + key) for key, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{path.rstrip('.') or 'the scenario'}: {error}") from error


def convert(hint: Any, value: object, path: str) -> object:  # noqa: ANN401 - a type form
    """Return ``value`` as ``hint`` wants it. Raises ``ConfigError`` with the dotted ``path``."""
    if is_dataclass(hint):
        return decode(hint, value, path + ".")  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else convert(inner, value, path)
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**53 else value
    if type(value) is not hint:
        raise ConfigError(f"{path} is {describe(value)}; expected {_EXPECTED[hint]}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(value, path)
    return value


def describe(value: object) -> str:
    """Return a value and its kind, short enough for one line."""
    text = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    kind = {bool: "a boolean", str: "a text", int: "an integer", float: "a number", type(None): "nothing"}
    return f"{text} ({kind.get(type(value), 'a list' if isinstance(value, list | tuple) else 'a table')})"


_EXPECTED: Final = {bool: "true or false", str: "a text", int: "an integer", float: "a number"}


def _convert_tuple(arguments: tuple[Any, ...], value: object, path: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path} is {describe(value)}; expected a list")
    if Ellipsis in arguments:
        return tuple(convert(arguments[0], item, path) for item in value)
    if len(value) != len(arguments):
        raise ConfigError(f"{path} has {len(value)} entries; expected {len(arguments)}")
    return tuple(convert(kind, item, path) for kind, item in zip(arguments, value, strict=True))


def _check_number(value: int | float, path: str) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{path} is {value}; expected a finite number")
    allowed = RANGES[path]
    if value not in allowed:
        raise ConfigError(f"{path} is {value}; expected {allowed}")


def _unknown_key(key: str, names: list[str], cls: type[Any], path: str) -> str:
    hint = nearest(key, names)
    if not hint:
        leaves = {full.rpartition(".")[2]: full for full, _ in settings_of(cls, path)}
        close = difflib.get_close_matches(key, list(leaves), n=1, cutoff=0.6)
        hint = f"; did you mean {leaves[close[0]]!r}?" if close else f"; known keys: {', '.join(names)}"
    return f"unknown key {path + key!r}{hint}"
