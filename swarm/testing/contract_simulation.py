"""A whole contract net in one thread on a manual clock, under seeded faults; the same seed gives the same history.

One manager (with its journal), four contractors and a submitter, joined by links that lose, repeat, delay and reorder
messages and are cut; contractors and the manager crash (the manager between any two of its instructions) and pause with
their inboxes filling (SIGSTOP). Faults stop at `FAULTS_UNTIL_S`; what must hold is checked after every event.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from swarm.contract_events import (
    Abandon,
    Answered,
    ContractorEvent,
    Heard,
    ManagerEvent,
    PeerGone,
    PeerUp,
    Perform,
    Performed,
    Propose,
    Proposed,
    Publish,
    Record,
    Reported,
    Submitted,
    Ticked,
    WakeAt,
)
from swarm.contract_net import Manager
from swarm.contractor import Contractor
from swarm.messages import (
    Accepted,
    Announcement,
    Award,
    Cancel,
    Done,
    Ended,
    Failed,
    Message,
    Progress,
    Proposal,
    Refusal,
    Rejection,
    Submission,
)
from swarm.testing.contract_invariants import ContractLog, check_invariants, check_quiet

FAULTS_UNTIL_S = 20.0
END_S = 200.0
MAX_PAUSE_S = 6.0
AGENTS = ("ada", "bob", "cyd", "dan")
FAULTS = ("lost", "repeated", "delayed", "cut", "contractor crash", "manager crash", "pause", "failed work")


@dataclass(slots=True)
class _Host:
    """A contractor's process: up or down, running or stopped."""

    contractor: Contractor
    up: bool = True
    paused_until_s: float = 0.0
    wake_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulation gave: faults really injected, how tasks ended, and every message sent (for replay)."""

    faults: Counter[str]
    statuses: Counter[str]
    history: tuple[tuple[float, str, Message], ...] = field(repr=False)


class ContractSimulation:
    """One seeded history. Other types of machine may be given, to see that a defect is found."""

    def __init__(
        self,
        seed: int,
        *,
        num_tasks: int = 8,
        manager_type: type[Manager] = Manager,
        contractor_type: type[Contractor] = Contractor,
    ) -> None:
        self._random = random.Random(seed)
        self._manager_type = manager_type
        self._contractor_type = contractor_type
        self._now_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._num_queued = 0
        self._faults: Counter[str] = Counter()
        self._history: list[tuple[float, str, Message]] = []
        self._log = ContractLog(slack_s=MAX_PAUSE_S)
        self._lives: Counter[str] = Counter()
        self._cut: dict[str, float] = {}
        self._heard_s: dict[str, float] = {}
        self._manager_up = True
        self._manager_paused_until_s = 0.0
        self._manager_wake_s: float | None = None
        self._manager = self._new_manager()
        self._hosts = {agent: _Host(self._new_contractor(agent)) for agent in AGENTS}
        self._open = {f"task-{n}": self._submission(f"task-{n}") for n in range(num_tasks)}

    def run(self) -> Outcome:
        """Run to the end. Raises ``AssertionError`` at the first event after which an invariant does not hold."""
        for task_id in self._open:
            self._at(self._random.uniform(0.0, 10.0), partial(self._submit, task_id))
        for agent in AGENTS:
            self._at(0.0, partial(self._beat, agent))
            self._at(self._random.uniform(1.0, 15.0), partial(self._trouble, agent))
        self._at(1.0, self._watch)
        self._at(self._random.uniform(1.0, 15.0), self._trouble_manager)
        while self._queue and self._queue[0][0] <= END_S:
            self._now_s, _, action = heapq.heappop(self._queue)
            self._log.now_s = self._now_s
            action()
            if self._manager_up:
                contractors = [host.contractor for host in self._hosts.values() if host.up]
                check_invariants(self._manager, contractors, self._log)
            if not self._open and self._now_s > FAULTS_UNTIL_S + MAX_PAUSE_S + 8.0:
                break
        assert not self._open, f"the submitter never heard of the end of {sorted(self._open)}"
        check_quiet(self._manager, [host.contractor for host in self._hosts.values()], self._log)
        statuses = Counter(ended.status for ended in self._log.ended.values())
        return Outcome(faults=self._faults, statuses=statuses, history=tuple(self._history))

    # --- the world ----------------------------------------------------------------------------------------------------

    def _at(self, due_s: float, action: Callable[[], None]) -> None:
        self._num_queued += 1
        heapq.heappush(self._queue, (due_s, self._num_queued, action))

    def _chance(self, probability: float, fault: str) -> bool:
        if self._now_s >= FAULTS_UNTIL_S or self._random.random() >= probability:
            return False
        self._faults[fault] += 1
        return True

    def _submission(self, task_id: str) -> Submission:
        draw = self._random
        awaited = AGENTS if draw.random() < 0.3 else ()
        return Submission(
            task_id=task_id,
            kind="work",
            submitter="client",
            units=draw.choice((1, 1, 1, 6)),
            awaited=awaited,
            lease_s=draw.uniform(2.5, 6.0),
            deadline_s=None if awaited and draw.random() < 0.5 else draw.uniform(0.5, 3.0),
        )

    def _send(self, link: str, message: Message, deliver: Callable[[Message], None]) -> None:
        """Carry a message over the link of an agent (or of the submitter), with its faults."""
        self._history.append((self._now_s, link, message))
        if self._cut.get(link, 0.0) > self._now_s:
            self._faults["cut"] += 1
            return
        if self._chance(0.04, "lost"):
            return
        copies = self._random.randint(2, 3) if self._chance(0.08, "repeated") else 1
        for _ in range(copies):
            delay_s = self._random.uniform(0.2, 4.0) if self._chance(0.1, "delayed") else 0.0
            self._at(self._now_s + delay_s + self._random.uniform(0.001, 0.02), lambda: deliver(message))

    def _submit(self, task_id: str) -> None:
        """Ask until told of the end."""
        if task_id in self._open:
            self._send("client", self._open[task_id], self._to_manager)
            self._at(self._now_s + 3.0, lambda: self._submit(task_id))

    def _to_client(self, message: Message) -> None:
        if isinstance(message, Ended):
            self._open.pop(message.task_id, None)

    # --- the manager's process ----------------------------------------------------------------------------------------

    def _new_manager(self) -> Manager:
        self._lives["manager"] += 1
        return self._manager_type("manager", incarnation=self._lives["manager"])

    def _to_manager(self, message: Message) -> None:
        if not self._manager_up:
            return
        if self._manager_paused_until_s > self._now_s:
            self._at(self._manager_paused_until_s, lambda: self._to_manager(message))
            return
        self._log.manager_heard(message)
        if isinstance(message, Submission):
            self._manage(Submitted(message))
        elif isinstance(message, Proposal | Refusal):
            self._manage(Answered(message))
        elif isinstance(message, Progress | Done | Failed):
            self._manage(Reported(message))

    def _manage(self, event: ManagerEvent) -> None:
        self._execute(self._manager.handle(event, self._now_s))

    def _execute(self, instructions: list[Publish | Record | WakeAt]) -> None:
        """Do what the manager decided; its process may die before any instruction."""
        for instruction in instructions:
            if self._chance(0.008, "manager crash"):
                self._crash_manager()
                return
            if isinstance(instruction, Record):
                self._log.recorded(instruction.entry)
            elif isinstance(instruction, Publish):
                self._log.published(instruction.message)
                self._broadcast(instruction.message)
            else:
                self._wake_manager(instruction.due_s)

    def _wake_manager(self, due_s: float) -> None:
        if due_s != self._manager_wake_s:
            self._manager_wake_s = due_s
            self._at(max(due_s, self._now_s), lambda: self._tick_manager(due_s))

    def _tick_manager(self, due_s: float) -> None:
        if not self._manager_up or due_s != self._manager_wake_s:
            return
        if self._manager_paused_until_s > self._now_s:
            self._at(self._manager_paused_until_s, lambda: self._tick_manager(due_s))
            return
        self._manager_wake_s = None
        self._manage(Ticked())

    def _broadcast(self, message: Message) -> None:
        if isinstance(message, Accepted | Ended):
            self._send("client", message, self._to_client)
            return
        for agent in AGENTS:
            self._send(agent, message, partial(self._to_contractor, agent))

    def _crash_manager(self) -> None:
        self._manager_up = False
        self._at(self._now_s + self._random.uniform(0.2, 3.0), self._start_manager)

    def _start_manager(self) -> None:
        self._manager_up = True
        self._manager_paused_until_s = 0.0
        self._manager_wake_s = None
        self._heard_s.clear()
        self._manager = self._new_manager()
        self._log.manager_restarted()
        self._execute(self._manager.restore(self._log.entries, self._now_s))

    def _trouble_manager(self) -> None:
        if self._manager_up and self._chance(0.5, "pause"):
            self._manager_paused_until_s = self._now_s + self._random.uniform(0.5, MAX_PAUSE_S)

    def _watch(self) -> None:
        """Three missed beats are a death."""
        for agent, heard_s in list(self._heard_s.items()):
            if self._manager_up and self._manager_paused_until_s <= self._now_s and self._now_s - heard_s > 3.0:
                del self._heard_s[agent]
                self._manage(PeerGone(agent, "three missed beats"))
        self._at(self._now_s + 1.0, self._watch)

    def _hear_beat(self, up: PeerUp) -> None:
        if self._manager_up and self._manager_paused_until_s <= self._now_s:
            self._heard_s[up.agent] = self._now_s
            self._manage(up)

    # --- a contractor's process ---------------------------------------------------------------------------------------

    def _new_contractor(self, agent: str) -> Contractor:
        self._lives[agent] += 1
        return self._contractor_type(
            agent, incarnation=self._lives[agent], skills=frozenset({"work"}), capacity=1 + len(agent) % 2
        )

    def _beat(self, agent: str) -> None:
        host = self._hosts[agent]
        if host.up and host.paused_until_s <= self._now_s and self._cut.get(agent, 0.0) <= self._now_s:
            contractor = host.contractor
            up = PeerUp(agent, contractor.skills, contractor.capacity, contractor.incarnation)
            if not self._chance(0.1, "lost"):
                self._at(self._now_s + 0.005, lambda: self._hear_beat(up))
        self._at(self._now_s + 1.0, lambda: self._beat(agent))

    def _trouble(self, agent: str) -> None:
        """Once in a while: crash, stop, or cut the link."""
        host = self._hosts[agent]
        if self._now_s >= FAULTS_UNTIL_S:
            return
        if host.up and self._chance(0.4, "contractor crash"):
            host.up = False
            self._at(self._now_s + self._random.uniform(0.3, 5.0), lambda: self._start_contractor(agent))
            if self._random.random() < 0.7:
                self._at(self._now_s + 0.01, lambda: self._supervisor_tells(agent))
        elif self._chance(0.5, "pause"):
            host.paused_until_s = self._now_s + self._random.uniform(1.0, MAX_PAUSE_S)
        else:
            self._cut[agent] = self._now_s + self._random.uniform(0.5, 5.0)
        self._at(self._now_s + self._random.uniform(4.0, 15.0), lambda: self._trouble(agent))

    def _supervisor_tells(self, agent: str) -> None:
        if self._manager_up and self._manager_paused_until_s <= self._now_s and not self._hosts[agent].up:
            self._heard_s.pop(agent, None)
            self._manage(PeerGone(agent, "its process ended"))

    def _start_contractor(self, agent: str) -> None:
        self._hosts[agent] = _Host(self._new_contractor(agent))

    def _to_contractor(self, agent: str, message: Message) -> None:
        if isinstance(message, Announcement | Award | Rejection | Cancel):
            self._drive(agent, self._lives[agent], Heard(message))

    def _drive(self, agent: str, life: int, event: ContractorEvent) -> None:
        host = self._hosts[agent]
        if not host.up or life != self._lives[agent]:
            return
        if host.paused_until_s > self._now_s:
            self._at(host.paused_until_s, lambda: self._drive(agent, life, event))
            return
        for instruction in host.contractor.handle(event, self._now_s):
            match instruction:
                case Publish(message):
                    self._send(agent, message, self._to_manager)
                case Propose(announcement):
                    answer = Proposed(self._answer(agent, announcement))
                    self._later(agent, self._random.uniform(0.0, 0.3), answer)
                case Perform(award):
                    self._log.performs(agent, life, award)
                    self._later(agent, self._random.uniform(0.1, 4.0), Performed(self._work(agent, award)))
                case WakeAt(due_s):
                    if host.wake_s is None or due_s < host.wake_s or host.wake_s <= self._now_s:
                        host.wake_s = due_s
                        self._later(agent, due_s - self._now_s, Ticked())
                case Abandon():
                    pass  # its outcome comes all the same, and must not count

    def _later(self, agent: str, delay_s: float, event: ContractorEvent) -> None:
        life = self._lives[agent]
        self._at(self._now_s + max(0.0, delay_s), lambda: self._drive(agent, life, event))

    def _answer(self, agent: str, announcement: Announcement) -> Proposal | Refusal:
        task_id, epoch = announcement.task_id, announcement.epoch
        if self._random.random() < 0.1:
            return Refusal(task_id=task_id, epoch=epoch, agent=agent, reason="busy elsewhere")
        values = sorted((self._random.random() for _ in range(min(4, announcement.units))), reverse=True)
        return Proposal(task_id=task_id, epoch=epoch, agent=agent, values=tuple(values))

    def _work(self, agent: str, award: Award) -> Done | Failed:
        if self._chance(0.05, "failed work"):
            return Failed(task_id=award.task_id, epoch=award.epoch, agent=agent, reason="it broke")
        return Done(task_id=award.task_id, epoch=award.epoch, agent=agent, result={"units": award.units})
