"""What an agent may use while it is hosted: the `AgentContext` of `swarm.host`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from swarm.ablation import Ablation
from swarm.bus import Bus
from swarm.errors import ConfigError
from swarm.gathering import TopicStore
from swarm.journal import Journal
from swarm.messages import Ended, Message, Submission
from swarm.submitting import require_done
from swarm.topics import TOPIC_OF, Topic

ReturnT = TypeVar("ReturnT")
KeyT = TypeVar("KeyT", bound=Hashable)
log = structlog.get_logger(__name__)


def compute_thread() -> ThreadPoolExecutor:
    """Return the executor for ``context.compute``: one thread, so that kernels never share the node's cores."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="swarm-compute")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeResources:
    """What the agents of one process share.

    Attributes:
        compute: runs what is too heavy for the loop, one call at a time.
        services: connected clients by name.
        ablation: interventions on what is published.
        journal: for the managing agent; its agent reaches it as service ``journal``.
    """

    run_dir: Path
    compute: Executor
    services: Mapping[str, object] = field(default_factory=dict)
    ablation: Ablation = field(default_factory=Ablation)
    journal: Journal | None = None


class HostContext:
    """The `AgentContext` of one hosted agent."""

    def __init__(
        self,
        agent: str,
        bus: Bus,
        node: NodeResources,
        stores: Mapping[Topic, TopicStore],
        submit: Callable[[Submission], Awaitable[Ended]],
    ) -> None:
        self.run_dir = node.run_dir
        self._agent = agent
        self._bus = bus
        self._node = node
        self._stores = stores
        self._submit = submit
        self._noted: set[Topic] = set()

    def publish(self, message: Message) -> None:
        """Publish, as far as the node's interventions let it through. Raises what ``bus.publish`` raises."""
        allowed = self.allowed(message)
        if allowed is not None:
            self._bus.publish(allowed)

    def allowed(self, message: Message) -> Message | None:
        """Return what may travel in place of ``message``; says once per topic that something may not."""
        allowed = self._node.ablation.apply(message)
        if allowed is not message and (topic := TOPIC_OF[type(message)]) not in self._noted:
            self._noted.add(topic)
            log.warning("topic_stopped" if allowed is None else "topic_replaced", agent=self._agent, topic=topic.value)
        return allowed

    async def compute(self, function: Callable[..., ReturnT], *args: object) -> ReturnT:
        """Run ``function`` on the node's compute thread; a call that has begun runs to its end even when cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._node.compute, partial(function, *args))

    async def gather(
        self, topic: Topic, key_of: Callable[[Message], KeyT | None], keys: Collection[KeyT], timeout_s: float
    ) -> dict[KeyT, Message]:
        """Wait for a message for each key; see `AgentContext.gather`. Raises ``ConfigError`` for an unlisted topic."""
        if topic not in self._stores:
            raise ConfigError(f"agent {self._agent!r} does not listen to {topic.value!r}; add it to its 'listens'")
        return await self._stores[topic].gather(key_of, keys, timeout_s)

    async def submit(self, task: Submission) -> Ended:
        """Have the manager do ``task``. Raises ``TaskFailed`` unless it ended ``done``."""
        return require_done(await self._submit(task))

    def service(self, name: str) -> object:
        """Return a connected client. Raises ``ConfigError`` for an unknown name."""
        if name == "journal" and self._node.journal is not None:
            return self._node.journal
        if name not in self._node.services:
            known = ", ".join(sorted(self._node.services)) or "none"
            raise ConfigError(f"agent {self._agent!r} asked for service {name!r}; this node has: {known}")
        return self._node.services[name]
