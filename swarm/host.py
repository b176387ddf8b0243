"""Hosts one agent on one bus peer: listens, lets it bid and work, says that it is alive.

Every task of an agent lives in its host's task group. An agent's error while bidding is a refusal, while working a
failed award; an error in its own ``run`` ends the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Sequence
from typing import Final

import structlog

from swarm.agent import Agent
from swarm.bus import Bus, BusStatistics, Lost, Received, Subscription
from swarm.context import HostContext, NodeResources
from swarm.contract_events import (
    Abandon,
    ContractorEvent,
    ContractorInstruction,
    Heard,
    Perform,
    Performed,
    Propose,
    Proposed,
    Publish,
    Ticked,
    WakeAt,
)
from swarm.contractor import Contractor
from swarm.errors import BusClosed, CodecError, ConfigError, SwarmError, traceback_of
from swarm.gathering import TopicStore
from swarm.machine_loop import MachineLoop, publish_patiently
from swarm.management import MANAGES, ContractManager
from swarm.messages import (
    Announcement,
    Award,
    Cancel,
    Done,
    Failed,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Proposal,
    Refusal,
    Rejection,
)
from swarm.presence import HEARTBEAT_S
from swarm.submitting import SubmissionClient
from swarm.topics import Topic

MAX_REASON: Final = 500
log = structlog.get_logger(__name__)


def runs_by_itself(agent: Agent) -> bool:
    """Return whether the agent's class has a ``run`` of its own."""
    return type(agent).run is not Agent.run


