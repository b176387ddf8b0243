"""The manager's side of the contract net: who does what, as a pure state machine.

FIPA's contract net protocol (SC00029H) on top of Smith 1980, for tasks of one or several equal units::

    announced -> (proposals | refusals | deadline) -> awarded(epoch, lease) -> working(progress) -> done
        ^  nobody bid: rest, at most R auctions |         holder lost: sell its units again, at most R holders |

Epochs are ``(incarnation << 20) + n``: they grow over all tasks and over restarts, and fence whatever an older award
still sends. Deviations from FIPA: an announcement is repeated to who has not answered; units are re-sold while other
holders go on working (a re-announcement asks for the whole again, so that bids stay a pure function of the task, and
holders are offered from the unit after those they have; who wins more gets one award for all its units, under the new
epoch); units that nobody wants although somebody bid stay unsold, and ``Ended.units`` shows it.

Without ``awaited`` and with one unit, only bidders with free capacity are considered; otherwise the allocation ignores
who is busy and waits until all winners are free, so that it does not depend on timing.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import Final

from swarm.allocation import Allocator, greedy
from swarm.contract_events import (
    Answered,
    CancelAsked,
    Instruction,
    ManagerEvent,
    PeerGone,
    PeerUp,
    Publish,
    Record,
    Reported,
    Submitted,
    Ticked,
    WakeAt,
)
from swarm.contract_roster import Roster
from swarm.contract_task import (
    Auction,
    Holding,
    Outcome,
    Task,
    accepted_entry,
    ended_entry,
    fault_of_proposal,
    fault_of_submission,
    patience,
    replay,
    result_entry,
)
from swarm.contract_views import Counts, ManagerConfig, ManagerStatistics, PeerView, TaskState, TaskView
from swarm.errors import InvalidTransition
from swarm.journal import JournalEntry
from swarm.messages import (
    Accepted,
    Cancel,
    Done,
    Ended,
    Failed,
    Progress,
    Proposal,
    Refusal,
    Rejection,
    Submission,
)

__all__ = ["Manager", "ManagerConfig", "ManagerStatistics", "TaskState", "TaskView"]

EPOCH_BITS: Final = 20


class Manager:
    """Auctions tasks. ``handle`` events in, instructions out; it never waits and never reads a clock."""

    def __init__(
        self,
        name: str,
        *,
        incarnation: int,
        config: ManagerConfig | None = None,
        allocate: Allocator = greedy,
    ) -> None:
        """Make a manager that knows nothing yet.

        Args:
            name: of the agent that it decides for.
            incarnation: grows with each life (`Journal.incarnation`).
            config: bounds.
            allocate: strategy.
        """
        self.name = name
        self.config = config or ManagerConfig()
        self._allocate = allocate
        self._epoch = incarnation << EPOCH_BITS
        self._tasks: dict[str, Task] = {}
        self._finished: OrderedDict[str, Ended] = OrderedDict()
        self._roster = Roster(self.config.max_peers)
        self._waiting: OrderedDict[str, None] = OrderedDict()  # closed auctions whose winners are busy, oldest first
        self._timers: list[tuple[float, int, str, int, str]] = []  # due, tie, task, epoch, holder ('' for the auction)
        self._num_timers = 0
        self._answer_times: deque[float] = deque(maxlen=64)
        self._ends: Counter[TaskState] = Counter()
        self._counts = Counts()
        self._pending = 0
        self._out: list[Instruction] = []

    # --- what shells call ---------------------------------------------------------------------------------------------

    def handle(self, event: ManagerEvent, now_s: float) -> list[Instruction]:
        """Take one event and return what to do, in order.

        Args:
            event: what happened.
            now_s: monotonic clock, seconds.
        """
        match event:
            case Submitted(submission):
                self._submitted(submission, now_s)
            case Answered(message):
                self._answered(message, now_s)
            case Reported(message):
                self._reported(message, now_s)
            case PeerUp():
                self._peer_up(event, now_s)
            case PeerGone(agent, reason):
                self._peer_gone(agent, reason, now_s)
            case CancelAsked(task_id, reason):
                if task_id in self._tasks:
                    self._end(task_id, TaskState.CANCELLED, reason)
            case Ticked():
                self._ticked(now_s)
            case _:
                raise InvalidTransition(f"a manager takes no {type(event).__name__}")
        self._award_waiting(now_s)
        return self._flush()

    def restore(self, entries: Iterable[JournalEntry], now_s: float) -> list[Instruction]:
        """Take over what earlier lives recorded, before any event.

        Finished awards stay finished. What else was awarded is unknown now: it is cancelled and sold again under new
        epochs. Ended tasks answer a repeated submission.

        Raises:
            CheckpointError: an entry is not readable.
            InvalidTransition: this manager has already handled something.
        """
        if self._tasks or self._finished:
            raise InvalidTransition("restore comes before the first event")
        self._tasks, finished = replay(entries)
        for ended in finished:
            self._remember(ended)
        for task_id in list(self._tasks):
            fence = Cancel(task_id=task_id, epoch=self._next_epoch(), reason="the manager was restarted")
            self._publish_accepted(task_id)
            self._out.append(Publish(fence))
            self._go_on(task_id, now_s)
        return self._flush()

    def statistics(self) -> ManagerStatistics:
        """Counts of this life."""
        states = Counter(task.state for task in self._tasks.values())
        return self._counts.statistics(states + self._ends, self._pending)

    def task(self, task_id: str) -> TaskView | None:
        """One task as it stands; ``None`` where it is unknown or was forgotten."""
        if task_id in self._finished:
            ended = self._finished[task_id]
            return TaskView(state=TaskState(ended.status), finished=ended.units)
        task = self._tasks.get(task_id)
        if task is None:
            return None
        return task.view(waits_for_capacity=task_id in self._waiting)

    def unfinished(self) -> tuple[str, ...]:
        """Ids of the accepted tasks that have not ended, oldest first."""
        return tuple(self._tasks)

    def ended(self, task_id: str) -> Ended | None:
        """How a task ended, as long as it is remembered."""
        return self._finished.get(task_id)

    def peers(self) -> Mapping[str, PeerView]:
        """Every agent that is remembered, by name."""
        return self._roster.view()

    # --- submissions --------------------------------------------------------------------------------------------------

    def _submitted(self, submission: Submission, now_s: float) -> None:
        task_id = submission.task_id
        if task_id in self._finished:
            self._counts.duplicates += 1
            self._out += [Publish(Accepted(task_id=task_id)), Publish(self._finished[task_id])]
            return
        if task_id in self._tasks:
            same = self._tasks[task_id].submission == submission
            self._counts.duplicates += same
            self._counts.conflicts += not same
            self._publish_accepted(task_id)
            return
        if fault := fault_of_submission(submission):
            self._counts.invalid += 1
            self._out.append(Publish(Ended(task_id=task_id, status=TaskState.FAILED.value, reason=fault)))
            return
        self._tasks[task_id] = Task(submission=submission, to_sell=submission.units)
        self._out.append(Record(accepted_entry(submission)))
        self._publish_accepted(task_id)
        self._announce(task_id, now_s)

    def _publish_accepted(self, task_id: str) -> None:
        self._out.append(Publish(Accepted(task_id=task_id)))

    # --- auctions -----------------------------------------------------------------------------------------------------

    def _announce(self, task_id: str, now_s: float) -> None:
        """Open an auction for the units that are to be sold."""
        task = self._tasks[task_id]
        deadline_s = task.submission.deadline_s
        task.resting_until_s = None
        task.auction = Auction(
            epoch=self._next_epoch(),
            opened_s=now_s,
            closes_s=None if deadline_s is None else now_s + deadline_s,
            early_s=self._early_close(task.submission, now_s),
        )
        self._counts.auctions += 1
        self._publish_announcement(task, now_s)
        due = [now_s + self.config.reannounce_s, task.auction.closes_s, task.auction.early_s]
        for due_s in sorted({due_s for due_s in due if due_s is not None}):
            self._set_timer(due_s, task_id, task.auction.epoch)

    def _early_close(self, submission: Submission, now_s: float) -> float | None:
        """Adaptive deadline, where one is allowed and enough is known; never later than ``deadline_s``."""
        times = self._answer_times
        if submission.deadline_s is None or submission.awaited or len(times) < self.config.deadline_samples:
            return None
        wanted_s = max(self.config.min_patience_s, patience(times, self.config.deadline_mads))
        return now_s + min(submission.deadline_s, wanted_s)

    def _publish_announcement(self, task: Task, now_s: float) -> None:
        self._out.append(Publish(task.announcement(now_s)))

    def _answered(self, answer: Proposal | Refusal, now_s: float) -> None:
        is_proposal = isinstance(answer, Proposal)
        task = self._tasks.get(answer.task_id)
        auction = task.auction if task else None
        if task is None or auction is None or auction.epoch != answer.epoch or auction.closed:
            self._counts.proposals += is_proposal
            self._counts.late += is_proposal
            return
        if answer.agent in auction.answers:
            self._counts.duplicates += 1
            return
        self._counts.proposals += is_proposal
        if not self._roster.may_bid(answer.agent, task.submission):
            self._counts.late += is_proposal
            return
        self._answer_times.append(max(0.0, now_s - auction.opened_s))
        if isinstance(answer, Proposal) and (fault := fault_of_proposal(answer)):
            self._counts.invalid += 1
            self._reject(answer)
            answer = Refusal(task_id=answer.task_id, epoch=answer.epoch, agent=answer.agent, reason=fault)
        self._pending += isinstance(answer, Proposal)
        auction.answers[answer.agent] = answer
        if auction.early_s is not None and auction.early_s <= now_s and auction.proposals():
            self._close(answer.task_id, now_s)
        else:
            self._close_if_answered(answer.task_id, now_s)

    def _reject(self, proposal: Proposal) -> None:
        self._counts.rejected += 1
        self._out.append(Publish(Rejection(task_id=proposal.task_id, epoch=proposal.epoch, agent=proposal.agent)))

    def _close_if_answered(self, task_id: str, now_s: float) -> None:
        """Close once all awaited agents have answered; with nobody alive to answer, the deadline decides."""
        task = self._tasks[task_id]
        if task.auction is None or task.auction.closed:
            return
        awaited = self._roster.awaited(task.submission)
        if (awaited or task.submission.awaited) and awaited <= task.auction.answers.keys():
            self._close(task_id, now_s)

    def _close(self, task_id: str, now_s: float) -> None:
        task = self._tasks[task_id]
        assert task.auction is not None
        if not task.auction.proposals():
            self._rest(task_id, now_s)
            return
        task.auction.closed = True
        self._waiting[task_id] = None  # awarded at the end of this event, where its winners are free

    def _rest(self, task_id: str, now_s: float) -> None:
        """Nobody bid: announce again after a growing while, at most R times."""
        task = self._tasks[task_id]
        task.auction = None
        task.fruitless += 1
        if task.fruitless >= self.config.max_auctions:
            reason = f"no bid came on topic 'proposals' in {task.fruitless} auctions of {task.submission.kind!r}"
            self._end(task_id, TaskState.FAILED, reason)
            return
        rest_s = min(self.config.max_rest_s, self.config.rest_s * 2.0 ** (task.fruitless - 1))
        task.resting_until_s = now_s + rest_s
        self._set_timer(task.resting_until_s, task_id, 0)

    def _award_waiting(self, now_s: float) -> None:
        """Award every closed auction whose winners have capacity, oldest first."""
        for task_id in list(self._waiting):
            task = self._tasks[task_id]
            auction = task.auction
            assert auction is not None
            proposals = auction.proposals()
            if not proposals:  # all bidders died meanwhile
                del self._waiting[task_id]
                self._rest(task_id, now_s)
                continue
            if task.submission.units == 1 and not task.submission.awaited:
                proposals = [proposal for proposal in proposals if self._has_room(task, proposal.agent)]
            won = task.allocate(proposals, self._allocate)
            if not proposals or not all(self._has_room(task, agent) for agent in won):
                continue
            del self._waiting[task_id]
            self._settle(task_id, auction, won, now_s)

    def _has_room(self, task: Task, agent: str) -> bool:
        """Whether one more award fits; one that replaces an award of the same task always does."""
        return agent in task.holdings or self._roster.has_room(agent)

    def _settle(self, task_id: str, auction: Auction, won: Mapping[str, int], now_s: float) -> None:
        """Tell winners and losers; what was not sold although somebody bid stays unsold."""
        task = self._tasks[task_id]
        for agent, units in won.items():
            self._award(task, auction.epoch, agent, units, now_s)
        proposals = auction.proposals()
        self._pending -= len(proposals)
        for proposal in proposals:
            if proposal.agent in won:
                self._counts.accepted += 1
            else:
                self._reject(proposal)
        if not task.holdings and not task.outcomes:  # the strategy takes none of the bids
            self._rest(task_id, now_s)
            return
        self._counts.unsold += task.to_sell - sum(won.values())
        task.to_sell, task.fruitless, task.auction = 0, 0, None
        self._end_if_complete(task_id)

    def _award(self, task: Task, epoch: int, agent: str, units: int, now_s: float) -> None:
        """Award ``units`` more; what the agent already has of this task is done again with them, under one epoch."""
        submission = task.submission
        total = units + task.units_of(agent)
        self._drop_holding(task, agent)
        task.outcomes.pop(agent, None)
        until_s = now_s + submission.lease_s
        task.holdings[agent] = Holding(epoch=epoch, agent=agent, units=total, lease_until_s=until_s)
        self._roster.count_awards(agent, 1)
        self._set_timer(until_s, submission.task_id, epoch, agent)
        self._counts.awards += 1
        self._out.append(Publish(task.award(agent)))

    # --- work ---------------------------------------------------------------------------------------------------------

    def _reported(self, message: Progress | Done | Failed, now_s: float) -> None:
        task = self._tasks.get(message.task_id)
        holding = self._current_holding(message)
        if task is None or holding is None:
            outcome = task.outcomes.get(message.agent) if task else None
            repeated = isinstance(message, Done) and outcome is not None and outcome.epoch == message.epoch
            self._counts.duplicates += repeated
            self._counts.fenced += not repeated
            return
        if isinstance(message, Progress):
            holding.lease_until_s = now_s + task.submission.lease_s
        elif isinstance(message, Done):
            self._drop_holding(task, message.agent)
            task.outcomes[message.agent] = Outcome(holding.epoch, holding.units, message.result, message.state)
            self._out.append(Record(result_entry(message, holding.units)))
            self._end_if_complete(message.task_id)
        elif message.retryable:
            self._lose(message.task_id, message.agent, f"{message.agent} failed: {message.reason}", now_s, cancel=False)
        else:
            self._drop_holding(task, message.agent)
            self._end(message.task_id, TaskState.FAILED, f"{message.agent} failed: {message.reason}")

    def _current_holding(self, message: Progress | Done | Failed) -> Holding | None:
        """The fence: the award that the message reports about, where it is still current."""
        task = self._tasks.get(message.task_id)
        holding = task.holdings.get(message.agent) if task else None
        return holding if holding is not None and holding.epoch == message.epoch else None

    def _drop_holding(self, task: Task, agent: str) -> None:
        if task.holdings.pop(agent, None) is not None:
            self._roster.count_awards(agent, -1)

    def _lose(self, task_id: str, agent: str, reason: str, now_s: float, *, cancel: bool = True) -> None:
        """An award is void: sell its units again, unless the task has lost too many holders."""
        task = self._tasks[task_id]
        holding = task.holdings[agent]
        self._drop_holding(task, agent)
        self._counts.lost_awards += 1
        task.losses.append(reason)
        task.to_sell += holding.units
        if cancel:
            self._out.append(Publish(Cancel(task_id=task_id, epoch=holding.epoch, reason=reason, agent=agent)))
        if len(task.losses) >= self.config.max_holders:
            reasons = "; ".join(task.losses)
            self._end(task_id, TaskState.FAILED, f"{len(task.losses)} holders were lost: {reasons}")
        elif task.auction is None and task.resting_until_s is None:
            self._announce(task_id, now_s)

    def _go_on(self, task_id: str, now_s: float) -> None:
        if self._tasks[task_id].to_sell > 0:
            self._announce(task_id, now_s)
        else:
            self._end_if_complete(task_id)

    def _end_if_complete(self, task_id: str) -> None:
        task = self._tasks[task_id]
        if not task.holdings and task.to_sell == 0 and task.auction is None and task.outcomes:
            self._end(task_id, TaskState.DONE, "")

    def _end(self, task_id: str, status: TaskState, reason: str) -> None:
        task = self._tasks.pop(task_id)
        self._waiting.pop(task_id, None)
        if task.auction is not None:
            proposals = task.auction.proposals()
            self._pending -= len(proposals)
            for proposal in proposals:
                self._reject(proposal)
        for agent in list(task.holdings):
            self._drop_holding(task, agent)
        ended = task.ended(status, reason)
        self._out.append(Record(ended_entry(ended)))
        if status is not TaskState.DONE:
            self._out.append(Publish(Cancel(task_id=task_id, epoch=self._epoch, reason=reason)))
        self._out.append(Publish(ended))
        self._remember(ended)

    def _remember(self, ended: Ended) -> None:
        self._ends[TaskState(ended.status)] += 1
        self._finished[ended.task_id] = ended
        while len(self._finished) > self.config.max_finished:
            self._finished.popitem(last=False)

    # --- peers --------------------------------------------------------------------------------------------------------

    def _peer_up(self, event: PeerUp, now_s: float) -> None:
        if self._roster.is_older(event):
            self._counts.fenced += 1
            return
        if self._roster.is_newer(event):
            self._peer_gone(event.agent, "its process was replaced", now_s)
        if not self._roster.update(event):
            return
        for task_id, task in list(self._tasks.items()):
            if task.auction is None or task.auction.closed:
                continue
            if self._roster.may_bid(event.agent, task.submission) and event.agent not in task.auction.answers:
                self._publish_announcement(task, now_s)
            else:
                self._close_if_answered(task_id, now_s)

    def _peer_gone(self, agent: str, reason: str, now_s: float) -> None:
        if not self._roster.bury(agent):
            return
        for task_id in list(self._tasks):
            self._withdraw_answer(task_id, agent, now_s)
            if task_id in self._tasks and agent in self._tasks[task_id].holdings:
                self._lose(task_id, agent, f"{agent} is gone: {reason}", now_s)
            if task_id in self._tasks:
                self._close_if_answered(task_id, now_s)

    def _withdraw_answer(self, task_id: str, agent: str, now_s: float) -> None:
        """Forget what a dead agent answered; where it is awaited, its next life may answer until the deadline."""
        task = self._tasks[task_id]
        if task.auction is None or agent not in task.auction.answers:
            return
        answer = task.auction.answers.pop(agent)
        if isinstance(answer, Proposal):
            self._pending -= 1
            self._reject(answer)
        closes_s = task.auction.closes_s
        if agent in task.submission.awaited and task.auction.closed and (closes_s is None or closes_s > now_s):
            task.auction.closed = False
            self._waiting.pop(task_id, None)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _ticked(self, now_s: float) -> None:
        while self._timers and self._timers[0][0] <= now_s:
            due_s, _, task_id, epoch, agent = heapq.heappop(self._timers)
            task = self._tasks.get(task_id)
            if task is None:
                continue
            if agent:
                self._lease_due(task, agent, epoch, now_s)
            elif epoch == 0:
                if task.resting_until_s == due_s:
                    self._announce(task_id, now_s)
            elif task.auction is not None and task.auction.epoch == epoch:
                self._auction_due(task_id, task.auction, due_s, now_s)

    def _lease_due(self, task: Task, agent: str, epoch: int, now_s: float) -> None:
        holding = task.holdings.get(agent)
        if holding is None or holding.epoch != epoch:
            return
        if holding.lease_until_s > now_s:  # renewed meanwhile
            self._set_timer(holding.lease_until_s, task.submission.task_id, epoch, agent)
        else:
            self._lose(task.submission.task_id, agent, f"{agent} gave no sign of life within its lease", now_s)

    def _auction_due(self, task_id: str, auction: Auction, due_s: float, now_s: float) -> None:
        if due_s not in (auction.closes_s, auction.early_s):
            if not auction.closed:
                self._publish_announcement(self._tasks[task_id], now_s)
            self._set_timer(now_s + self.config.reannounce_s, task_id, auction.epoch)
        elif not auction.closed and (due_s == auction.closes_s or auction.proposals()):
            self._close(task_id, now_s)

    def _set_timer(self, due_s: float, task_id: str, epoch: int, agent: str = "") -> None:
        self._num_timers += 1
        heapq.heappush(self._timers, (due_s, self._num_timers, task_id, epoch, agent))

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _flush(self) -> list[Instruction]:
        out, self._out = self._out, []
        if self._timers:
            out.append(WakeAt(self._timers[0][0]))
        return out
