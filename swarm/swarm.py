"""A swarm inside somebody else's program: ``async with Swarm(agents) as swarm``.

It belongs to the event loop that enters it. It sets no signal handler, no logging and no loop policy; when it is left,
by whatever way, its tasks and processes have ended within two seconds. Several swarms may live in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import structlog

from swarm.ablation import Faults
from swarm.agent import Agent, AgentContext
from swarm.bus import BusStatistics, Lost, Received, Subscription
from swarm.errors import BusClosed, ConfigError, SwarmError
from swarm.host import runs_by_itself
from swarm.launch.inline import InlineLauncher
from swarm.launch.team import LAUNCHER, ExtraProcess, Launcher, Running, Team
from swarm.messages import Announcement, Award, Ended, Json, Message, Proposal, Refusal, Submission
from swarm.names import NAME
from swarm.submitting import SubmissionClient, require_done
from swarm.supervisor import ProcessEvent
from swarm.topics import Topic

log = structlog.get_logger(__name__)


class Auctioneer(Agent):
    """The coordinator of a swarm that was given none: it runs the auctions and does nothing else."""

    role: ClassVar[str] = "coordinator"
    manages: ClassVar[bool] = True

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        """Refuse: without skills it is never asked."""
        return Refusal(
            task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, reason="it only runs auctions"
        )

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Never awarded anything, since it never bids."""
        raise SwarmError(f"agent {self.name!r} was awarded {award.task_id!r} without a bid")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SwarmOptions:
    """What most swarms leave as it is.

    Attributes:
        services: entry point of the group ``swarm.services`` → options of its ``connect``.
        processes: supervised besides the agents, such as the environment bridge.
        faults: interventions on what agents publish, for ablations.
        state_of: committed state of an agent by name, asked for whenever the agent is (re)started.
        on_process_event: called on the loop with each event of a supervised process; must not block.
    """

    services: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    processes: tuple[ExtraProcess, ...] = ()
    faults: Faults = field(default_factory=Faults)
    state_of: Callable[[str], Mapping[str, Json]] | None = None
    on_process_event: Callable[[ProcessEvent], None] | None = None


class EventStream:
    """What arrives on some topics, from the call of `Swarm.events` on; ends when the swarm is left.

    Losses are logged, and counted in `Swarm.statistics`.
    """

    def __init__(self, inbox: Subscription) -> None:
        self._inbox = inbox

    def __aiter__(self) -> Self:
        """Iterate over itself."""
        return self

    async def __anext__(self) -> Received:
        """Wait for the next message."""
        while True:
            try:
                item = await self._inbox.receive()
            except BusClosed:
                raise StopAsyncIteration from None
            if isinstance(item, Received):
                return item
            _note_loss(item)

    async def aclose(self) -> None:
        """Stop receiving."""
        self._inbox.close()


