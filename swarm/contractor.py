"""The contractor's side of the contract net: a pure state machine that answers, performs and gives up awards.

One per agent. Duplicates are answered with what was said before: an announcement with the stored answer, an award with
the stored outcome, so that whatever was lost on the way is said again and nothing is performed twice. A cancellation or
an award under a higher epoch ends older work on the same task; what that work yields is not published.

Memory is bounded by `ContractorConfig.remembered` per table; awards being performed are never evicted. An epoch at or
below an evicted one counts as seen (epochs grow over all tasks of a manager), so that eviction never admits an award a
second time; a legitimate but very old award that this refuses comes back under a new epoch when its lease is over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

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
from swarm.errors import InvalidTransition
from swarm.messages import Announcement, Award, Cancel, Done, Failed, Progress, Proposal, Refusal, Rejection

Key = tuple[str, int]
"""(task id, epoch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractorConfig:
    """Bounds of a contractor.

    Attributes:
        progress_s: seconds between signs of life of each award; well below the shortest lease.
        remembered: entries of each table of answers, outcomes and fences.
    """

    progress_s: float = 1.0
    remembered: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractorStatistics:
    """Counts so far, and what goes on now."""

    performing: int
    queued: int
    proposed: int
    performed: int
    abandoned: int
    duplicates: int
    stale: int


@dataclass(slots=True)
class _Counts:
    proposed: int = 0
    performed: int = 0
    abandoned: int = 0
    duplicates: int = 0
    stale: int = 0


@dataclass(slots=True)
class _Work:
    award: Award
    due_s: float
    started: bool = field(default=False)


class Contractor:
    """Decides for one agent. ``handle`` events in, instructions out; it never waits and never reads a clock."""

    def __init__(
        self,
        agent: str,
        *,
        incarnation: int,
        skills: frozenset[str],
        capacity: int,
        config: ContractorConfig | None = None,
    ) -> None:
        if capacity < 1:
            raise InvalidTransition(f"agent {agent!r}: got capacity={capacity}, expected at least 1")
        self.agent = agent
        self.incarnation = incarnation
        self.skills = skills
        self.capacity = capacity
        self._config = config or ContractorConfig()
        self._thinking: dict[str, int] = {}  # task -> epoch of the announcement that the agent thinks about
        self._answers: OrderedDict[str, Proposal | Refusal] = OrderedDict()  # by task, of its newest epoch
        self._work: dict[str, _Work] = {}  # by task; insertion order is the queue
        self._outcomes: OrderedDict[Key, Done | Failed] = OrderedDict()
        self._fences: OrderedDict[str, int] = OrderedDict()  # task -> awards up to this epoch are void
        self._floor = -1  # awards up to this epoch that are in no table were evicted from one
        self._counts = _Counts()

    def handle(self, event: ContractorEvent, now_s: float) -> list[ContractorInstruction]:
        """Take one event and return what to do, in order.

        Args:
            event: what happened.
            now_s: monotonic clock, seconds.

        Raises:
            InvalidTransition: an answer or outcome that is not this agent's own.
        """
        match event:
            case Heard(Announcement() as announcement):
                return self._announced(announcement)
            case Heard(Award() as award):
                return self._awarded(award, now_s)
            case Heard(Rejection()):
                return []  # losing needs no action; the answer is kept for whoever asks again
            case Heard(Cancel() as cancel):
                return self._cancelled(cancel, now_s)
            case Proposed(answer):
                return self._proposed(answer)
            case Performed(message):
                return self._performed(message, now_s)
            case Ticked():
                return self._ticked(now_s)
            case _:
                raise InvalidTransition(f"a contractor takes no {type(event).__name__}")

    def statistics(self) -> ContractorStatistics:
        """Counts so far."""
        counts = self._counts
        performing = len(self.performing())
        return ContractorStatistics(
            performing=performing,
            queued=len(self._work) - performing,
            proposed=counts.proposed,
            performed=counts.performed,
            abandoned=counts.abandoned,
            duplicates=counts.duplicates,
            stale=counts.stale,
        )

    def performing(self) -> Mapping[str, int]:
        """Epoch by task of what the agent works on now."""
        return {task_id: work.award.epoch for task_id, work in self._work.items() if work.started}

    def remembered(self) -> int:
        """Entries of the largest table, to see that memory is bounded."""
        return max(len(self._answers), len(self._outcomes), len(self._fences))

    def _announced(self, announcement: Announcement) -> list[ContractorInstruction]:
        task_id, epoch = announcement.task_id, announcement.epoch
        wanted = not announcement.eligible or self.agent in announcement.eligible
        if not wanted or announcement.kind not in self.skills:
            return []
        answer = self._answers.get(task_id)
        if answer is not None and answer.epoch == epoch:
            self._counts.duplicates += 1
            return [Publish(answer)]
        thinking = self._thinking.get(task_id, -1)
        known = max(thinking, answer.epoch if answer else -1, self._fences.get(task_id, -1))
        if epoch <= known:
            self._counts.duplicates += epoch == thinking
            self._counts.stale += epoch != thinking
            return []
        self._thinking.pop(task_id, None)
        self._thinking[task_id] = epoch
        if len(self._thinking) > self._config.remembered:
            del self._thinking[next(iter(self._thinking))]
        return [Propose(announcement)]

    def _proposed(self, answer: Proposal | Refusal) -> list[ContractorInstruction]:
        self._own(answer.agent)
        if self._thinking.get(answer.task_id) != answer.epoch:
            self._counts.stale += 1
            return []
        del self._thinking[answer.task_id]
        self._answers[answer.task_id] = answer
        self._answers.move_to_end(answer.task_id)
        while len(self._answers) > self._config.remembered:
            self._answers.popitem(last=False)
        self._counts.proposed += isinstance(answer, Proposal)
        return [Publish(answer)]

    def _awarded(self, award: Award, now_s: float) -> list[ContractorInstruction]:
        if award.agent != self.agent:
            return []
        if (repeated := self._answer_of_repeated(award)) is not None:
            self._counts.duplicates += 1
            return repeated
        if self._is_void(award):
            self._counts.stale += 1
            return []
        instructions = self._abandon(award.task_id, award.epoch - 1)
        self._work[award.task_id] = _Work(award, now_s + self._config.progress_s)
        return [*instructions, *self._start(), *self._wake()]

    def _answer_of_repeated(self, award: Award) -> list[ContractorInstruction] | None:
        """Duplicate detection: nothing while it is performed, its outcome afterwards; ``None`` for a new award."""
        work = self._work.get(award.task_id)
        if work is not None and work.award.epoch == award.epoch:
            return []
        outcome = self._outcomes.get((award.task_id, award.epoch))
        return None if outcome is None else [Publish(outcome)]

    def _is_void(self, award: Award) -> bool:
        return award.epoch <= max(self._fences.get(award.task_id, -1), self._floor)

    def _cancelled(self, cancel: Cancel, now_s: float) -> list[ContractorInstruction]:
        if cancel.agent not in ("", self.agent):
            return []
        if self._thinking.get(cancel.task_id, cancel.epoch + 1) <= cancel.epoch:
            del self._thinking[cancel.task_id]
        return [*self._abandon(cancel.task_id, cancel.epoch), *self._start(), *self._wake()]

    def _abandon(self, task_id: str, epoch: int) -> list[ContractorInstruction]:
        """Fence the task up to ``epoch``; give up what is under it."""
        self._fences[task_id] = max(epoch, self._fences.get(task_id, -1))
        self._fences.move_to_end(task_id)
        while len(self._fences) > self._config.remembered:
            self._floor = max(self._floor, self._fences.popitem(last=False)[1])
        work = self._work.get(task_id)
        if work is None or work.award.epoch > epoch:
            return []
        del self._work[task_id]
        self._counts.abandoned += 1
        return [Abandon(task_id, work.award.epoch)] if work.started else []

    def _performed(self, message: Done | Failed, now_s: float) -> list[ContractorInstruction]:
        self._own(message.agent)
        work = self._work.get(message.task_id)
        if work is None or work.award.epoch != message.epoch or not work.started:
            self._counts.stale += 1  # abandoned meanwhile: its result has no effect
            return []
        del self._work[message.task_id]
        self._outcomes[message.task_id, message.epoch] = message
        while len(self._outcomes) > self._config.remembered:
            (_, epoch), _ = self._outcomes.popitem(last=False)
            self._floor = max(self._floor, epoch)
        self._counts.performed += 1
        return [Publish(message), *self._start(), *self._wake()]

    def _start(self) -> list[ContractorInstruction]:
        """Begin queued awards up to the capacity (a restarted manager may not know of older ones yet)."""
        free = self.capacity - len(self.performing())
        instructions: list[ContractorInstruction] = []
        for work in self._work.values():
            if free > 0 and not work.started:
                work.started = True
                free -= 1
                instructions.append(Perform(work.award))
        return instructions

    def _ticked(self, now_s: float) -> list[ContractorInstruction]:
        instructions: list[ContractorInstruction] = []
        for work in self._work.values():
            if work.due_s <= now_s:
                work.due_s = now_s + self._config.progress_s
                award = work.award
                sign = Progress(task_id=award.task_id, epoch=award.epoch, agent=self.agent, fraction=0.0)
                instructions.append(Publish(sign))
        return [*instructions, *self._wake()]

    def _wake(self) -> list[ContractorInstruction]:
        return [WakeAt(min(work.due_s for work in self._work.values()))] if self._work else []

    def _own(self, agent: str) -> None:
        if agent != self.agent:
            raise InvalidTransition(f"contractor of {self.agent!r} was given a message of {agent!r}")
