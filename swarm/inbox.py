"""The bounded queue between a peer and one subscriber, by delivery class."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from typing import Protocol

from swarm.bus import Delivered
from swarm.errors import BusClosed


class _Slot:
    """A place in the queue: its item may be replaced (conflated) or dropped while it waits."""

    __slots__ = ("item", "key")

    def __init__(self, item: Delivered, key: Hashable = None) -> None:
        self.item: Delivered | None = item
        self.key = key


class InboxOwner(Protocol):
    """Who fills the inbox."""

    def drained(self) -> None:
        """The inbox has room again."""
        ...

    def closed(self) -> None:
        """The subscriber closed it."""
        ...


class Inbox:
    """What waits for one subscriber; at most ``capacity`` items beside the one value per key of latest topics.

    Waiting is on the running loop; one or several tasks may receive.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected at least 1")
        self.capacity = capacity
        self.dropped = 0
        self.owner: InboxOwner | None = None
        self._slots: deque[_Slot] = deque()
        self._passing: deque[_Slot] = deque()
        self._by_key: dict[Hashable, _Slot] = {}
        self._num_items = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._is_closed = False
        self._is_short = False

    def __len__(self) -> int:
        return self._num_items

    def is_full(self) -> bool:
        """Return whether reliable streams must pause."""
        full = self._num_items >= self.capacity
        self._is_short |= full
        return full

    def put(self, item: Delivered) -> None:
        """Queue an item of a reliable stream; the caller asked `is_full` before."""
        self._append(_Slot(item))

    def put_passing(self, item: Delivered) -> bool:
        """Queue a best-effort item; in a full inbox in place of the oldest one. Return whether one was dropped."""
        full = self._num_items >= self.capacity
        if full:
            self.dropped += 1
            if not self._passing:
                return True
            self._passing.popleft().item = None
            self._num_items -= 1
        slot = _Slot(item)
        self._passing.append(slot)
        self._append(slot)
        return full

    def put_latest(self, key: Hashable, item: Delivered) -> None:
        """Queue the newest value of ``key``, in place of an older one that still waits."""
        waiting = self._by_key.get(key)
        if waiting is not None:
            waiting.item = item
            self.dropped += 1
            return
        slot = _Slot(item, key)
        self._by_key[key] = slot
        self._append(slot)

    def _append(self, slot: _Slot) -> None:
        if self._is_closed:
            return
        self._slots.append(slot)
        self._num_items += 1
        if self._waiters:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def receive_nowait(self) -> Delivered | None:
        """Give the next item, or ``None`` where nothing waits."""
        while self._slots:
            slot = self._slots.popleft()
            item = slot.item
            if item is None:
                continue
            self._num_items -= 1
            if slot.key is not None:
                del self._by_key[slot.key]
            elif self._passing and self._passing[0] is slot:
                self._passing.popleft()
            if self._is_short and self._num_items <= self.capacity // 2:
                self._is_short = False
                if self.owner is not None:
                    self.owner.drained()
            return item
        return None

    async def receive(self) -> Delivered:
        """Wait for the next item. Raises ``BusClosed`` once the bus is closed and the inbox is empty."""
        while True:
            item = self.receive_nowait()
            if item is not None:
                return item
            if self._is_closed:
                raise BusClosed("the subscription or its bus was closed, and nothing waits in it any more")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_one()  # pass the wake-up on: the item is still there
                raise

    def __aiter__(self) -> AsyncIterator[Delivered]:
        """Iterate over what arrives, until the bus is closed."""
        return self

    async def __anext__(self) -> Delivered:
        try:
            return await self.receive()
        except BusClosed:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Stop receiving; what waits is dropped."""
        self._slots.clear()
        self._passing.clear()
        self._by_key.clear()
        self._num_items = 0
        self.end()
        if self.owner is not None:
            self.owner.closed()

    def end(self) -> None:
        """The bus was closed: what waits can still be received, then ``BusClosed``."""
        self._is_closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
