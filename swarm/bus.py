"""The event bus as its users see it. Two implementations: ``MemoryBus`` and ``ZmqBus``.

One ``Bus`` object is one peer: a name, an incarnation, a sequence number per topic. Delivery promises are per topic
(`swarm.topics.DELIVERY`); the README states them in one table.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from swarm.messages import Message
from swarm.topics import Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message as it arrived.

    Attributes:
        sender: name of the publishing peer.
        incarnation: which life of that peer; grows with each restart.
        sequence: position in the sender's stream of this topic, from 0.
    """

    sender: str
    incarnation: int
    topic: Topic
    sequence: int
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """``count`` messages of ``sender`` on ``topic`` fell out of every buffer and will never arrive."""

    sender: str
    topic: Topic
    count: int


Delivered = Received | Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicStatistics:
    """Counts of one topic at one peer, since it opened."""

    published: int = 0
    received: int = 0
    received_bytes: int = 0
    duplicates: int = 0
    gaps: int = 0
    repaired: int = 0
    lost: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStatistics:
    """``bus.statistics()``: counts per topic, and rejected input by reason (`CodecError.reason`)."""

    topics: Mapping[Topic, TopicStatistics] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    queued: int = 0
    retained_bytes: int = 0


class Subscription(Protocol):
    """A bounded inbox of one subscriber.

    When it is full, the oldest ``best_effort`` items are dropped (counted), ``latest`` items are conflated per key, and
    a ``reliable`` stream is paused and later repaired from its publisher, so that a slow reader hurts only itself.
    """

    def __aiter__(self) -> AsyncIterator[Delivered]:
        """Iterate over what arrives, until the bus is closed."""
        ...

    async def receive(self) -> Delivered:
        """Wait for the next item. Raises ``BusClosed`` once the bus is closed and the inbox is empty."""
        ...

    def receive_nowait(self) -> Delivered | None:
        """Give the next item, or ``None`` where nothing waits."""
        ...

    def close(self) -> None:
        """Stop receiving; what waits is dropped."""
        ...


class Bus(Protocol):
    """One peer on the bus. Use as ``async with bus:``; entering waits for the READY handshake."""

    name: str
    incarnation: int

    async def __aenter__(self) -> Self:
        """Open sockets and wait until an own hello came back through the broker. Raises ``PeerLost``."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush for at most a second, say nothing more, close every socket."""
        ...

    def publish(self, message: Message) -> int:
        """Publish without blocking on the topic of ``type(message)``; return the sequence number.

        Raises:
            BusFull: the topic is reliable and its retention is full of unread messages.
            BusClosed: the bus is not open.
            CodecError: the message does not validate.
        """
        ...

    async def wait_writable(self, topic: Topic) -> None:
        """Wait until ``publish`` on ``topic`` would not raise ``BusFull``."""
        ...

    def subscribe(self, *topics: Topic, capacity: int = 10_000, retained: bool = False) -> Subscription:
        """Start receiving ``topics``, including this peer's own messages.

        Args:
            topics: what to receive.
            capacity: items that may wait in the inbox.
            retained: also fetch what each publisher still retains from before this subscription.
        """
        ...

    def statistics(self) -> BusStatistics:
        """Counts so far."""
        ...
