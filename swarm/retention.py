"""What a publisher keeps of its streams for readers that missed something. Pure; readers are in `swarm.streams`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

ItemT = TypeVar("ItemT")


class Entry(NamedTuple, Generic[ItemT]):
    """One retained message."""

    sequence: int
    item: ItemT
    num_bytes: int


class Readers:
    """Up to where each known reader has taken one stream."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def acknowledge(self, reader: str, taken: int) -> None:
        """``reader`` has everything below ``taken``. A smaller number than before means that it restarted."""
        self._taken[reader] = taken

    def waive(self, reader: str) -> None:
        """``reader`` is gone or claims nothing: it holds nobody up."""
        self._taken.pop(reader, None)

    def slowest(self, is_alive: Callable[[str], bool]) -> tuple[str, int] | None:
        """Return (reader, taken) of the one furthest behind; readers that are not alive are forgotten."""
        for reader in [name for name in self._taken if not is_alive(name)]:
            del self._taken[reader]
        if not self._taken:
            return None
        reader = min(self._taken, key=lambda name: (self._taken[name], name))
        return reader, self._taken[reader]


class Ring(Generic[ItemT]):
    """The retained messages of one reliable stream, bounded in bytes.

    Old messages leave first, and only those that every known reader has. Its last message stays whatever its size.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.num_bytes = 0
        self.next = 0
        self._entries: deque[Entry[ItemT]] = deque()

    @property
    def oldest(self) -> int:
        """Sequence number of the first retained message; ``next`` where there is none."""
        return self._entries[0].sequence if self._entries else self.next

    def is_full(self, taken: int | None) -> bool:
        """Return whether it stays full without what all readers have; ``taken``: of the slowest, None: no reader."""
        self._evict(self.limit_bytes - 1, taken)
        return self.num_bytes >= self.limit_bytes

    def append(self, item: ItemT, num_bytes: int, taken: int | None) -> int:
        """Retain the stream's next message; return its sequence number. Ask `is_full` before."""
        self._evict(self.limit_bytes - num_bytes, taken)
        sequence = self.next
        self._entries.append(Entry(sequence, item, num_bytes))
        self.num_bytes += num_bytes
        self.next += 1
        return sequence

    def _evict(self, room_above: int, taken: int | None) -> None:
        while self._entries and self.num_bytes > room_above:
            if taken is not None and self._entries[0].sequence >= taken:
                return
            self.num_bytes -= self._entries.popleft().num_bytes

    def between(self, first: int, until: int) -> list[Entry[ItemT]]:
        """Return the retained messages with first <= sequence < until."""
        start = max(first - self.oldest, 0)
        stop = min(until - self.oldest, len(self._entries))
        if stop - start < len(self._entries) // 4:
            return [self._entries[index] for index in range(start, stop)]
        return [entry for entry in self._entries if first <= entry.sequence < until]


class LatestValues(Generic[ItemT]):
    """The last message per key of one stream."""

    def __init__(self, max_keys: int = 4096) -> None:
        self.num_bytes = 0
        self.next = 0
        self._max_keys = max_keys
        self._by_key: dict[Hashable, Entry[ItemT]] = {}

    def append(self, key: Hashable, item: ItemT, num_bytes: int) -> int:
        """Keep ``item`` as the value of ``key``; beyond the cap, the key that changed longest ago is forgotten."""
        replaced = self._by_key.pop(key, None)
        if replaced is None and len(self._by_key) == self._max_keys:
            replaced = self._by_key.pop(next(iter(self._by_key)))
        sequence = self.next
        self._by_key[key] = Entry(sequence, item, num_bytes)
        self.num_bytes += num_bytes - (replaced.num_bytes if replaced else 0)
        self.next += 1
        return sequence

    def between(self, first: int, until: int) -> list[Entry[ItemT]]:
        """Return the last values with first <= sequence < until, oldest first."""
        return [entry for entry in self._by_key.values() if first <= entry.sequence < until]
