"""From a name to an agent or a service, and from an agent back to a name that a child process can use."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, cast

from swarm.agent import Agent
from swarm.errors import ConfigError
from swarm.messages import Json

AGENT_GROUP: Final = "swarm.agents"
SERVICE_GROUP: Final = "swarm.services"


def agent_class(factory: str, *, allow_import: bool = False) -> type[Agent]:
    """Return the class that ``factory`` names.

    Args:
        factory: an entry point of `AGENT_GROUP`, or ``module:Class`` where ``allow_import`` is true.

    Raises:
        ConfigError: unknown, not importable here, or not an agent.
    """
    found = _by_path(factory) if ":" in factory and allow_import else _by_entry_point(AGENT_GROUP, factory)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ConfigError(f"agent factory {factory!r} is {found!r}; expected a subclass of swarm.agent.Agent")
    return found


def build_agent(factory: str, name: str | None, options: Mapping[str, Json], *, allow_import: bool = False) -> Agent:
    """Return an agent of the named class. Raises ``ConfigError``."""
    found = agent_class(factory, allow_import=allow_import)
    try:
        return found(name, options)
    except TypeError as error:
        raise ConfigError(
            f"agent factory {factory!r} cannot be called as {found.__name__}(name, options): {error}"
        ) from None


def factory_of(agent: Agent) -> str:
    """Return the ``module:Class`` by which a child process can build an agent like ``agent``.

    Raises:
        ConfigError: the class lives in the script itself or inside a function, where no child can import it.
    """
    kind = type(agent)
    module, name = kind.__module__, kind.__qualname__
    if module == "__main__":
        problem = "is defined in the script itself"
    elif "<locals>" in name:
        problem = "is defined inside a function"
    elif not hasattr(sys.modules.get(module), name.partition(".")[0]):
        problem = f"cannot be found in its module {module!r}"
    else:
        return f"{module}:{name}"
    raise ConfigError(
        f"agent {agent.name!r}: class {kind.__name__} {problem}, so that a child process cannot import it; "
        "move it into a module, or run the swarm inline"
    )


async def connect_service(name: str, options: Mapping[str, Json]) -> object:
    """Return the connected client that the entry point ``name`` of `SERVICE_GROUP` makes. Raises ``ConfigError``."""
    connect = cast(Callable[[Mapping[str, Json]], Awaitable[object]], _by_entry_point(SERVICE_GROUP, name))
    return await connect(options)


def _by_entry_point(group: str, name: str) -> object:
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(sorted(found)) or 'none'}"
        raise ConfigError(f"{name!r} is not an entry point of the group {group!r}; {hint}")
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"entry point {name!r} ({found[name].value}) cannot be imported here: {error}") from None


def _by_path(path: str) -> object:
    module_name, _, name = path.partition(":")
    try:
        found: object = import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"agent factory {path!r} cannot be imported by the node: {error}") from None
    return found
