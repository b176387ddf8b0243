"""Connections to what agents use besides the bus, by entry point."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from swarm.agent_factory import connect_service
from swarm.messages import Json


async def connect_all(
    services: Mapping[str, Mapping[str, Json]], stack: contextlib.AsyncExitStack
) -> dict[str, object]:
    """Connect every service of the entry-point group ``swarm.services``; ``stack`` closes those with ``aclose``.

    Raises:
        ConfigError: no entry point of that name, or its options are wrong.
    """
    clients: dict[str, object] = {}
    for name, options in services.items():
        clients[name] = await connect_service(name, options)
        aclose: Callable[[], Awaitable[None]] | None = getattr(clients[name], "aclose", None)
        if aclose is not None:
            stack.push_async_callback(aclose)
    return clients
