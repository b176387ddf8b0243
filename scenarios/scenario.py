"""A run as data: who learns what, on how many environment steps, how spread over processes. TOML in, TOML out."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Final, Self, TypeVar, cast, get_args, get_origin

from agents.config import MEMBERS, MODES, TeamConfig
from env_bridge.suites import train_and_test_tasks
from env_bridge.tasks import check_task_fits, combine
from scenarios.toml_text import to_toml
from scenarios.validation import decode, nearest, settings_of
from swarm.errors import ConfigError
from swarm.names import NAME
from swarm.policy import BLOCK_SIZE

ScenarioT = TypeVar("ScenarioT", bound="Scenario")
ALWAYS_PRESENT: Final = ("coordinator", "environment")
INTERVENABLE_TOPICS: Final = ("proposals", "gradients", "evaluations")
ROBOTS: Final = ("HalfCheetah", "Ant", "Humanoid", "Walker2d", "Hopper")
DRAWN_SETTINGS: Final = ("train_tasks", "test_tasks")
"""Parts of `TeamConfig` that follow from the suite."""

KNOWN_TASKS: Final = tuple(f"{robot}-{version}" for robot in ROBOTS for version in ("v4", "v5"))
"""Environment ids with vectorised physics; other Gymnasium ids are looked up when a run starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that `scenarios.runner` needs to know about a run.

    Attributes:
        name: names the run directory; letters, digits, ``.``, ``_``, ``-``.
        description: one line for ``swarm list``.
        processes: worker processes that host the agents other than the coordinator.
        workers: stepping workers of the bridge.
        video: whether the trained policy is filmed at the end.
        suite: tasks to train and test on, see ``env_bridge.tasks``; empty: ``team.task`` alone.
        team: what every agent of the run knows.
    """

    name: str
    description: str = ""
    processes: int = 2
    workers: int = 1
    video: bool = True
    suite: str = ""
    team: TeamConfig = field(default_factory=TeamConfig)

    @classmethod
    def from_mapping(cls, data: Mapping[str, object]) -> Self:
        """Validate plain data and draw the suite's tasks. Raises ``ConfigError`` in one line on the first mistake."""
        _refuse_drawn_settings(data)
        scenario = _with_tasks_of_suite(decode(cls, data))
        _check(scenario)
        return scenario

    def to_mapping(self) -> dict[str, object]:
        """Plain data, without the tasks that the suite implies; `from_mapping` gives an equal scenario back."""
        data = asdict(self)
        for setting in DRAWN_SETTINGS:
            del data["team"][setting]
        return data

    def to_toml(self) -> str:
        """Every setting as TOML; reading it back gives an equal scenario."""
        return to_toml(self.to_mapping())

    def with_overrides(self, overrides: Sequence[str]) -> Self:
        """Return the scenario after ``key=value`` texts such as ``sac.learning_rate=1e-3`` or ``processes=4``.

        Keys are dotted paths; ``team.`` may be left out. Lists are written with commas, ``none`` unsets a setting.

        Raises:
            ConfigError: no ``=``, an unknown key, or a value that does not fit the setting.
        """
        data = self.to_mapping()
        for text in overrides:
            key, separator, value = text.partition("=")
            if not separator:
                raise ConfigError(f"override {text!r} has no '='; write key=value, for example sac.learning_rate=1e-3")
            path, hint = _resolve(key.strip())
            table: dict[str, object] = data
            *sections, leaf = path.split(".")
            for section in sections:
                table = cast(dict[str, object], table[section])
            table[leaf] = _parse(hint, value.strip(), path)
        return self.from_mapping(data)

    def with_agents(self, names: Sequence[str]) -> tuple[Self, tuple[str, ...]]:
        """Return the scenario with only the named specialists, and which always-present agents had to be added.

        Raises:
            ConfigError: a name that no entry point of the group ``swarm.agents`` has.
        """
        added = tuple(name for name in ALWAYS_PRESENT if name not in names)
        chosen = {*names, *added}
        ordered: list[str] = [name for name in MEMBERS if name in chosen]
        ordered += [name for name in dict.fromkeys(names) if name not in MEMBERS]
        data = self.to_mapping()
        cast(dict[str, object], data["team"])["agents"] = tuple(ordered)
        return self.from_mapping(data), added

    def with_task(self, env_id: str) -> Self:
        """Return the scenario on another environment, with the network sizes and target entropy of its preset.

        Raises:
            ConfigError: an unknown environment id.
        """
        check_task(env_id)
        team = replace(self.team, env_id=env_id)
        preset = preset_for(env_id)
        if preset is not None and _robot(self.team.env_id) != _robot(env_id):
            entropy = preset.team.sac.target_entropy
            team = replace(team, member=preset.team.member, sac=replace(team.sac, target_entropy=entropy))
        return replace(self, team=team)


