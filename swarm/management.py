"""The waiting shell of the contract net's manager: bus and clock in, publications and journal records out.

Promise: what is published was journalled before (where there is a journal), in the order in which it was decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from swarm.bus import Bus, Lost, Received, Subscription
from swarm.contract_events import (
    Answered,
    CancelAsked,
    Instruction,
    ManagerEvent,
    Publish,
    Record,
    Reported,
    Submitted,
    Ticked,
    WakeAt,
)
from swarm.contract_net import Manager
from swarm.contract_task import ACCEPTED, read_submission
from swarm.journal import Journal
from swarm.machine_loop import MachineLoop, publish_patiently
from swarm.messages import Done, Ended, Failed, Message, Progress, Proposal, Refusal, Submission
from swarm.presence import HEARTBEAT_S, PresenceTracker
from swarm.topics import Topic

log = structlog.get_logger(__name__)

MANAGES: Final = "manage"
"""Skill in the hello of an agent whose host runs the manager: who hears it says hello again at once."""


class ContractManager:
    """Auctions tasks under the name of ``bus``. ``run`` must be running while anyone waits for a contract.

    Args:
        bus: an open peer; ours to publish on, its owner closes it.
        journal: where accepted tasks survive; ``None``: in memory only, for swarms that end with their process.
        manager: the machine, for another allocation or configuration than the default.
    """

    def __init__(self, bus: Bus, *, journal: Journal | None = None, manager: Manager | None = None) -> None:
        incarnation = _life_of(bus) if journal is None else journal.incarnation
        self.rejected: dict[str, int] = {}
        self._bus = bus
        self._journal = journal
        self._manager = manager or Manager(bus.name, incarnation=incarnation)
        self._machine: MachineLoop[ManagerEvent, Instruction] = MachineLoop(
            self._manager.handle, self._execute, Ticked()
        )
        self._ended: dict[str, tuple[asyncio.Future[Ended], int]] = {}

    async def run(self) -> None:
        """Restore from the journal, then manage until cancelled. Raises ``SwarmError`` where the journal fails."""
        clock = asyncio.get_running_loop()
        inbox = self._bus.subscribe(Topic.TASKS, Topic.PROPOSALS, Topic.RESULTS, Topic.PRESENCE)
        if self._journal is not None:
            await self._execute(self._restored(self._journal, clock.time()))
        presence = PresenceTracker(clock.time())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._machine.run(), name=f"{self._bus.name}:manager")
            group.create_task(self._listen(inbox, presence), name=f"{self._bus.name}:manager-inbox")
            group.create_task(self._watch(presence), name=f"{self._bus.name}:manager-presence")

    def _restored(self, journal: Journal, now_s: float) -> list[Instruction]:
        """Take over what earlier lives accepted, except what the agent here had contracted: nobody waits for that."""
        entries = journal.entries()
        instructions = list(self._manager.restore(entries, now_s))
        unfinished = set(self._manager.unfinished())
        for entry in entries:
            if entry.kind != ACCEPTED or entry.task_id not in unfinished:
                continue
            if read_submission(entry).submitter == self._bus.name:
                event = CancelAsked(entry.task_id, "its submitter was restarted")
                instructions += self._manager.handle(event, now_s)
        return instructions

    async def contract(self, task: Submission) -> Ended:
        """Have ``task`` done and return how it ended; for callers in this process.

        Cancelling the last one who waits withdraws the task, and so does the end of this process: a later life must
        name its tasks differently.
        """
        future, waiters = self._ended.get(task.task_id) or (asyncio.get_running_loop().create_future(), 0)
        self._ended[task.task_id] = (future, waiters + 1)
        try:
            await self._machine.put(Submitted(task))
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done() and self._ended[task.task_id][1] == 1:
                self._machine.put_soon(CancelAsked(task.task_id, "its submitter stopped waiting"))
            raise
        finally:
            future, waiters = self._ended.pop(task.task_id)
            if waiters > 1:
                self._ended[task.task_id] = (future, waiters - 1)

    async def cancel(self, task_id: str, reason: str) -> None:
        """Withdraw a task; whoever waits for it learns of it by its end."""
        await self._machine.put(CancelAsked(task_id, reason))

    async def _listen(self, inbox: Subscription, presence: PresenceTracker) -> None:
        clock = asyncio.get_running_loop()
        async for item in inbox:
            if isinstance(item, Lost):
                log.warning("messages_lost", sender=item.sender, topic=item.topic.value, count=item.count)
            elif item.topic is Topic.PRESENCE:
                for event in presence.hear(item.message, clock.time()):
                    await self._machine.put(event)
            elif (message := self._event_of(item, presence)) is not None:
                await self._machine.put(message)

    def _event_of(self, item: Received, presence: PresenceTracker) -> ManagerEvent | None:
        """Return the event that ``item`` means to a manager; what speaks for another or a former life is counted."""
        message: Message = item.message
        if isinstance(message, Submission):
            return Submitted(message)
        if not isinstance(message, Proposal | Refusal | Progress | Done | Failed):
            return None
        known = presence.incarnation_of(item.sender)
        if message.agent != item.sender:
            self._reject("foreign-name", item)
            return None
        if known is not None and item.incarnation < known:
            self._reject("former-life", item)
            return None
        return Answered(message) if isinstance(message, Proposal | Refusal) else Reported(message)

    def _reject(self, reason: str, item: Received) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        log.warning("answer_rejected", reason=reason, sender=item.sender, message=type(item.message).__name__)

    async def _watch(self, presence: PresenceTracker) -> None:
        """Notice silence."""
        clock = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for event in presence.check(clock.time()):
                log.warning("peer_silent", agent=event.agent)
                await self._machine.put(event)

    async def _execute(self, instructions: Sequence[Instruction]) -> None:
        """Execute in order, except that all records of the batch go to disk first, together."""
        if self._journal is not None:
            entries = [instruction.entry for instruction in instructions if isinstance(instruction, Record)]
            await asyncio.gather(*[asyncio.wrap_future(self._journal.append_nowait(entry)) for entry in entries])
        for instruction in instructions:
            match instruction:
                case Publish(message=message):
                    await publish_patiently(self._bus, message)
                    if isinstance(message, Ended) and (waiting := self._ended.get(message.task_id)):
                        future, _ = waiting
                        if not future.done():
                            future.set_result(message)
                case WakeAt(due_s=due_s):
                    self._machine.wake_at(due_s)
                case Record():
                    pass  # on disk already


def _life_of(bus: Bus) -> int:
    """Return the peer's incarnation, in milliseconds where it is the clock's nanoseconds: epochs have 63 bits."""
    return bus.incarnation if bus.incarnation < 1 << 42 else bus.incarnation // 1_000_000
