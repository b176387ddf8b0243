"""What a node is told to be: a JSON file, validated once."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from swarm.ablation import Faults
from swarm.errors import ConfigError
from swarm.messages import Json

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One agent of a node.

    Attributes:
        factory: entry point of the group ``swarm.agents``, or ``module:Class`` where the node's spec allows imports.
        options: for the constructor.
        state: for ``load`` right after construction; what the agent's earlier life committed.
    """

    name: str
    factory: str
    options: Mapping[str, Json] = field(default_factory=dict)
    state: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Self:
        """Validate. Raises ``ConfigError``."""
        _check_keys(cls, data, "agent")
        return cls(
            name=_get(data, "name", str),
            factory=_get(data, "factory", str),
            options=_get(data, "options", dict, {}),
            state=_get(data, "state", dict, {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One process that hosts agents.

    Attributes:
        publish_endpoint: where peers publish to (the broker's frontend).
        subscribe_endpoint: where peers receive from (the broker's backend).
        incarnation: which life of this node; grows with each restart.
        services: entry point of the group ``swarm.services`` → options of its ``connect``.
        journal: SQLite file of the managing agent; ``None``: its tasks are lost with the process.
        faults: interventions on what the agents publish.
        allow_import: whether factories may be ``module:Class``; only the Python API sets it.
        parent_pid: process whose end ends this node; ``None``: nobody's child.
        status_path: where to leave the error that ended the node.
    """

    name: str
    publish_endpoint: str
    subscribe_endpoint: str
    run_dir: Path
    incarnation: int
    agents: tuple[AgentSpec, ...]
    services: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    journal: Path | None = None
    faults: Faults = field(default_factory=Faults)
    allow_import: bool = False
    parent_pid: int | None = None
    status_path: Path | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Self:
        """Validate. Raises ``ConfigError``."""
        _check_keys(cls, data, "node")
        journal, parent = data.get("journal"), data.get("parent_pid")
        status = data.get("status_path")
        return cls(
            name=_get(data, "name", str),
            publish_endpoint=_get(data, "publish_endpoint", str),
            subscribe_endpoint=_get(data, "subscribe_endpoint", str),
            run_dir=Path(_get(data, "run_dir", str)),
            incarnation=_get(data, "incarnation", int),
            agents=tuple(AgentSpec.from_json(_object(row, "agents")) for row in _get(data, "agents", list)),
            services={name: _object(row, "services") for name, row in _get(data, "services", dict, {}).items()},
            journal=None if journal is None else Path(_get(data, "journal", str)),
            faults=Faults.from_json(_get(data, "faults", dict, {})),
            allow_import=_get(data, "allow_import", bool, False),
            parent_pid=None if parent is None else _get(data, "parent_pid", int),
            status_path=None if status is None else Path(_get(data, "status_path", str)),
        )

    def to_json(self) -> dict[str, Json]:
        """JSON-like form, as `from_json` reads it."""
        data: dict[str, Json] = {
            entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in ("agents", "faults")
        }
        for key in ("run_dir", "journal", "status_path"):
            data[key] = None if data[key] is None else str(data[key])
        data["agents"] = [{entry.name: getattr(agent, entry.name) for entry in fields(agent)} for agent in self.agents]
        data["faults"] = self.faults.to_json()
        return data


def read_spec(path: Path) -> NodeSpec:
    """Read a node's file. Raises ``ConfigError``."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"node specification {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"node specification {path} is not JSON: {error}") from None
    return NodeSpec.from_json(_object(data, "the file"))


def write_spec(spec: NodeSpec, path: Path) -> None:
    """Write ``spec`` for the owner's eyes only, replacing ``path`` atomically.

    Raises:
        ConfigError: options or state of an agent are not JSON-like.
    """
    try:
        text = json.dumps(spec.to_json())
    except (TypeError, ValueError) as error:
        names = ", ".join(agent.name for agent in spec.agents)
        raise ConfigError(f"options or saved state of {names} cannot travel to a process as JSON: {error}") from None
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    temporary.replace(path)


def _check_keys(kind: type, data: Mapping[str, Json], what: str) -> None:
    known = [entry.name for entry in fields(kind)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"{what} specification: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )


def _get(data: Mapping[str, Json], key: str, kind: type[ValueT], default: ValueT | None = None) -> ValueT:
    if key not in data:
        if default is None:
            raise ConfigError(f"node specification: {key!r} is missing")
        return default
    value: Any = data[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"node specification: {key!r} is {value!r}; expected {kind.__name__}")
    return value


def _object(data: Json, what: str) -> Mapping[str, Json]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"node specification: {what} holds {data!r}; expected an object")
    return data
