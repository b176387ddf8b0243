"""The reading side of streams, without sockets or clocks: what is missing, what to ask for, what may be delivered.

A stream is what one life (incarnation) of one publisher sends on one topic; its messages are numbered from 0. The
publisher keeps it in `swarm.retention`; each subscription keeps one reading side per stream: `InOrder` (reliable),
`NewestPerKey` (latest) or `Passing` (best effort). Times are arguments, in seconds of any monotonic clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

MAX_HOLES: Final = 64
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairConfig:
    """How a reader mends its gaps.

    Attributes:
        grace_s: how long a gap may last before it is asked about (it may just be reordering).
        retry_s: wait before asking again; doubles up to 16 times as much.
        window: messages asked for at a time, so that repairing a long gap cannot overflow the path again.
        max_attempts: questions about one gap, after which it counts as lost.
        waiting: messages that may wait behind a gap; what comes beyond is asked for later.
    """

    grace_s: float = 0.005
    retry_s: float = 0.25
    window: int = 512
    max_attempts: int = 12
    waiting: int = 2048


@dataclass(slots=True)
class StreamCounts:
    """What a reading side saw, since it began."""

    duplicates: int = 0
    gaps: int = 0
    repaired: int = 0
    lost: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """``count`` messages will never arrive."""

    count: int


@dataclass(slots=True)
class _Asking:
    """When to ask the publisher (again), and how often that was in vain."""

    config: RepairConfig
    due: float | None = None
    attempts: int = 0
    outstanding: int = 0
    asked_next: int = -1

    def notice(self, now: float) -> None:
        """Something is missing."""
        if self.due is None:
            self.due = now + self.config.grace_s

    def again(self, now: float) -> None:
        """Ask at once."""
        self.due = now

    def asked(self, now: float, first: int, questions: int) -> None:
        """So many questions were asked, of which the first message missing is ``first``."""
        self.attempts = 0 if first > self.asked_next else self.attempts
        self.asked_next, self.outstanding = first, questions
        self.due = now + self.config.retry_s * 2 ** min(self.attempts, 4)
        self.attempts += 1

    def answered(self, now: float, first: int) -> None:
        """An answer came; after the last one, go on at once if that helped, else after the retry."""
        self.outstanding -= 1
        if self.outstanding <= 0 and first > self.asked_next:
            self.again(now)

    def mended(self) -> None:
        """Nothing is missing."""
        self.due, self.attempts = None, 0


@dataclass(slots=True)
class InOrder(Generic[ItemT]):
    """One reliable stream: everything once, in order, from ``next`` on; or a `Gap` that says how much is missing.

    Attributes:
        next: the message that comes next.
        end: messages below this one are known to exist.
        from_history: the stream began before this reader; what was forgotten before it asked is not a loss.
        paused: nothing is taken until `resume`, because the inbox is full.
    """

    config: RepairConfig
    next: int
    from_history: bool = False
    end: int = 0
    paused: bool = False
    counts: StreamCounts = field(default_factory=StreamCounts)
    _waiting: dict[int, ItemT] = field(default_factory=dict)
    _replayed: set[int] = field(default_factory=set)
    _asking: _Asking = field(init=False)

    def __post_init__(self) -> None:
        self._asking = _Asking(self.config)

    def data(self, sequence: int, item: ItemT, now: float, *, replayed: bool = False) -> list[ItemT | Gap]:
        """Take one message; return what may be delivered now, in order."""
        if sequence < self.next or sequence in self._waiting:
            self.counts.duplicates += 1
            return []
        known_end, self.end = self.end, max(self.end, sequence + 1)
        if self.paused:
            return []
        if sequence > self.next:
            self.counts.gaps += 0 if self.from_history else max(sequence - max(known_end, self.next), 0)
            self._asking.notice(now)
            if len(self._waiting) < self.config.waiting:
                self._waiting[sequence] = item
                if replayed:
                    self._replayed.add(sequence)
            return []
        self.next += 1
        self.counts.repaired += replayed
        delivered: list[ItemT | Gap] = [item]
        if self._waiting:
            self._release(delivered)
        self._settle(now)
        return delivered

    def ends_at(self, end: int, now: float) -> None:
        """The publisher says that messages below ``end`` exist."""
        if end > self.end:
            self.counts.gaps += 0 if self.from_history else max(end - max(self.end, self.next), 0)
            self.end = end
        self._settle(now)

    def answered(self, gone_until: int, now: float) -> list[ItemT | Gap]:
        """The publisher has replayed what it retains of a range; what came before ``gone_until`` is gone."""
        if self.paused:
            return []
        delivered: list[ItemT | Gap] = []
        if gone_until > self.next:
            if self.from_history:
                self.next = min(gone_until, min(self._waiting, default=gone_until))
            self.end = max(self.end, gone_until)
            self._skip_to(gone_until, delivered)
            self._release(delivered)
        self.from_history = False
        self._asking.answered(now, self.next)
        self._settle(now)
        return delivered

    def ask(self, now: float) -> list[tuple[int, int]]:
        """Return the ranges [first, until) to ask the publisher for, if it is time."""
        due = self._asking.due
        if due is None or due > now or self.paused or (self.next >= self.end and not self.from_history):
            return []
        ranges = self._holes(min(max(self.end, self.next + 1), self.next + self.config.window))
        self._asking.asked(now, self.next, len(ranges))
        return ranges

    def _holes(self, until: int) -> list[tuple[int, int]]:
        """Return the ranges below ``until`` that neither arrived nor wait, at most `MAX_HOLES`."""
        holes: list[tuple[int, int]] = []
        first = self.next
        for sequence in sorted(waiting for waiting in self._waiting if waiting < until):
            if sequence > first:
                holes.append((first, sequence))
            first = sequence + 1
        if first < until:
            holes.append((first, until))
        return holes[:MAX_HOLES]

    @property
    def due(self) -> float | None:
        """When `ask` should be called next."""
        return None if self.paused else self._asking.due

    @property
    def is_futile(self) -> bool:
        """Whether the publisher was asked so often in vain that there is no hope."""
        return self._asking.attempts > self.config.max_attempts

    def begin(self, now: float) -> None:
        """Ask for history at once."""
        self._asking.again(now)

    def pause(self) -> None:
        """Take nothing any more; what waits behind a gap will be asked for again."""
        self.paused = True
        self._waiting.clear()
        self._replayed.clear()

    def resume(self, now: float) -> None:
        """Go on where the stream was paused."""
        self.paused = False
        self._asking.mended()
        if self.next < self.end:
            self._asking.again(now)

    def abandon(self) -> list[ItemT | Gap]:
        """The publisher's life is over: return what waited, with gaps for what is missing between."""
        delivered: list[ItemT | Gap] = []
        self._skip_to(self.end, delivered)
        self._asking.mended()
        return delivered

    def _skip_to(self, until: int, delivered: list[ItemT | Gap]) -> None:
        missing = 0
        while self.next < until:
            item = self._waiting.pop(self.next, None)
            if item is None:
                missing += 1
            else:
                if missing:
                    self._lose(missing, delivered)
                    missing = 0
                delivered.append(item)
            self.next += 1
        if missing:
            self._lose(missing, delivered)

    def _lose(self, count: int, delivered: list[ItemT | Gap]) -> None:
        self.counts.lost += count
        delivered.append(Gap(count))

    def _release(self, delivered: list[ItemT | Gap]) -> None:
        while self._waiting and self.next in self._waiting:
            delivered.append(self._waiting.pop(self.next))
            self.counts.repaired += self.next in self._replayed
            self._replayed.discard(self.next)
            self.next += 1

    def _settle(self, now: float) -> None:
        if self.next >= self.end and not self.from_history:
            self._asking.mended()
        else:
            self._asking.notice(now)