def list_presets() -> tuple[str, ...]:
    """Names of the scenarios that come with the package, sorted."""
    folder = files("scenarios") / "presets"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_preset(name: str) -> Scenario:
    """Return a scenario that comes with the package. Raises ``ConfigError`` for an unknown name."""
    known = list_presets()
    if name not in known:
        raise ConfigError(
            f"unknown scenario {name!r}{nearest(name, list(known))}; presets: {', '.join(known)}; or name a .toml file"
        )
    return _parse_text((files("scenarios") / "presets" / f"{name}.toml").read_text(encoding="utf-8"), f"preset {name}")


def load_scenario(name_or_path: str | Path) -> Scenario:
    """Return the scenario of a preset name or of a ``.toml`` file. Raises ``ConfigError`` in one line."""
    text = str(name_or_path)
    if not text.endswith(".toml") and "/" not in text:
        return load_preset(text)
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"scenario file {text!r} does not exist; presets: {', '.join(list_presets())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"scenario file {text!r} cannot be read: {error}") from error
    return _parse_text(content, f"scenario file {text}")


def preset_for(env_id: str) -> Scenario | None:
    """Return the full-size preset made for the robot of ``env_id``, or ``None``."""
    name = _robot(env_id).lower()
    return load_preset(name) if name in list_presets() else None


def check_task(env_id: str) -> None:
    """Raise ``ConfigError`` unless ``env_id`` is a known environment."""
    if env_id in KNOWN_TASKS:
        return
    from env_bridge.vector_env import find_spec  # imports gymnasium: only for ids that we do not know

    try:
        find_spec(env_id)
    except ConfigError as error:
        raise ConfigError(
            f"unknown environment {env_id!r}{nearest(env_id, list(KNOWN_TASKS))}; "
            f"known: {', '.join(KNOWN_TASKS)}, or another registered Gymnasium id"
        ) from error


def check_runnable(scenario: Scenario) -> None:
    """Raise ``ConfigError`` for an environment in which the scenario cannot run; unknown ones are made to find out."""
    team = scenario.team
    if team.env_id in KNOWN_TASKS:
        return
    from env_bridge.vector_env import check_environment

    check_environment(team.env_id, (team.task, *team.train_tasks, *team.test_tasks))
    shifting = [name for name in ("shifted_every", "adapt_every") if getattr(team.rounds, name) > 0]
    if shifting:
        try:
            check_environment(team.env_id, (replace(team.task, gravity=1.1),))
        except ConfigError as error:
            settings = " ".join(f"--set rounds.{name}=0" for name in shifting)
            raise ConfigError(f"{error}; do without: {settings}") from error


def _robot(env_id: str) -> str:
    return env_id.partition("-")[0]


def _parse_text(content: str, origin: str) -> Scenario:
    try:
        return Scenario.from_mapping(tomllib.loads(content))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not valid TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


@cache
def _agent_names() -> tuple[str, ...]:
    return tuple(sorted(point.name for point in entry_points(group="swarm.agents")))


def _check(scenario: Scenario) -> None:
    """Rules that span settings, and texts that must be one of a list."""
    team = scenario.team
    if not NAME.fullmatch(scenario.name):
        raise ConfigError(
            f"name is {scenario.name!r}; expected 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or "
            "digit: it names the run directory, which stays under its root"
        )
    if team.mode not in MODES:
        raise ConfigError(f"unknown mode {team.mode!r}{nearest(team.mode, list(MODES))}; known: {', '.join(MODES)}")
    check_task(team.env_id)
    for task in (team.task, *team.train_tasks, *team.test_tasks):
        check_task_fits(task, team.env_id)
    _check_agents(team)
    for setting in ("replace", "stop"):
        topic = getattr(team.faults, setting)
        if topic and topic not in INTERVENABLE_TOPICS:
            raise ConfigError(
                f"team.faults.{setting} is {topic!r}; expected an empty text or one of {', '.join(INTERVENABLE_TOPICS)}"
            )
    for setting in ("steps", "shifted_steps", "seat_steps"):
        steps = getattr(team.rounds, setting)
        if steps % BLOCK_SIZE:
            raise ConfigError(f"team.rounds.{setting} is {steps}; expected a multiple of the {BLOCK_SIZE} environments")
    if len(team.sac.discounts) > len(team.members):
        raise ConfigError(
            f"team.sac.discounts has {len(team.sac.discounts)} numbers for {len(team.members)} members; leave some out"
        )
    rounds, stretch = team.rounds, team.rounds.shifted_steps // BLOCK_SIZE
    has_inner_loop = team.trains_world and rounds.shifted_every > 0 and team.world.meta_gradients_per_round > 0
    if has_inner_loop and stretch < team.world.window:
        raise ConfigError(
            f"team.world.window is {team.world.window}, but a stretch for the inner loop has {stretch} steps "
            f"(rounds.shifted_steps / {BLOCK_SIZE}): raise that, or set world.meta_gradients_per_round=0"
        )
    if team.budget_steps < team.rounds.steps:
        raise ConfigError(
            f"team.budget_steps is {team.budget_steps}, less than one round of {team.rounds.steps} steps; "
            "raise it (--steps) or shorten the round (--set rounds.steps=…)"
        )


