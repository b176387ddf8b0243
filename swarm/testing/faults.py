"""A seeded fault script: what a bad network does to frames between the transport and a peer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.arrays import Frame
from swarm.codec import decode_header
from swarm.errors import CodecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Between ``start_s`` and ``end_s`` of the loop's time, ``names`` and everybody else do not hear each other."""

    start_s: float
    end_s: float
    names: frozenset[str]

    def separates(self, sender: str, receiver: str, now: float) -> bool:
        """Return whether nothing passes from ``sender`` to ``receiver`` now."""
        return self.start_s <= now < self.end_s and (sender in self.names) != (receiver in self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRates:
    """How often what happens, as probabilities in [0, 1].

    Attributes:
        drop: the frames never arrive.
        duplicate: they arrive twice, or three times.
        delay: they arrive late, behind others: this is also how frames are reordered.
        max_delay_s: at most so late.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    max_delay_s: float = 0.05


class FaultScript:
    """Decides by a seeded generator; the same seed and the same traffic give the same faults.

    A peer never loses what it says to itself while ``spare_own`` is set.

    Attributes:
        injected: faults that really happened, by kind; a test fails if there were fewer than it planned.
        is_active: may be switched off, after which everything passes.
    """

    def __init__(
        self, seed: int, rates: FaultRates, partitions: Sequence[Partition] = (), *, spare_own: bool = False
    ) -> None:
        self.injected: Counter[str] = Counter()
        self.is_active = True
        self._random = random.Random(seed)
        self._rates = rates
        self._partitions = tuple(partitions)
        self._spare_own = spare_own

    def deliveries(self, receiver: str, frames: Sequence[Frame], now: float) -> Sequence[float]:
        """Return after how many seconds to deliver ``frames``, once per copy."""
        if not self.is_active:
            return (0.0,)
        sender = _sender(frames)
        if any(partition.separates(sender, receiver, now) for partition in self._partitions):
            self.injected["partition"] += 1
            return ()
        if self._spare_own and sender == receiver:
            return (0.0,)
        return self._draw()

    def _draw(self) -> Sequence[float]:
        draw, rates = self._random.random, self._rates
        if draw() < rates.drop:
            self.injected["drop"] += 1
            return ()
        copies = 1
        if draw() < rates.duplicate:
            self.injected["duplicate"] += 1
            copies = self._random.choice((2, 3))
        delays: list[float] = []
        for _ in range(copies):
            is_late = draw() < rates.delay
            self.injected["delay"] += is_late
            delays.append(draw() * rates.max_delay_s if is_late else 0.0)
        return delays


def _sender(frames: Sequence[Frame]) -> str:
    try:
        return decode_header(frames[1]).sender
    except (CodecError, IndexError):
        return ""
