"""Agents of the user's own in a run directory: what a resumed run needs to build them again.

``agents.json`` lists every agent that is not the specialist of its name. A scenario file cannot name Python classes;
this file can, so that those outside the entry-point group ``swarm.agents`` are only imported where the user says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final

from scenarios.run_directory import RunDirectory
from scenarios.scenario import Scenario
from scenarios.wiring import build_team
from swarm.agent import Agent
from swarm.agent_factory import AGENT_GROUP, agent_class, build_agent, factory_of
from swarm.errors import CheckpointError, ConfigError
from swarm.messages import Json

ADVICE: Final = "continue this run in Python: run_scenario(..., resume=True, agents=[...])"


def save_own_agents(run: RunDirectory, agents: Sequence[Agent], scenario: Scenario) -> None:
    """Write down the agents that are not the specialists that ``scenario`` names; nothing where all are."""
    names = {name: kind for name in scenario.team.agents if (kind := _entry_point_class(name)) is not None}
    own = [agent for agent in agents if names.get(agent.name) is not type(agent)]
    if own:
        run.agents_file.write_text(json.dumps([_entry(agent, scenario) for agent in own], indent=1), encoding="utf-8")


def rebuild_agents(run: RunDirectory, scenario: Scenario, *, allow_import: bool = False) -> list[Agent] | None:
    """Return the whole team with the user's own agents in it; ``None`` where the scenario says it all.

    Args:
        allow_import: also import classes that no entry point names.

    Raises:
        CheckpointError: the file is damaged.
        ConfigError: an agent cannot be built again, or its class may not be imported.
    """
    if not run.agents_file.exists():
        return None
    try:
        entries = json.loads(run.agents_file.read_text(encoding="utf-8"))
        own = {str(entry["name"]): _rebuilt(entry, scenario, allow_import=allow_import) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{run.agents_file} is damaged: {type(error).__name__}: {error}") from error
    team = [own.pop(agent.name, agent) for agent in build_team(scenario)]
    return [*team, *own.values()]


def _entry(agent: Agent, scenario: Scenario) -> dict[str, Json]:
    entry: dict[str, Json] = {"name": agent.name, "factory": None, "options": None, "problem": ""}
    try:
        entry["factory"] = _entry_point_of(type(agent)) or factory_of(agent)
        if agent.options != scenario.team.to_json():
            entry["options"] = json.loads(json.dumps(dict(agent.options)))
    except ConfigError as error:
        entry["problem"] = str(error)
    except (TypeError, ValueError) as error:
        entry |= {"factory": None, "problem": f"agent {agent.name!r} has options that are not JSON: {error}"}
    return entry


def _rebuilt(entry: Mapping[str, Json], scenario: Scenario, *, allow_import: bool) -> Agent:
    name, factory, options = str(entry["name"]), entry["factory"], entry["options"]
    if factory is None:
        raise ConfigError(f"{entry['problem']}; {ADVICE}")
    if ":" in str(factory) and not allow_import:
        raise ConfigError(
            f"agent {name!r} is of the class {factory}, which is no entry point of the group {AGENT_GROUP}; "
            "add --allow-import if you trust this run directory"
        )
    team = scenario.team.to_json() if options is None else dict(options)  # type: ignore[arg-type]  # a JSON object
    return build_agent(str(factory), name, team, allow_import=allow_import)


def _entry_point_of(kind: type[Agent]) -> str | None:
    names = (point.name for point in entry_points(group=AGENT_GROUP))
    return next((name for name in sorted(names) if _entry_point_class(name) is kind), None)


def _entry_point_class(name: str) -> type[Agent] | None:
    try:
        return agent_class(name)
    except ConfigError:  # installed but not importable here, or none: then it is not this one
        return None
