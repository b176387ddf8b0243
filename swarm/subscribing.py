"""The reading half of a peer: one subscription with its inbox and the reading side of every stream that it follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from swarm.bus import Lost, Received
from swarm.bus_config import BusConfig
from swarm.inbox import Inbox
from swarm.messages import Message
from swarm.publishing import latest_key
from swarm.streams import Gap, InOrder, NewestPerKey, Passing, StreamCounts
from swarm.topics import DELIVERY, Delivery, Topic

Stream: TypeAlias = InOrder[Received] | NewestPerKey[Message] | Passing
StreamKey: TypeAlias = tuple[str, Topic]


@dataclass(slots=True)
class TopicCounts:
    """Running counts of one topic at one peer (`swarm.bus.TopicStatistics` without the publisher's part)."""

    received: int = 0
    received_bytes: int = 0
    dropped: int = 0
    retired: StreamCounts = field(default_factory=StreamCounts)

    def retire(self, counts: StreamCounts) -> None:
        """Add the counts of a stream that ended."""
        for name in ("duplicates", "gaps", "repaired", "lost", "dropped"):
            setattr(self.retired, name, getattr(self.retired, name) + getattr(counts, name))


class Feed:
    """One subscription: follows the streams of its topics and fills its inbox.

    Args:
        token: names this subscription in questions to publishers.
        retained: begin each reliable stream with what its publisher still retains.
        counts: shared with the other subscriptions of the peer.
        changed: called after something may have become due (to be asked about, or to be acknowledged).
        ended: called when the subscriber closes the inbox.
    """

    def __init__(
        self,
        token: int,
        topics: frozenset[Topic],
        inbox: Inbox,
        *,
        retained: bool,
        counts: dict[Topic, TopicCounts],
        config: BusConfig,
        clock: Callable[[], float],
        changed: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        self.token = token
        self.topics = topics
        self.inbox = inbox
        self.streams: dict[StreamKey, Stream] = {}
        self._retained = retained
        self._counts = counts
        self._config = config
        self._clock = clock
        self._changed = changed
        self._ended = ended
        inbox.owner = self

    def drained(self) -> None:
        """The inbox has room again: paused streams go on."""
        now = self._clock()
        for stream in self.streams.values():
            if isinstance(stream, InOrder) and stream.paused:
                stream.resume(now)
        self._changed()

    def closed(self) -> None:
        """The subscriber closed the inbox."""
        for key in list(self.streams):
            self._counts[key[1]].retire(self.streams.pop(key).counts)
        self._ended(self.token)

    def follow(self, sender: str, topic: Topic, start: int, end: int, now: float) -> None:
        """Follow a stream of which messages below ``end`` are known to exist, from ``start`` on."""
        key = (sender, topic)
        if topic not in self.topics or key in self.streams:
            return
        repair = self._config.repair
        delivery = DELIVERY[topic]
        if delivery is Delivery.LATEST:
            newest: NewestPerKey[Message] = NewestPerKey(repair)
            newest.ends_at(end, now)
            self.streams[key] = newest
        elif delivery is Delivery.BEST_EFFORT:
            self.streams[key] = Passing(start)
        else:
            from_history = self._retained and end > 0
            stream: InOrder[Received] = InOrder(repair, 0 if self._retained else start, from_history=from_history)
            stream.ends_at(end, now)
            if from_history:
                stream.begin(now)
            self.streams[key] = stream

    def take(self, received: Received, num_bytes: int, now: float, *, replayed: bool = False) -> None:
        """Take one message of a stream that is followed."""
        topic = received.topic
        stream = self.streams.get((received.sender, topic))
        if isinstance(stream, InOrder):
            if not stream.paused and self.inbox.is_full():
                stream.pause()
            self._deliver(received.sender, topic, stream.data(received.sequence, received, now, replayed=replayed))
        elif isinstance(stream, NewestPerKey):
            key = latest_key(received.message)
            if stream.data(received.sequence, key, now, replayed=replayed):
                self.inbox.put_latest((received.sender, topic, key), received)
                self._counts[topic].received += 1
        elif stream is not None and stream.data(received.sequence):
            self._counts[topic].dropped += self.inbox.put_passing(received)
            self._counts[topic].received += 1
        self._counts[topic].received_bytes += num_bytes

    def ends_at(self, sender: str, topic: Topic, end: int, now: float) -> None:
        """The publisher says that messages below ``end`` exist."""
        stream = self.streams.get((sender, topic))
        if stream is not None and not isinstance(stream, Passing):
            stream.ends_at(end, now)

    def answered(self, sender: str, topic: Topic, gone_until: int, until: int, now: float) -> None:
        """The publisher replayed what it has."""
        stream = self.streams.get((sender, topic))
        if isinstance(stream, InOrder):
            self._deliver(sender, topic, stream.answered(gone_until, now))
        elif isinstance(stream, NewestPerKey):
            stream.answered(until, now)

    def abandon(self, sender: str, *, only_futile: bool = False) -> None:
        """The publisher is gone: deliver what waits, and say what is lost; ``only_futile``: where asking is in vain."""
        for (publisher, topic), stream in self.streams.items():
            if publisher == sender and isinstance(stream, InOrder) and (stream.is_futile or not only_futile):
                self._deliver(sender, topic, stream.abandon())

    def forget(self, sender: str) -> None:
        """A new life of the publisher begins: what the old one owed is lost."""
        self.abandon(sender)
        for key in [key for key in self.streams if key[0] == sender]:
            self._counts[key[1]].retire(self.streams.pop(key).counts)

    def questions(self, now: float) -> Iterator[tuple[StreamKey, tuple[int, int]]]:
        """Give (stream, range) for each stream that is to be asked about now."""
        for key, stream in self.streams.items():
            if not isinstance(stream, Passing) and stream.due is not None and stream.due <= now:
                for wanted in stream.ask(now):
                    yield key, wanted

    def next_due(self) -> float | None:
        """When `questions` should be called next."""
        times = [
            stream.due for stream in self.streams.values() if not isinstance(stream, Passing) and stream.due is not None
        ]
        return min(times, default=None)

    def _deliver(self, sender: str, topic: Topic, items: list[Received | Gap]) -> None:
        for item in items:
            if isinstance(item, Gap):
                self.inbox.put(Lost(sender=sender, topic=topic, count=item.count))
            else:
                self.inbox.put(item)
                self._counts[topic].received += 1
