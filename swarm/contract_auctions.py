"""Auctions of the contract net's manager: announce, hear bids, close, award."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from swarm.allocation import Allocator
from swarm.contract_books import Books
from swarm.contract_task import Auction, Holding, Task, fault_of_proposal, patience
from swarm.contract_views import TaskState
from swarm.messages import Proposal, Refusal, Submission


class Auctions:
    """Sells the units of tasks. ``award_waiting`` is to be called at the end of each event."""

    def __init__(self, books: Books, allocate: Allocator) -> None:
        self._books = books
        self._allocate = allocate
        self._answer_times: deque[float] = deque(maxlen=64)

    def announce(self, task_id: str, now_s: float) -> None:
        """Open an auction for the units that are to be sold."""
        books = self._books
        task = books.tasks[task_id]
        deadline_s = task.submission.deadline_s
        task.resting_until_s = None
        task.auction = Auction(
            epoch=books.next_epoch(),
            opened_s=now_s,
            closes_s=None if deadline_s is None else now_s + deadline_s,
            early_s=self._early_close(task.submission, now_s),
        )
        books.counts.auctions += 1
        books.publish(task.announcement(now_s))
        due = [now_s + books.config.reannounce_s, task.auction.closes_s, task.auction.early_s]
        for due_s in sorted({due_s for due_s in due if due_s is not None}):
            books.set_timer(due_s, task_id, task.auction.epoch)

    def _early_close(self, submission: Submission, now_s: float) -> float | None:
        """Adaptive deadline, where one is allowed and enough is known; never later than ``deadline_s``."""
        times, config = self._answer_times, self._books.config
        if submission.deadline_s is None or submission.awaited or len(times) < config.deadline_samples:
            return None
        wanted_s = max(config.min_patience_s, patience(times, config.deadline_mads))
        return now_s + min(submission.deadline_s, wanted_s)

    # --- answers ------------------------------------------------------------------------------------------------------

    def answered(self, answer: Proposal | Refusal, now_s: float) -> None:
        """Take an answer to an announcement."""
        books = self._books
        is_proposal = isinstance(answer, Proposal)
        task = books.tasks.get(answer.task_id)
        auction = task.auction if task else None
        if task is None or auction is None or auction.epoch != answer.epoch or auction.closed:
            books.counts.proposals += is_proposal
            books.counts.late += is_proposal
            return
        if answer.agent in auction.answers:
            books.counts.duplicates += 1
            return
        books.counts.proposals += is_proposal
        if not books.roster.may_bid(answer.agent, task.submission):
            books.counts.late += is_proposal
            return
        self._answer_times.append(max(0.0, now_s - auction.opened_s))
        if isinstance(answer, Proposal) and (fault := fault_of_proposal(answer)):
            books.counts.invalid += 1
            books.reject(answer)
            answer = Refusal(task_id=answer.task_id, epoch=answer.epoch, agent=answer.agent, reason=fault)
        books.pending += isinstance(answer, Proposal)
        auction.answers[answer.agent] = answer
        if auction.early_s is not None and auction.early_s <= now_s and auction.proposals():
            self._close(answer.task_id, now_s)
        else:
            self.close_if_answered(answer.task_id, now_s)

    def peer_changed(self, agent: str, now_s: float) -> None:
        """Ask an agent that is new, or can do other work than before; or stop waiting for what it cannot do."""
        for task_id, task in list(self._books.tasks.items()):
            if task.auction is None or task.auction.closed:
                continue
            if self._books.roster.may_bid(agent, task.submission) and agent not in task.auction.answers:
                self._books.publish(task.announcement(now_s))
            else:
                self.close_if_answered(task_id, now_s)

    def withdraw(self, task_id: str, agent: str, now_s: float) -> None:
        """Forget what a dead agent answered; where it is awaited, its next life may answer until the deadline."""
        task = self._books.tasks[task_id]
        if task.auction is None or agent not in task.auction.answers:
            return
        answer = task.auction.answers.pop(agent)
        if isinstance(answer, Proposal):
            self._books.pending -= 1
            self._books.reject(answer)
        closes_s = task.auction.closes_s
        if agent in task.submission.awaited and task.auction.closed and (closes_s is None or closes_s > now_s):
            task.auction.closed = False
            self._books.waiting.pop(task_id, None)

    # --- closing ------------------------------------------------------------------------------------------------------

    def close_if_answered(self, task_id: str, now_s: float) -> None:
        """Close once all awaited agents have answered; with nobody alive to answer, the deadline decides."""
        task = self._books.tasks[task_id]
        if task.auction is None or task.auction.closed:
            return
        awaited = self._books.roster.awaited(task.submission)
        if (awaited or task.submission.awaited) and awaited <= task.auction.answers.keys():
            self._close(task_id, now_s)

    def due(self, task_id: str, auction: Auction, due_s: float, now_s: float) -> None:
        """Repeat an open announcement, or close at a deadline."""
        books = self._books
        if due_s not in (auction.closes_s, auction.early_s):
            if not auction.closed:
                books.publish(books.tasks[task_id].announcement(now_s))
            books.set_timer(now_s + books.config.reannounce_s, task_id, auction.epoch)
        elif not auction.closed and (due_s == auction.closes_s or auction.proposals()):
            self._close(task_id, now_s)

    def _close(self, task_id: str, now_s: float) -> None:
        task = self._books.tasks[task_id]
        assert task.auction is not None
        if not task.auction.proposals():
            self._rest(task_id, now_s)
            return
        task.auction.closed = True
        self._books.waiting[task_id] = None  # awarded at the end of this event, where its winners are free

    def _rest(self, task_id: str, now_s: float) -> None:
        """Nobody bid: announce again after a growing while, at most R times."""
        books = self._books
        task = books.tasks[task_id]
        task.auction = None
        task.fruitless += 1
        if task.fruitless >= books.config.max_auctions:
            reason = f"no bid came on topic 'proposals' in {task.fruitless} auctions of {task.submission.kind!r}"
            books.end(task_id, TaskState.FAILED, reason)
            return
        rest_s = min(books.config.max_rest_s, books.config.rest_s * 2.0 ** (task.fruitless - 1))
        task.resting_until_s = now_s + rest_s
        books.set_timer(task.resting_until_s, task_id, 0)

    # --- awards -------------------------------------------------------------------------------------------------------

    def award_waiting(self, now_s: float) -> None:
        """Award every closed auction whose winners have capacity, oldest first."""
        books = self._books
        for task_id in list(books.waiting):
            task = books.tasks[task_id]
            auction = task.auction
            assert auction is not None
            proposals = auction.proposals()
            if not proposals:  # all bidders died meanwhile
                del books.waiting[task_id]
                self._rest(task_id, now_s)
                continue
            if task.submission.units == 1 and not task.submission.awaited:
                proposals = [proposal for proposal in proposals if self._has_room(task, proposal.agent)]
            won = task.allocate(proposals, self._allocate)
            if not proposals or not all(self._has_room(task, agent) for agent in won):
                continue
            del books.waiting[task_id]
            self._settle(task_id, auction, won, now_s)

    def _has_room(self, task: Task, agent: str) -> bool:
        """Whether one more award fits; one that replaces an award of the same task always does."""
        return agent in task.holdings or self._books.roster.has_room(agent)

    def _settle(self, task_id: str, auction: Auction, won: Mapping[str, int], now_s: float) -> None:
        """Tell winners and losers; what was not sold although somebody bid stays unsold."""
        books = self._books
        task = books.tasks[task_id]
        for agent, units in won.items():
            self._award(task, auction.epoch, agent, units, now_s)
        proposals = auction.proposals()
        books.pending -= len(proposals)
        for proposal in proposals:
            if proposal.agent in won:
                books.counts.accepted += 1
            else:
                books.reject(proposal)
        if not task.holdings and not task.outcomes:  # the strategy takes none of the bids
            self._rest(task_id, now_s)
            return
        books.counts.unsold += task.to_sell - sum(won.values())
        task.to_sell, task.fruitless, task.auction = 0, 0, None
        books.end_if_complete(task_id)

    def _award(self, task: Task, epoch: int, agent: str, units: int, now_s: float) -> None:
        """Award ``units`` more; what the agent already has of this task is done again with them, under one epoch."""
        books, submission = self._books, task.submission
        total = units + task.units_of(agent)
        books.drop_holding(task, agent)
        task.outcomes.pop(agent, None)
        until_s = now_s + submission.lease_s
        task.holdings[agent] = Holding(epoch=epoch, agent=agent, units=total, lease_until_s=until_s)
        books.roster.count_awards(agent, 1)
        books.set_timer(until_s, submission.task_id, epoch, agent)
        books.counts.awards += 1
        books.publish(task.award(agent))
