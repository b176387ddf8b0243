"""An agent: skills, proposals, performance, state. Who hosts it is `swarm.host`; who auctions is `swarm.contract_net`.

The host calls, for each announcement of a kind in ``skills``::

    answer = await agent.propose(announcement, context)     # bus.publish(answer)
    ...if awarded:
    result = await agent.perform(award, context)            # bus.publish(Done(result=result, state=agent.save()))

``perform`` must be a pure function of the award's terms and of committed data: it may run twice, elsewhere, or for
nothing. Heavy computation goes through ``context.compute``, never on the event loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from swarm.messages import Announcement, Award, Ended, Json, Message, Proposal, Refusal, Submission
from swarm.topics import Topic

ReturnT = TypeVar("ReturnT")
KeyT = TypeVar("KeyT", bound=Hashable)


class AgentContext(Protocol):
    """What a host offers to its agent."""

    run_dir: Path

    def publish(self, message: Message) -> None:
        """Publish on the topic of the message's type."""
        ...

    async def compute(self, function: Callable[..., ReturnT], *args: object) -> ReturnT:
        """Run a blocking function on the node's single compute thread; calls run one at a time, in order."""
        ...

    async def gather(
        self, topic: Topic, key_of: Callable[[Message], KeyT | None], keys: Collection[KeyT], timeout_s: float
    ) -> dict[KeyT, Message]:
        """Wait until a message for each key has arrived on ``topic`` (which the agent must list in ``listens``).

        Messages that arrived before the call count as well. The first message per key wins.

        Raises:
            PeerLost: ``timeout_s`` passed; the text names the missing keys.
        """
        ...

    async def submit(self, task: Submission) -> Ended:
        """Have the manager auction ``task`` and wait for its end. Raises ``TaskFailed`` unless it ended ``done``."""
        ...

    def service(self, name: str) -> object:
        """A connected client named in the node's specification. Raises ``ConfigError`` for an unknown name."""
        ...


class Agent(ABC):
    """One specialist. Subclasses construct without arguments; ``options`` come from the scenario.

    Attributes:
        role: default of ``name``.
        skills: kinds of work that the agent may bid on.
        listens: topics that ``context.gather`` may be asked for.
        capacity: awards that it performs at once.
        manages: whether its host also runs the contract net's manager, under the agent's name.
    """

    role: ClassVar[str]
    skills: ClassVar[frozenset[str]] = frozenset()
    listens: ClassVar[frozenset[Topic]] = frozenset()
    capacity: ClassVar[int] = 8
    manages: ClassVar[bool] = False

    def __init__(self, name: str | None = None, options: Mapping[str, Json] | None = None) -> None:
        self.name = name or self.role
        self.options: Mapping[str, Json] = options or {}

    @abstractmethod
    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        """Answer an announcement of one of the agent's kinds of work."""

    @abstractmethod
    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Do the work and return its result. Raise ``PeerLost`` for what a retry may mend."""

    async def run(self, context: AgentContext) -> None:  # noqa: B027 - most agents only answer
        """Work of the agent's own initiative, started once with the agent; the coordinator's rounds live here."""

    def save(self) -> Mapping[str, Json]:
        """State to commit with the next result; must be small. Nothing by default."""
        return {}

    def load(self, state: Mapping[str, Json]) -> None:  # noqa: B027 - stateless by default
        """Take over the state that an earlier life of this agent committed."""
