"""What the manager of the contract net knows about one task, and how it is written to the journal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Final, TypeVar

from swarm.allocation import Allocator, Bid
from swarm.contract_views import TaskState, TaskView
from swarm.errors import CheckpointError
from swarm.journal import JournalEntry
from swarm.messages import Announcement, Award, Done, Ended, Json, Proposal, Refusal, Submission

ACCEPTED: Final = "accepted"
RESULT: Final = "result"
ENDED: Final = "ended"
BuiltT = TypeVar("BuiltT")


@dataclass(slots=True)
class Auction:
    """One announcement: who answered what. ``closed``: its deadline is over, it only waits for a free winner."""

    epoch: int
    opened_s: float
    closes_s: float | None
    early_s: float | None
    answers: dict[str, Proposal | Refusal] = field(default_factory=dict)
    closed: bool = False

    def proposals(self) -> list[Proposal]:
        """Bids so far, by name."""
        return [answer for _, answer in sorted(self.answers.items()) if isinstance(answer, Proposal)]


@dataclass(slots=True)
class Holding:
    """An award that was neither finished nor lost yet."""

    epoch: int
    agent: str
    units: int
    lease_until_s: float


@dataclass(slots=True)
class Outcome:
    """A finished award; it is in the journal."""

    epoch: int
    units: int
    result: Mapping[str, Json]
    state: Mapping[str, Json]


@dataclass(slots=True)
class Task:
    """An accepted task that has not ended.

    Attributes:
        to_sell: units that nobody holds or has finished.
        fruitless: auctions in a row in which nobody bid.
        losses: why holders were lost, oldest first.
    """

    submission: Submission
    to_sell: int
    auction: Auction | None = None
    resting_until_s: float | None = None
    fruitless: int = 0
    losses: list[str] = field(default_factory=list)
    holdings: dict[str, Holding] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def state(self) -> TaskState:
        """Its state, as long as it has not ended."""
        if self.auction is not None:
            return TaskState.ANNOUNCED
        return TaskState.RESTING if self.resting_until_s is not None else TaskState.WORKING

    def units_of(self, agent: str) -> int:
        """Units that ``agent`` holds or has finished."""
        if agent in self.holdings:
            return self.holdings[agent].units
        return self.outcomes[agent].units if agent in self.outcomes else 0

    def allocate(self, proposals: Sequence[Proposal], strategy: Allocator) -> dict[str, int]:
        """Who wins how many *more* units; holders are offered from the unit after those that they have.

        Therefore a replacement that bids like the lost holder wins exactly what that one had.
        """
        bids = [Bid(p.agent, tuple(p.values[self.units_of(p.agent) :]), p.cost) for p in proposals]
        return strategy([bid for bid in bids if bid.values], self.to_sell)

    def announcement(self, now_s: float) -> Announcement:
        """The call for proposals of the open auction; always for all units, so that bids do not depend on losses."""
        submission, auction = self.submission, self.auction
        assert auction is not None
        return Announcement(
            task_id=submission.task_id,
            epoch=auction.epoch,
            kind=submission.kind,
            terms=submission.terms,
            units=submission.units,
            eligible=submission.eligible,
            deadline_s=None if auction.closes_s is None else max(0.0, auction.closes_s - now_s),
        )

    def award(self, agent: str) -> Award:
        """The award of what ``agent`` holds."""
        submission, holding = self.submission, self.holdings[agent]
        return Award(
            task_id=submission.task_id,
            epoch=holding.epoch,
            agent=agent,
            kind=submission.kind,
            units=holding.units,
            terms=submission.terms,
            lease_s=submission.lease_s,
        )

    def view(self, *, waits_for_capacity: bool) -> TaskView:
        """The task as it stands."""
        auction = self.auction
        return TaskView(
            state=self.state,
            epoch=auction.epoch if auction else None,
            bids=tuple(proposal.agent for proposal in auction.proposals()) if auction else (),
            holders={agent: (holding.epoch, holding.units) for agent, holding in self.holdings.items()},
            finished={agent: outcome.units for agent, outcome in self.outcomes.items()},
            losses=tuple(self.losses),
            closes_s=auction.closes_s if auction else None,
            waits_for_capacity=waits_for_capacity,
        )

    def ended(self, status: TaskState, reason: str, *, user_error: bool = False) -> Ended:
        """The last word about the task."""
        finished = sorted(self.outcomes.items())
        return Ended(
            task_id=self.submission.task_id,
            status=status.value,
            results={agent: outcome.result for agent, outcome in finished},
            units={agent: outcome.units for agent, outcome in finished},
            reason=reason,
            user_error=user_error,
        )


def fault_of_submission(submission: Submission) -> str:
    """What is wrong with a submission, or the empty string."""
    outside = sorted(set(submission.awaited) - set(submission.eligible)) if submission.eligible else []
    deadline_s = submission.deadline_s
    if submission.units < 1:
        return f"got units={submission.units}, expected at least 1"
    if not (math.isfinite(submission.lease_s) and submission.lease_s > 0.0):
        return f"got lease_s={submission.lease_s}, expected a positive number"
    if deadline_s is not None and not (math.isfinite(deadline_s) and deadline_s > 0.0):
        return f"got deadline_s={deadline_s}, expected a positive number or none"
    return f"awaits {outside[0]!r}, which is not eligible" if outside else ""


def fault_of_proposal(proposal: Proposal) -> str:
    """What is wrong with a proposal, or the empty string."""
    values = proposal.values
    if not values or not all(map(math.isfinite, (*values, proposal.cost))):
        return f"got values={values} at cost={proposal.cost}, expected one finite value or more"
    if any(later > earlier for earlier, later in pairwise(values)):
        return f"got increasing marginal values {values}, expected non-increasing ones"
    return ""


def patience(answer_times_s: Collection[float], mads: float) -> float:
    """How long answers may take, judged by past ones: median + ``mads`` · MAD, seconds."""
    median = statistics.median(answer_times_s)
    return median + mads * statistics.median(abs(time_s - median) for time_s in answer_times_s)


def replay(entries: Iterable[JournalEntry]) -> tuple[dict[str, Task], list[Ended]]:
    """Tasks that were accepted and have not ended, with their finished awards; and how the others ended.

    Raises:
        CheckpointError: an entry is not readable.
    """
    tasks: dict[str, Task] = {}
    finished: list[Ended] = []
    for entry in entries:
        if entry.kind == ACCEPTED:
            submission = read_submission(entry)
            tasks[entry.task_id] = Task(submission=submission, to_sell=submission.units)
        elif entry.kind == RESULT and entry.task_id in tasks:
            agent, outcome = read_outcome(entry)
            tasks[entry.task_id].outcomes[agent] = outcome
        elif entry.kind == ENDED:
            tasks.pop(entry.task_id, None)
            finished.append(read_ended(entry))
    for task in tasks.values():
        task.to_sell = task.submission.units - sum(outcome.units for outcome in task.outcomes.values())
    return tasks, finished


def accepted_entry(submission: Submission) -> JournalEntry:
    """The entry that makes a submission accepted."""
    return JournalEntry(kind=ACCEPTED, task_id=submission.task_id, body=asdict(submission))


def result_entry(done: Done, units: int) -> JournalEntry:
    """The entry that makes an award finished."""
    body: dict[str, Json] = {
        "agent": done.agent,
        "epoch": done.epoch,
        "units": units,
        "result": done.result,
        "state": done.state,
    }
    return JournalEntry(kind=RESULT, task_id=done.task_id, body=body)


def ended_entry(ended: Ended) -> JournalEntry:
    """The entry that ends a task."""
    return JournalEntry(kind=ENDED, task_id=ended.task_id, body=asdict(ended))


def read_submission(entry: JournalEntry) -> Submission:
    """Inverse of `accepted_entry`. Raises ``CheckpointError`` where it does not fit."""
    body = dict(entry.body)
    for key in ("eligible", "awaited"):
        names = body.get(key)
        body[key] = tuple(names) if isinstance(names, list | tuple) else ()
    return _build(Submission, body, entry)


def read_outcome(entry: JournalEntry) -> tuple[str, Outcome]:
    """Inverse of `result_entry`: agent and outcome. Raises ``CheckpointError`` where it does not fit."""
    body = dict(entry.body)
    agent = body.pop("agent", None)
    if not isinstance(agent, str):
        raise CheckpointError(f"journal entry {entry.kind!r} of {entry.task_id!r} names no agent")
    return agent, _build(Outcome, body, entry)


def read_ended(entry: JournalEntry) -> Ended:
    """Inverse of `ended_entry`. Raises ``CheckpointError`` where it does not fit."""
    return _build(Ended, entry.body, entry)


def _build(cls: type[BuiltT], body: Mapping[str, Json], entry: JournalEntry) -> BuiltT:
    try:
        return cls(**body)
    except TypeError as error:
        raise CheckpointError(f"journal entry {entry.kind!r} of {entry.task_id!r} is not readable: {error}") from None