@dataclass(slots=True)
class NewestPerKey(Generic[ItemT]):
    """One stream of last values: per key never an older value after a newer one; the last one is never missed."""

    config: RepairConfig
    next: int = 0
    end: int = 0
    counts: StreamCounts = field(default_factory=StreamCounts)
    _newest: dict[Hashable, int] = field(default_factory=dict)
    _asking: _Asking = field(init=False)

    def __post_init__(self) -> None:
        self._asking = _Asking(self.config)

    def data(self, sequence: int, key: Hashable, now: float, *, replayed: bool = False) -> bool:
        """Take note of one value; return whether it is the newest of its key."""
        is_new = sequence > self._newest.get(key, -1)
        if is_new:
            self._newest[key] = sequence
            self.counts.repaired += replayed
        else:
            self.counts.duplicates += 1
        if not replayed:
            if sequence == self.next:
                self.next += 1
            self.ends_at(sequence + 1, now)
        return is_new

    def ends_at(self, end: int, now: float) -> None:
        """The publisher says that messages below ``end`` exist."""
        if end > self.end:
            self.counts.gaps += max(end - 1 - max(self.end, self.next), 0)
            self.end = end
        if self.next < self.end:
            self._asking.notice(now)
        else:
            self._asking.mended()

    def answered(self, until: int, now: float) -> None:
        """The publisher has sent the last values below ``until``."""
        self.next = max(self.next, until)
        self._asking.mended()
        self.ends_at(until, now)

    def ask(self, now: float) -> list[tuple[int, int]]:
        """Return the range [first, until) to ask the publisher for, if it is time."""
        if self._asking.due is None or self._asking.due > now or self.next >= self.end:
            return []
        self._asking.asked(now, self.next, 1)
        return [(self.next, self.end)]

    @property
    def due(self) -> float | None:
        """When `ask` should be called next."""
        return self._asking.due


@dataclass(slots=True)
class Passing:
    """One best-effort stream: whatever comes, once, never older after newer; what is missing is only counted."""

    next: int
    counts: StreamCounts = field(default_factory=StreamCounts)

    def data(self, sequence: int) -> bool:
        """Take note of one message; return whether it is to be delivered."""
        if sequence < self.next:
            self.counts.duplicates += 1
            return False
        self.counts.gaps += sequence - self.next
        self.counts.lost += sequence - self.next
        self.next = sequence + 1
        return True