def _refuse_drawn_settings(data: Mapping[str, object]) -> None:
    team = data.get("team")
    for setting in DRAWN_SETTINGS:
        if isinstance(team, Mapping) and setting in team:
            raise ConfigError(f"team.{setting} cannot be set: it follows from suite, trials.{setting} and seed")


def _with_tasks_of_suite(scenario: ScenarioT) -> ScenarioT:
    """Return the scenario with the tasks of its suite, each of them on top of ``team.task``."""
    team = scenario.team
    if not scenario.suite:
        return scenario
    train, test = train_and_test_tasks(
        scenario.suite,
        team.env_id,
        num_train=team.trials.train_tasks,
        num_test=team.trials.test_tasks,
        seed=team.seed,
    )
    drawn = {
        "train_tasks": tuple(combine(team.task, task) for task in train),
        "test_tasks": tuple(combine(team.task, task) for task in test),
    }
    return replace(scenario, team=replace(team, **drawn))  # type: ignore[arg-type]  # names and types of the fields


def _check_agents(team: TeamConfig) -> None:
    known = _agent_names()
    for name in team.agents:
        if name not in known:
            raise ConfigError(
                f"unknown agent {name!r}{nearest(name, list(known))}; known (entry points of the group swarm.agents): "
                f"{', '.join(known)}"
            )
    if len(set(team.agents)) != len(team.agents):
        raise ConfigError(f"team.agents names an agent twice: {', '.join(team.agents)}")
    for name in team.learners:
        if name not in MEMBERS or name not in team.agents:
            raise ConfigError(
                f"team.learners names {name!r}; expected agents of the run that own a member: "
                f"{', '.join(member for member in MEMBERS if member in team.agents)}"
            )
    for name in ALWAYS_PRESENT:
        if name not in team.agents:
            raise ConfigError(f"team.agents lacks {name!r}; add it: no run works without {', '.join(ALWAYS_PRESENT)}")


def _resolve(key: str) -> tuple[str, object]:
    drawn = {f"team.{setting}" for setting in DRAWN_SETTINGS}
    settings = {path: hint for path, hint in settings_of(Scenario) if path not in drawn}
    for path in (key, f"team.{key}"):
        if path in settings:
            return path, settings[path]
    close = _closest(key, [path.removeprefix("team.") for path in settings])
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
    raise ConfigError(f"unknown setting {key!r}{hint} the scenario.toml of any run directory lists all settings")


def _closest(key: str, paths: Sequence[str]) -> list[str]:
    """Return up to two paths that end with ``key``, else the one most like it, else those that end with what is."""
    leaves = [path.rpartition(".")[2] for path in paths]
    if key not in leaves:
        close = difflib.get_close_matches(key, paths, n=1, cutoff=0.5)
        if close:
            return close
        key = next(iter(difflib.get_close_matches(key, leaves, n=1, cutoff=0.5)), key)
    return [path for path, leaf in zip(paths, leaves, strict=True) if leaf == key][:2]


def _parse(hint: object, text: str, path: str) -> object:
    """Read the text of an override as its setting's type wants it; ranges are checked later, with all others."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        return tuple(_parse(kind, part.strip(), path) for part in text.split(",") if part.strip())
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    if str in kinds:
        return text
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                expected = "an integer" if kind is int else "a number"
                raise ConfigError(f"{path} is {text!r}; expected {expected}") from None
    raise ConfigError(f"{path} is {text!r}; expected true or false")
