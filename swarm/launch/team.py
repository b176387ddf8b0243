"""What a launcher gets, what it gives back, and what every launcher does the same way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import structlog

from swarm.ablation import Faults
from swarm.agent import Agent
from swarm.bus import Bus
from swarm.errors import PeerLost
from swarm.messages import Goodbye, Heartbeat, Hello, Json, PeerDown
from swarm.supervisor import MAX_EVENTS, GaveUp, ProcessEvent, ProcessSpec
from swarm.topics import Topic

LAUNCHER: Final = "launcher"
"""Name of the launcher's own peer on the bus."""
SOCKETS: Final = "{sockets}"
"""In arguments and options of extra processes and services: the 0700 directory where this swarm's sockets live."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraProcess:
    """A process beside the agents, such as the environment bridge; `SOCKETS` in ``argv`` is filled in."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Team:
    """What is launched.

    Attributes:
        agents: all but the coordinator.
        coordinator: the managing agent.
        run_dir: exists; logs and the journal live there.
        journal: journal of accepted tasks; ``None``: the launcher decides.
        services: entry point of the group ``swarm.services`` → options; `SOCKETS` in texts is filled in.
        processes: supervised besides the agents.
        faults: interventions on what agents publish.
        state_of: committed state of an agent by name, asked for whenever it is (re)started; empty: its own ``save()``.
        on_process_event: called on the loop with each event of a supervised process; must not block.
    """

    agents: tuple[Agent, ...]
    coordinator: Agent
    run_dir: Path
    journal: Path | None = None
    services: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    processes: tuple[ExtraProcess, ...] = ()
    faults: Faults = field(default_factory=Faults)
    state_of: Callable[[str], Mapping[str, Json]] | None = None
    on_process_event: Callable[[ProcessEvent], None] | None = None


class Running:
    """A launched team.

    Attributes:
        bus: the launcher's own open peer.
        process_events: what happened to supervised processes, newest `MAX_EVENTS`.
        finished: ends with the coordinator's run, or with what ended the swarm before.
    """

    def __init__(self, bus: Bus, team: Team) -> None:
        self.bus = bus
        self.team = team
        self.process_events: deque[ProcessEvent] = deque(maxlen=MAX_EVENTS)
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self, error: Exception | None = None) -> None:
        """Settle `finished`; the first word counts."""
        if self.finished.done():
            return
        if error is None:
            self.finished.set_result(None)
        else:
            log.warning("swarm_ended_early", reason=str(error), error=type(error).__name__)
            self.finished.set_exception(error)
            self.finished.exception()  # read here: whether anyone waits is the embedder's choice

    def note(self, event: ProcessEvent) -> None:
        """Keep and pass on a process event; a process that is given up ends the swarm."""
        self.process_events.append(event)
        if isinstance(event, GaveUp):
            self.finish(PeerLost(event.reason))
        if self.team.on_process_event is not None:
            self.team.on_process_event(event)

    def mourn(self, message: object) -> None:
        """Publish a `PeerDown` of the supervisor while the bus is open."""
        if isinstance(message, PeerDown):
            self.bus.publish(message)

    async def wait_up(self, agents: set[str], timeout_s: float) -> None:
        """Wait until every one of ``agents`` was heard.

        Raises:
            PeerLost: ``timeout_s`` passed; names who is missing.
            Exception: what ended the swarm meanwhile.
        """
        missing = set(agents)
        listener = asyncio.create_task(self._hear_all(missing), name="wait_up")
        try:
            await asyncio.wait({listener, self.finished}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listener.cancel()
        if self.finished.done() and self.finished.exception() is not None:
            self.finished.result()
        if missing and not self.finished.done():
            raise PeerLost(
                f"{', '.join(sorted(missing))} did not come up within {timeout_s:g} s; see {self.team.run_dir / 'logs'}"
            )

    async def _hear_all(self, missing: set[str]) -> None:
        inbox = self.bus.subscribe(Topic.PRESENCE)
        try:
            while missing:
                message = getattr(await inbox.receive(), "message", None)
                if isinstance(message, Hello | Heartbeat):
                    missing.discard(message.agent)
                elif isinstance(message, Goodbye):
                    missing.discard(message.agent)  # it was up, however shortly
        finally:
            inbox.close()


class Launcher(Protocol):
    """Brings a team to life: ``async with launcher.launch(team) as running``; leaving it ends everything in 2 s."""

    def launch(self, team: Team) -> AbstractAsyncContextManager[Running]:
        """Launch ``team``; entering waits until every agent is up.

        Raises:
            ConfigError: something about the team is wrong.
            PeerLost: an agent or process did not come up.
        """
        ...


def filled_in(value: Json, sockets: Path) -> Json:
    """Return ``value`` with `SOCKETS` replaced in every text inside it."""
    if isinstance(value, str):
        return value.replace(SOCKETS, str(sockets))
    if isinstance(value, Mapping):
        return {key: filled_in(item, sockets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [filled_in(item, sockets) for item in value]
    return value


def filled_services(team: Team, sockets: Path) -> dict[str, dict[str, Json]]:
    """Return the team's services with `SOCKETS` filled in."""
    return {
        name: {key: filled_in(item, sockets) for key, item in options.items()}
        for name, options in team.services.items()
    }


def extra_spec(process: ExtraProcess, team: Team, sockets: Path) -> ProcessSpec:
    """Return what the supervisor needs to know of an extra process."""
    return ProcessSpec(
        name=process.name,
        argv=tuple(part.replace(SOCKETS, str(sockets)) for part in process.argv),
        env=process.env,
        log_path=team.run_dir / "logs" / f"{process.name}.log",
    )


def state_for(team: Team, agent: Agent) -> Mapping[str, Json]:
    """Return the state that ``agent`` starts from: what was committed, else what the given instance holds."""
    committed = team.state_of(agent.name) if team.state_of is not None else {}
    return committed or agent.save()
