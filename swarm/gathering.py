"""What arrived on one topic, kept within bounds, so that an agent can wait for a set of messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, fields
from typing import Final, TypeVar

import numpy as np

from swarm.errors import PeerLost
from swarm.messages import Message
from swarm.topics import Topic

KeyT = TypeVar("KeyT", bound=Hashable)

MAX_MESSAGES: Final = 5_000
MAX_BYTES: Final = 128 * 2**20
_PLAIN_BYTES: Final = 1_000
"""Estimate for a message without arrays; the bound is against growth, not an account."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """A pending ``gather``: ``offer`` takes a message and says whether nothing is missing any more."""

    offer: Callable[[Message], bool]
    complete: asyncio.Future[None]


class TopicStore:
    """The newest messages of one topic; beyond `MAX_MESSAGES` or `MAX_BYTES` the oldest are dropped and counted."""

    def __init__(self, topic: Topic, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self.topic = topic
        self.dropped = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages: deque[tuple[Message, int]] = deque()
        self._num_bytes = 0
        self._waiters: set[_Waiter] = set()

    def add(self, message: Message) -> None:
        """Keep ``message`` and hand it to everyone who waits."""
        size = _size_of(message)
        self._messages.append((message, size))
        self._num_bytes += size
        while len(self._messages) > self._max_messages or self._num_bytes > self._max_bytes:
            self._num_bytes -= self._messages.popleft()[1]
            self.dropped += 1
        for waiter in tuple(self._waiters):
            if waiter.complete.done():
                continue
            try:
                if waiter.offer(message):
                    waiter.complete.set_result(None)
            except Exception as error:  # the caller's key function: its error belongs to the caller
                waiter.complete.set_exception(error)

    async def gather(
        self, key_of: Callable[[Message], KeyT | None], keys: Collection[KeyT], timeout_s: float
    ) -> dict[KeyT, Message]:
        """Return the first message for each of ``keys``, in the order of ``keys``; wait for those not here yet.

        Raises:
            PeerLost: ``timeout_s`` passed; the text names the missing keys.
        """
        found: dict[KeyT, Message] = {}
        wanted = set(keys)

        def offer(message: Message) -> bool:
            key = key_of(message)
            if key is not None and key in wanted:
                found.setdefault(key, message)
            return len(found) == len(wanted)

        complete = any(offer(message) for message, _ in self._messages) or not wanted
        if not complete:
            waiter = _Waiter(offer, asyncio.get_running_loop().create_future())
            self._waiters.add(waiter)
            try:
                async with asyncio.timeout(timeout_s):
                    await waiter.complete
            except TimeoutError:
                missing = ", ".join(sorted(str(key) for key in wanted - found.keys()))
                raise PeerLost(
                    f"nothing arrived on {self.topic.value!r} for {missing} within {timeout_s:g} s"
                ) from None
            finally:
                self._waiters.discard(waiter)
        return {key: found[key] for key in keys}


def _size_of(message: Message) -> int:
    arrays = 0
    for entry in fields(message):
        if entry.name == "arrays":
            arrays = sum(np.asarray(array).nbytes for array in getattr(message, entry.name).values())
    return _PLAIN_BYTES + arrays