class AgentHost:
    """One agent and its peer.

    Args:
        agent: taken over as it is; load its state before.
        bus: a closed peer under the agent's name; opened and closed by `serve`.
        node: what the agents of this process share.

    Attributes:
        ready: set once the agent has said hello and hears announcements.
    """

    def __init__(self, agent: Agent, bus: Bus, node: NodeResources) -> None:
        self.agent = agent
        self.ready = asyncio.Event()
        self._bus = bus
        self._stores = {topic: TopicStore(topic) for topic in agent.listens}
        self._manager = ContractManager(bus, journal=node.journal) if agent.manages else None
        self._client = SubmissionClient(bus)
        self._context = HostContext(
            agent.name, bus, node, self._stores, self._manager.contract if self._manager else self._client.submit
        )
        contractor = Contractor(agent.name, incarnation=bus.incarnation, skills=agent.skills, capacity=agent.capacity)
        self._machine: MachineLoop[ContractorEvent, ContractorInstruction] = MachineLoop(
            contractor.handle, self._execute, Ticked()
        )
        self._work: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._progress = 0

    def statistics(self) -> BusStatistics:
        """Counts of the agent's peer."""
        return self._bus.statistics()

    async def serve(self) -> None:
        """Host the agent until cancelled; a managing agent's ``run`` that ends also ends this.

        Raises:
            Exception: whatever ``agent.run`` raised.
            SwarmError: the bus or the journal failed.
        """
        async with self._bus:
            try:
                await self._serve_open()
            except BaseExceptionGroup as group:
                raise _first_error(group) from None
            finally:
                with contextlib.suppress(BusClosed):  # then nobody is left to tell
                    self._bus.publish(Goodbye(agent=self.agent.name, incarnation=self._bus.incarnation))

    async def _serve_open(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            services = [
                self._listen(self._bus.subscribe(Topic.TASKS, Topic.PRESENCE)),
                self._machine.run(),
                self._beat(),
                self._manager.run() if self._manager else self._client.run(),
                *[self._store(topic, self._bus.subscribe(topic, retained=True)) for topic in self._stores],
            ]
            tasks = [self._start(service, "host") for service in services]
            await asyncio.sleep(0)  # manager and client have subscribed from here on
            self._say_hello()
            self.ready.set()
            if not runs_by_itself(self.agent):
                return
            await self.agent.run(self._context)
            log.info("agent_run_ended", agent=self.agent.name)
            if self.agent.manages:
                for task in [*tasks, *self._work.values()]:
                    task.cancel()

    def _start(self, coroutine: Coroutine[None, None, None], what: str) -> asyncio.Task[None]:
        assert self._group is not None
        return self._group.create_task(coroutine, name=f"{self.agent.name}:{what}")

    # --- presence -----------------------------------------------------------------------------------------------------

    def _skills(self) -> tuple[str, ...]:
        return tuple(sorted(self.agent.skills | ({MANAGES} if self.agent.manages else set())))

    def _say_hello(self) -> None:
        self._bus.publish(
            Hello(
                agent=self.agent.name,
                incarnation=self._bus.incarnation,
                skills=self._skills(),
                capacity=self.agent.capacity,
                process_id=os.getpid(),
            )
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._bus.publish(
                Heartbeat(
                    agent=self.agent.name,
                    incarnation=self._bus.incarnation,
                    progress=self._progress,
                    skills=self._skills(),
                    capacity=self.agent.capacity,
                    process_id=os.getpid(),
                )
            )

    # --- what arrives -------------------------------------------------------------------------------------------------

    async def _listen(self, inbox: Subscription) -> None:
        """Feed the contractor, and greet a manager that (re)appears."""
        async for item in inbox:
            if isinstance(item, Lost):
                self._note_loss(item)
                continue
            message = item.message
            if isinstance(message, Announcement | Award | Rejection | Cancel):
                await self._machine.put(Heard(message))
            elif isinstance(message, Hello) and MANAGES in message.skills and item.sender != self.agent.name:
                self._say_hello()

    async def _store(self, topic: Topic, inbox: Subscription) -> None:
        async for item in inbox:
            if isinstance(item, Received):
                self._stores[topic].add(item.message)
            else:
                self._note_loss(item)

    def _note_loss(self, item: Lost) -> None:
        log.warning(
            "messages_lost", agent=self.agent.name, sender=item.sender, topic=item.topic.value, count=item.count
        )

    # --- bidding and working ------------------------------------------------------------------------------------------

    async def _execute(self, instructions: Sequence[ContractorInstruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Publish(message=message):
                    await self._publish(message)
                case Propose(announcement=announcement):
                    self._start(self._propose(announcement), f"propose {announcement.task_id}")
                case Perform(award=award):
                    key = (award.task_id, award.epoch)
                    self._work[key] = self._start(self._perform(award), f"perform {award.task_id}")
                case Abandon(task_id=task_id, epoch=epoch):
                    if (task := self._work.get((task_id, epoch))) is not None:
                        task.cancel()
                case WakeAt(due_s=due_s):
                    self._machine.wake_at(due_s)

    async def _publish(self, message: Message) -> None:
        allowed = self._context.allowed(message)
        if allowed is None:
            return
        try:
            await publish_patiently(self._bus, allowed)
        except CodecError as error:
            log.warning("answer_invalid", agent=self.agent.name, message=type(message).__name__, reason=str(error))
            await publish_patiently(self._bus, _instead_of(message, error))

    async def _propose(self, announcement: Announcement) -> None:
        answer: Proposal | Refusal
        try:
            answer = await self.agent.propose(announcement, self._context)
        except Exception as error:
            log.error("propose_failed", agent=self.agent.name, task_id=announcement.task_id, stack=traceback_of(error))
            answer = Refusal(
                task_id=announcement.task_id, epoch=announcement.epoch, agent=self.agent.name, reason=_reason(error)
            )
        self._progress += 1
        await self._machine.put(Proposed(answer))

    async def _perform(self, award: Award) -> None:
        outcome: Done | Failed
        name = self.agent.name
        try:
            result = await self.agent.perform(award, self._context)
            outcome = Done(task_id=award.task_id, epoch=award.epoch, agent=name, result=result, state=self.agent.save())
        except Exception as error:
            if isinstance(error, SwarmError):
                log.warning("perform_failed", agent=name, task_id=award.task_id, kind=award.kind, reason=str(error))
            else:
                log.error(
                    "perform_failed", agent=name, task_id=award.task_id, kind=award.kind, stack=traceback_of(error)
                )
            outcome = Failed(
                task_id=award.task_id,
                epoch=award.epoch,
                agent=name,
                reason=_reason(error),
                retryable=not isinstance(error, ConfigError),
                user_error=isinstance(error, ConfigError),
            )
        finally:
            self._work.pop((award.task_id, award.epoch), None)
        self._progress += 1
        await self._machine.put(Performed(outcome))


def _reason(error: Exception) -> str:
    """Return the text of our own errors, type and text of any other, within what a message may carry."""
    text = str(error) if isinstance(error, SwarmError) else f"{type(error).__name__}: {error}"
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def _instead_of(message: Message, error: CodecError) -> Message:
    """Return what to say where the agent's own answer is not a message (NaN in a bid, a result that is not JSON)."""
    reason = f"the answer of the agent is not a valid message: {_reason(error)}"
    match message:
        case Done(task_id=task_id, epoch=epoch, agent=agent):
            return Failed(task_id=task_id, epoch=epoch, agent=agent, reason=reason, retryable=False)
        case Proposal(task_id=task_id, epoch=epoch, agent=agent):
            return Refusal(task_id=task_id, epoch=epoch, agent=agent, reason=reason)
    raise error


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first leaf: the one that made the task group cancel everything else."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
