"""The manager's books: its tasks, timers and counts, and the instructions that an event has led to so far."""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Final

from swarm.contract_events import Instruction, Publish, Record, WakeAt
from swarm.contract_roster import Roster
from swarm.contract_task import Auction, Task, ended_entry
from swarm.contract_views import Counts, ManagerConfig, TaskState
from swarm.journal import JournalEntry
from swarm.messages import Accepted, Cancel, Ended, Message, Proposal, Rejection

EPOCH_BITS: Final = 20
Timer = tuple[float, str, int, str]
"""When it was due (monotonic seconds), task, epoch (0: the end of a rest), holder ('' for the auction)."""


class Books:
    """What the parts of a `swarm.contract_net.Manager` share. One event is handled at a time.

    Attributes:
        config: bounds.
        tasks: accepted tasks that have not ended, oldest first.
        finished: how others ended, as long as it is remembered.
        roster: who is there to do the work.
        waiting: tasks whose closed auction waits for busy winners, oldest first.
        counts: counters of this life.
        pending: proposals to open auctions.
    """

    def __init__(self, incarnation: int, config: ManagerConfig) -> None:
        self.config = config
        self.tasks: dict[str, Task] = {}
        self.finished: OrderedDict[str, Ended] = OrderedDict()
        self.roster = Roster(config.max_peers)
        self.waiting: OrderedDict[str, None] = OrderedDict()
        self.counts = Counts()
        self.pending = 0
        self._epoch = incarnation << EPOCH_BITS
        self._timers: list[tuple[float, int, str, int, str]] = []  # due, tie, task, epoch, holder
        self._num_timers = 0
        self._ends: Counter[TaskState] = Counter()
        self._out: list[Instruction] = []

    # --- instructions and time ----------------------------------------------------------------------------------------

    def publish(self, *messages: Message) -> None:
        """Have messages published, in order."""
        self._out += [Publish(message) for message in messages]

    def record(self, entry: JournalEntry) -> None:
        """Have ``entry`` made durable before what comes after it."""
        self._out.append(Record(entry))

    def publish_accepted(self, task_id: str) -> None:
        """Have the submitter told that its task cannot be lost any more."""
        self.publish(Accepted(task_id=task_id))

    def reject(self, proposal: Proposal) -> None:
        """Have a bidder told that it has not won."""
        self.counts.rejected += 1
        self.publish(Rejection(task_id=proposal.task_id, epoch=proposal.epoch, agent=proposal.agent))

    def next_epoch(self) -> int:
        """Return an epoch above all earlier ones."""
        self._epoch += 1
        return self._epoch

    def set_timer(self, due_s: float, task_id: str, epoch: int, agent: str = "") -> None:
        """Have `due_timers` give this at ``due_s``."""
        self._num_timers += 1
        heapq.heappush(self._timers, (due_s, self._num_timers, task_id, epoch, agent))

    def due_timers(self, now_s: float) -> Iterator[Timer]:
        """Give the timers that are due, in order, those included that are set meanwhile."""
        while self._timers and self._timers[0][0] <= now_s:
            due_s, _, task_id, epoch, agent = heapq.heappop(self._timers)
            yield due_s, task_id, epoch, agent

    def flush(self) -> list[Instruction]:
        """Return the instructions since the last call, and when to wake up."""
        out, self._out = self._out, []
        if self._timers:
            out.append(WakeAt(self._timers[0][0]))
        return out

    # --- tasks --------------------------------------------------------------------------------------------------------

    def states(self) -> Counter[TaskState]:
        """Count tasks by state, ended ones of this life included."""
        return Counter(task.state for task in self.tasks.values()) + self._ends

    def drop_holding(self, task: Task, agent: str) -> None:
        """Forget the award that ``agent`` holds of ``task``, if any."""
        if task.holdings.pop(agent, None) is not None:
            self.roster.count_awards(agent, -1)

    def reject_all(self, auction: Auction) -> None:
        """Turn down every proposal of an auction that comes to nothing."""
        proposals = auction.proposals()
        self.pending -= len(proposals)
        for proposal in proposals:
            self.reject(proposal)

    def end_if_complete(self, task_id: str) -> None:
        """End a task as done where nothing is to be sold or worked any more."""
        task = self.tasks[task_id]
        if not task.holdings and task.to_sell == 0 and task.auction is None and task.outcomes:
            self.end(task_id, TaskState.DONE, "")

    def end(self, task_id: str, status: TaskState, reason: str, *, user_error: bool = False) -> None:
        """Bring a task to a terminal state and tell everybody."""
        task = self.tasks.pop(task_id)
        self.waiting.pop(task_id, None)
        if task.auction is not None:
            self.reject_all(task.auction)
        for agent in list(task.holdings):
            self.drop_holding(task, agent)
        ended = task.ended(status, reason, user_error=user_error)
        self.record(ended_entry(ended))
        if status is not TaskState.DONE:
            self.publish(Cancel(task_id=task_id, epoch=self._epoch, reason=reason))
        self.publish(ended)
        self.remember(ended)

    def remember(self, ended: Ended) -> None:
        """Keep how a task ended, to answer a repeated submission."""
        self._ends[TaskState(ended.status)] += 1
        self.finished[ended.task_id] = ended
        while len(self.finished) > self.config.max_finished:
            self.finished.popitem(last=False)
