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

from collections.abc import Iterable, Mapping

from swarm.allocation import Allocator, greedy
from swarm.contract_auctions import Auctions
from swarm.contract_books import Books
from swarm.contract_events import (
    Answered,
    CancelAsked,
    Instruction,
    ManagerEvent,
    PeerGone,
    PeerUp,
    Reported,
    Submitted,
    Ticked,
)
from swarm.contract_task import (
    Holding,
    Outcome,
    Task,
    accepted_entry,
    fault_of_submission,
    replay,
    result_entry,
)
from swarm.contract_views import ManagerConfig, ManagerStatistics, PeerView, TaskState, TaskView
from swarm.errors import InvalidTransition
from swarm.journal import JournalEntry
from swarm.messages import Cancel, Done, Ended, Failed, Progress, Submission

__all__ = ["Manager", "ManagerConfig", "ManagerStatistics", "TaskState", "TaskView"]


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
        self._books = Books(incarnation, self.config)
        self._auctions = Auctions(self._books, allocate)

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
                self._auctions.answered(message, now_s)
            case Reported(message):
                self._reported(message, now_s)
            case PeerUp():
                self._peer_up(event, now_s)
            case PeerGone(agent, reason):
                self._peer_gone(agent, reason, now_s)
            case CancelAsked(task_id, reason):
                if task_id in self._books.tasks:
                    self._books.end(task_id, TaskState.CANCELLED, reason)
            case Ticked():
                self._ticked(now_s)
            case _:
                raise InvalidTransition(f"a manager takes no {type(event).__name__}")
        self._auctions.award_waiting(now_s)
        return self._books.flush()

    def restore(self, entries: Iterable[JournalEntry], now_s: float) -> list[Instruction]:
        """Take over what earlier lives recorded, before any event.

        Finished awards stay finished. What else was awarded is unknown now: it is cancelled and sold again under new
        epochs. Ended tasks answer a repeated submission.

        Raises:
            CheckpointError: an entry is not readable.
            InvalidTransition: this manager has already handled something.
        """
        books = self._books
        if books.tasks or books.finished:
            raise InvalidTransition("restore comes before the first event")
        books.tasks, finished = replay(entries)
        for ended in finished:
            books.remember(ended)
        for task_id in list(books.tasks):
            fence = Cancel(task_id=task_id, epoch=books.next_epoch(), reason="the manager was restarted")
            books.publish_accepted(task_id)
            books.publish(fence)
            if books.tasks[task_id].to_sell > 0:
                self._auctions.announce(task_id, now_s)
            else:
                books.end_if_complete(task_id)
        return books.flush()

    def statistics(self) -> ManagerStatistics:
        """Counts of this life."""
        return self._books.counts.statistics(self._books.states(), self._books.pending)

    def task(self, task_id: str) -> TaskView | None:
        """One task as it stands; ``None`` where it is unknown or was forgotten."""
        if task_id in self._books.finished:
            ended = self._books.finished[task_id]
            return TaskView(state=TaskState(ended.status), finished=ended.units)
        task = self._books.tasks.get(task_id)
        if task is None:
            return None
        return task.view(waits_for_capacity=task_id in self._books.waiting)

    def unfinished(self) -> tuple[str, ...]:
        """Ids of the accepted tasks that have not ended, oldest first."""
        return tuple(self._books.tasks)

    def ended(self, task_id: str) -> Ended | None:
        """How a task ended, as long as it is remembered."""
        return self._books.finished.get(task_id)

    def peers(self) -> Mapping[str, PeerView]:
        """Every agent that is remembered, by name."""
        return self._books.roster.view()

    # --- submissions --------------------------------------------------------------------------------------------------

    def _submitted(self, submission: Submission, now_s: float) -> None:
        books, task_id = self._books, submission.task_id
        if task_id in books.finished:
            books.counts.duplicates += 1
            books.publish_accepted(task_id)
            books.publish(books.finished[task_id])
            return
        if task_id in books.tasks:
            same = books.tasks[task_id].submission == submission
            books.counts.duplicates += same
            books.counts.conflicts += not same
            books.publish_accepted(task_id)
            return
        if fault := fault_of_submission(submission):
            books.counts.invalid += 1
            books.publish(Ended(task_id=task_id, status=TaskState.FAILED.value, reason=fault))
            return
        books.tasks[task_id] = Task(submission=submission, to_sell=submission.units)
        books.record(accepted_entry(submission))
        books.publish_accepted(task_id)
        self._auctions.announce(task_id, now_s)

    # --- work ---------------------------------------------------------------------------------------------------------

    def _reported(self, message: Progress | Done | Failed, now_s: float) -> None:
        books = self._books
        task = books.tasks.get(message.task_id)
        holding = self._current_holding(message)
        if task is None or holding is None:
            outcome = task.outcomes.get(message.agent) if task else None
            repeated = isinstance(message, Done) and outcome is not None and outcome.epoch == message.epoch
            books.counts.duplicates += repeated
            books.counts.fenced += not repeated
            return
        if isinstance(message, Progress):
            holding.lease_until_s = now_s + task.submission.lease_s
        elif isinstance(message, Done):
            books.drop_holding(task, message.agent)
            task.outcomes[message.agent] = Outcome(holding.epoch, holding.units, message.result, message.state)
            books.record(result_entry(message, holding.units))
            books.end_if_complete(message.task_id)
        else:
            self._failed(task, message, now_s)

    def _failed(self, task: Task, message: Failed, now_s: float) -> None:
        reason = f"{message.agent} failed: {message.reason}"
        if message.retryable and not message.user_error:
            self._lose(message.task_id, message.agent, reason, now_s, cancel=False)
        else:
            self._books.drop_holding(task, message.agent)
            self._books.end(message.task_id, TaskState.FAILED, reason, user_error=message.user_error)

    def _current_holding(self, message: Progress | Done | Failed) -> Holding | None:
        """The fence: the award that the message reports about, where it is still current."""
        task = self._books.tasks.get(message.task_id)
        holding = task.holdings.get(message.agent) if task else None
        return holding if holding is not None and holding.epoch == message.epoch else None

    def _lose(self, task_id: str, agent: str, reason: str, now_s: float, *, cancel: bool = True) -> None:
        """An award is void: sell its units again, unless the task has lost too many holders."""
        books = self._books
        task = books.tasks[task_id]
        holding = task.holdings[agent]
        books.drop_holding(task, agent)
        books.counts.lost_awards += 1
        task.losses.append(reason)
        task.to_sell += holding.units
        if cancel:
            books.publish(Cancel(task_id=task_id, epoch=holding.epoch, reason=reason, agent=agent))
        if len(task.losses) >= self.config.max_holders:
            reasons = "; ".join(task.losses)
            books.end(task_id, TaskState.FAILED, f"{len(task.losses)} holders were lost: {reasons}")
        elif task.auction is None and task.resting_until_s is None:
            self._auctions.announce(task_id, now_s)

    # --- peers --------------------------------------------------------------------------------------------------------

    def _peer_up(self, event: PeerUp, now_s: float) -> None:
        roster = self._books.roster
        if roster.is_older(event):
            self._books.counts.fenced += 1
            return
        if roster.is_newer(event):
            self._peer_gone(event.agent, "its process was replaced", now_s)
        if roster.update(event):
            self._auctions.peer_changed(event.agent, now_s)

    def _peer_gone(self, agent: str, reason: str, now_s: float) -> None:
        tasks = self._books.tasks
        if not self._books.roster.bury(agent):
            return
        for task_id in list(tasks):
            self._auctions.withdraw(task_id, agent, now_s)
            if task_id in tasks and agent in tasks[task_id].holdings:
                self._lose(task_id, agent, f"{agent} is gone: {reason}", now_s)
            if task_id in tasks:
                self._auctions.close_if_answered(task_id, now_s)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _ticked(self, now_s: float) -> None:
        for due_s, task_id, epoch, agent in self._books.due_timers(now_s):
            task = self._books.tasks.get(task_id)
            if task is None:
                continue
            if agent:
                self._lease_due(task, agent, epoch, now_s)
            elif epoch == 0:
                if task.resting_until_s == due_s:
                    self._auctions.announce(task_id, now_s)
            elif task.auction is not None and task.auction.epoch == epoch:
                self._auctions.due(task_id, task.auction, due_s, now_s)

    def _lease_due(self, task: Task, agent: str, epoch: int, now_s: float) -> None:
        holding = task.holdings.get(agent)
        if holding is None or holding.epoch != epoch:
            return
        if holding.lease_until_s > now_s:  # renewed meanwhile
            self._books.set_timer(holding.lease_until_s, task.submission.task_id, epoch, agent)
        else:
            self._lose(task.submission.task_id, agent, f"{agent} gave no sign of life within its lease", now_s)