class Swarm:
    """A team of agents, alive while the context is open.

    Args:
        agents: the team; one of them may be the coordinator (a class with ``manages = True``).
        coordinator: the managing agent, if it is not among ``agents``; without any, an `Auctioneer`.
        launcher: where the agents live; all in this process by default.
        run_dir: where logs, journal and the agents' files go; kept. ``None``: a temporary one, removed at the end.
        options: the rest.

    Raises:
        ConfigError: names clash or are not valid, or the coordinator is not one.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        *,
        coordinator: Agent | None = None,
        launcher: Launcher | None = None,
        run_dir: Path | None = None,
        options: SwarmOptions | None = None,
    ) -> None:
        self._coordinator, self._agents = _find_coordinator(agents, coordinator)
        self._launcher = launcher or InlineLauncher()
        self._run_dir = run_dir
        self._options = options or SwarmOptions()
        self._stack: contextlib.AsyncExitStack | None = None
        self._running: Running | None = None
        self._client: SubmissionClient | None = None

    async def __aenter__(self) -> Self:
        """Launch the team and wait until every agent is up. Raises ``ConfigError`` or ``PeerLost``."""
        if self._stack is not None:
            raise ConfigError("this Swarm was entered before; make a new one")
        async with contextlib.AsyncExitStack() as stack:
            team = self._team(stack)
            self._running = await stack.enter_async_context(self._launcher.launch(team))
            self._client = SubmissionClient(self._running.bus)
            answers = asyncio.create_task(self._client.run(), name="swarm:answers")
            stack.push_async_callback(_cancel, answers)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End every task and process of the swarm, within two seconds."""
        assert self._stack is not None
        await self._stack.aclose()

    @property
    def run_dir(self) -> Path:
        """Where this swarm's files are."""
        return self._alive().team.run_dir

    def events(self, *topics: Topic) -> EventStream:
        """Return what arrives on ``topics`` (default: all) from now on."""
        return EventStream(self._alive().bus.subscribe(*(topics or tuple(Topic))))

    async def submit(self, task: Submission | str, terms: Mapping[str, Json] | None = None) -> Ended:
        """Have a task done: a whole `Submission`, or the kind of work and its terms.

        Cancelling the wait does not withdraw the task.

        Raises:
            TaskFailed: it ended other than ``done``.
            SwarmError: the swarm itself ended meanwhile, for that reason.
        """
        running = self._alive()
        assert self._client is not None
        if isinstance(task, str):
            task = Submission(
                task_id=f"{LAUNCHER}:{uuid.uuid4().hex}", kind=task, submitter=LAUNCHER, terms=terms or {}
            )
        elif terms is not None:
            raise ConfigError("a Submission carries its own terms; give terms only with the name of a kind of work")
        asking = asyncio.create_task(self._client.submit(task), name=f"submit {task.task_id}")
        try:
            either: set[asyncio.Future[Any]] = {asking, running.finished}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                running.finished.result()
                raise SwarmError(f"the swarm finished before task {task.task_id!r} ended")
            return require_done(asking.result())
        finally:
            asking.cancel()

    def publish(self, message: Message) -> None:
        """Publish under the launcher's name. Raises what ``bus.publish`` raises."""
        self._alive().bus.publish(message)

    def statistics(self) -> BusStatistics:
        """Counts of the launcher's peer, which hears every topic that `events` was asked for."""
        return self._alive().bus.statistics()

    def process_events(self) -> tuple[ProcessEvent, ...]:
        """Return what happened to supervised processes so far."""
        return tuple(self._alive().process_events)

    async def wait_finished(self) -> None:
        """Wait until the coordinator's run has ended.

        Raises:
            ConfigError: the coordinator has no run of its own, so that nothing would ever end.
            Exception: what the run raised, or what ended the swarm before.
        """
        running = self._alive()
        if not runs_by_itself(self._coordinator):
            raise ConfigError(f"agent {self._coordinator.name!r} has no run() of its own that could finish")
        await asyncio.shield(running.finished)

    def _alive(self) -> Running:
        if self._running is None:
            raise ConfigError("the swarm is not running; use it inside 'async with Swarm(...) as swarm:'")
        return self._running

    def _team(self, stack: contextlib.AsyncExitStack) -> Team:
        """Everything that is launched, in one place."""
        run_dir = self._run_dir
        if run_dir is None:
            run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-run-")))
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run directory {run_dir} cannot be made: {error.strerror}") from None
        return Team(
            agents=self._agents,
            coordinator=self._coordinator,
            run_dir=run_dir,
            journal=None if self._run_dir is None else run_dir / "journal.sqlite",
            services=self._options.services,
            processes=self._options.processes,
            faults=self._options.faults,
            state_of=self._options.state_of,
            on_process_event=self._options.on_process_event,
        )


def _find_coordinator(agents: Sequence[Agent], coordinator: Agent | None) -> tuple[Agent, tuple[Agent, ...]]:
    """Return the managing agent and the others."""
    managing = [agent for agent in agents if agent.manages]
    if coordinator is not None and not coordinator.manages:
        raise ConfigError(f"coordinator {coordinator.name!r} does not manage; set 'manages = True' in its class")
    if coordinator is None:
        coordinator = managing[0] if managing else Auctioneer()
    others = tuple(agent for agent in agents if agent is not coordinator)
    for agent in others:
        if agent.manages:
            raise ConfigError(f"both {coordinator.name!r} and {agent.name!r} manage; a swarm has one coordinator")
    names = [agent.name for agent in (coordinator, *others)]
    for name in names:
        if not NAME.fullmatch(name) or name == LAUNCHER:
            raise ConfigError(f"agent name {name!r} is not valid; expected {NAME.pattern}, not {LAUNCHER!r}")
        if names.count(name) > 1:
            raise ConfigError(f"two agents are called {name!r}; give each its own name")
    return coordinator, others


def _note_loss(item: Lost) -> None:
    log.warning("messages_lost", sender=item.sender, topic=item.topic.value, count=item.count)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
