"""One peer on the bus, synchronous: frames in, frames out, subscriptions filled. Transports are thin shells around it.

Every peer receives every topic from the moment it joins, also those that nobody subscribed to yet: so it knows where
each stream stands, and a subscription begins exactly where it was made. What comes back of its own is treated
like the rest.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from swarm.arrays import Frame
from swarm.bus import BusStatistics, Received, TopicStatistics
from swarm.bus_config import BusConfig
from swarm.codec import Header, check_topic, decode_body, decode_header, decode_received
from swarm.control import (
    CONTROL_TYPES,
    EVERYBODY,
    Answer,
    Ask,
    Beat,
    Control,
    Press,
    Probe,
    Refused,
    Replay,
    Taken,
    encode_control,
    own_prefix,
    prefixes,
)
from swarm.errors import CodecError, ConfigError
from swarm.inbox import Inbox
from swarm.messages import Message
from swarm.publishing import Frames, Publisher
from swarm.streams import InOrder
from swarm.subscribing import Feed, TopicCounts
from swarm.topics import DELIVERY, Delivery, Topic
from swarm.validation import check_id

ACKNOWLEDGE_PARTS = 16
"""A reader acknowledges at least this often per retention of its publisher."""


@dataclass(slots=True)
class _Sender:
    """What is known of another peer (or of this one, as it hears itself).

    Attributes:
        is_complete: topics that are missing in ``ends`` were never published on.
        unacknowledged: bytes received per topic since the last `Taken`.
    """

    incarnation: int
    heard: float
    is_complete: bool = False
    ends: dict[Topic, int] = field(default_factory=dict)
    unacknowledged: dict[Topic, int] = field(default_factory=dict)


class Peer:
    """Sequencing, retention, repair, handshake and counting of one peer.

    Args:
        send: hands frames to the transport; never blocks.
        clock: monotonic seconds.
        wake: called when `poll` should be called earlier than it said.

    Raises:
        ConfigError: ``name`` is not an id.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        config: BusConfig,
        send: Callable[[Frames], None],
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        try:
            check_id(name, "name")
        except CodecError as error:
            raise ConfigError(f"a bus peer cannot be called {name!r}: {error}") from None
        self.name = name
        self.incarnation = incarnation
        self._config = config
        self._send = send
        self._clock = clock
        self._wake = wake
        self._publisher = Publisher(name, incarnation, config, send, self._heard)
        self._senders: dict[str, _Sender] = {}
        self._feeds: dict[int, Feed] = {}
        self._next_token = 0
        self._nonce = secrets.randbits(62)
        self._missing = set(prefixes(name))
        self._beat_due = 0.0
        self._counts = {topic: TopicCounts() for topic in Topic}
        self._rejected: Counter[str] = Counter()
        self._refused: dict[int, int] = {}

    # --- joining ------------------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether an own probe came back on every prefix: what anybody publishes from now on arrives."""
        return not self._missing

    def probe(self) -> None:
        """Send a probe on each prefix that has not answered yet."""
        for prefix in sorted(self._missing):
            self._send(encode_control(prefix, self.name, self.incarnation, Probe(nonce=self._nonce)))

    # --- publishing and subscribing -----------------------------------------------------------------------------------

    def publish(self, message: Message) -> int:
        """Publish; see `swarm.bus.Bus.publish`."""
        return self._publisher.publish(message, self._clock())

    def is_writable(self, topic: Topic) -> bool:
        """Return whether `publish` on ``topic`` would not raise ``BusFull``."""
        return not self._publisher.is_full(topic, self._clock())

    def subscribe(self, topics: Sequence[Topic], capacity: int, retained: bool) -> Inbox:
        """Begin a subscription; see `swarm.bus.Bus.subscribe`."""
        if not topics:
            raise ConfigError("subscribe() got no topic, expected at least one of " + ", ".join(Topic))
        inbox, now = Inbox(capacity), self._clock()
        feed = Feed(
            self._next_token,
            frozenset(topics),
            inbox,
            retained=retained,
            counts=self._counts,
            config=self._config,
            clock=self._clock,
            changed=self._wake,
            ended=self._end_feed,
        )
        self._feeds[feed.token] = feed
        self._next_token += 1
        for name, sender in self._senders.items():
            for topic, end in sender.ends.items():
                feed.follow(name, topic, end, end, now)
        self._wake()
        return inbox

    def _end_feed(self, token: int) -> None:
        feed = self._feeds.pop(token, None)
        if feed is None:
            return
        for name, sender in self._senders.items():
            for topic in feed.topics & sender.ends.keys():
                self._acknowledge(name, sender, topic)

    def end(self) -> None:
        """The bus closes: what waits in the inboxes can still be received."""
        for feed in self._feeds.values():
            feed.inbox.end()

    # --- time ---------------------------------------------------------------------------------------------------------

    def poll(self) -> float:
        """Do what is due: beat, ask about gaps, give up on the dead. Return when to call again."""
        now = self._clock()
        if now >= self._beat_due:
            self._beat_due = now + self._config.beat_s
            if self.is_ready:
                self._say(EVERYBODY, Beat(ends=self._publisher.ends()))
            self._give_up(now)
        due = self._beat_due
        for feed in self._feeds.values():
            for (sender, topic), (first, until) in list(feed.questions(now)):
                known = self._senders[sender]
                question = Ask(
                    token=feed.token, topic=topic.value, incarnation=known.incarnation, first=first, until=until
                )
                self._say(own_prefix(sender), question)
            due = min(due, feed.next_due() or due)
        return due

    def _give_up(self, now: float) -> None:
        for name, sender in self._senders.items():
            for feed in self._feeds.values():
                feed.abandon(name, only_futile=sender.heard >= now - self._config.silence_s)

    def _say(self, prefix: bytes, control: Control) -> None:
        self._send(encode_control(prefix, self.name, self.incarnation, control))

    def _heard(self, name: str) -> float | None:
        sender = self._senders.get(name)
        return None if sender is None else sender.heard

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Frame]) -> None:
        """Take what the transport received. Whatever is not valid is counted by its reason, and that is all."""
        try:
            if len(frames) < 3:
                raise CodecError("bad-frames", f"got {len(frames)} frames, expected at least 3")
            header = decode_header(frames[1])
            if header.type_name in CONTROL_TYPES:
                self._on_control(header, frames)
            else:
                self._on_data(header, frames)
        except CodecError as error:
            self._rejected[error.reason] += 1

    def _on_data(self, header: Header, frames: Sequence[Frame]) -> None:
        topic = check_topic(frames[0], header)
        feeds = [feed for feed in self._feeds.values() if topic in feed.topics]
        received = decode_received(topic, header, frames[2:]) if feeds else None
        now = self._clock()
        sender = self._meet(header, now)
        if sender is None:
            self._counts[topic].dropped += 1
            return
        if topic not in sender.ends:
            self._begin_stream(header.sender, sender, topic, 0 if sender.is_complete else header.sequence, now)
        sender.ends[topic] = max(sender.ends[topic], header.sequence + 1)
        if received is None:
            return
        num_bytes = sum(map(len, frames))
        for feed in feeds:
            feed.take(received, num_bytes, now)
        self._count_taken(header.sender, sender, topic, num_bytes)

    def _begin_stream(self, name: str, sender: _Sender, topic: Topic, start: int, now: float) -> None:
        sender.ends[topic] = start
        for feed in self._feeds.values():
            feed.follow(name, topic, start, start, now)

    def _meet(self, header: Header, now: float) -> _Sender | None:
        """Return the sender, made known if it is new; None for a life that is over."""
        sender = self._senders.get(header.sender)
        if sender is None:
            if len(self._senders) >= self._config.max_senders:
                raise CodecError("too-many-senders", f"{len(self._senders)} peers are known already")
            sender = self._senders[header.sender] = _Sender(header.incarnation, now)
        elif header.incarnation < sender.incarnation:
            return None
        elif header.incarnation > sender.incarnation:
            for feed in self._feeds.values():
                feed.forget(header.sender)
            sender = self._senders[header.sender] = _Sender(header.incarnation, now, is_complete=True)
        sender.heard = now
        return sender

    def _count_taken(self, name: str, sender: _Sender, topic: Topic, num_bytes: int) -> None:
        if DELIVERY[topic] is not Delivery.RELIABLE:
            return
        total = sender.unacknowledged.get(topic, self._config.retention_bytes) + num_bytes
        sender.unacknowledged[topic] = total
        if total >= self._config.retention_bytes // ACKNOWLEDGE_PARTS:
            self._acknowledge(name, sender, topic)

    def _acknowledge(self, name: str, sender: _Sender, topic: Topic) -> None:
        sender.unacknowledged[topic] = 0
        streams = [feed.streams.get((name, topic)) for feed in self._feeds.values()]
        positions = [stream.next for stream in streams if isinstance(stream, InOrder) and not stream.paused]
        taken = Taken(
            topic=topic.value,
            incarnation=sender.incarnation,
            until=min(positions, default=0),
            waived=not positions,
        )
        self._say(own_prefix(name), taken)

    # --- control ------------------------------------------------------------------------------------------------------

    def _on_control(self, header: Header, frames: Sequence[Frame]) -> None:
        control_type = CONTROL_TYPES[header.type_name]
        if control_type is Replay:
            self._on_replay(header, frames)
            return
        control = decode_body(control_type, frames[2:])
        if isinstance(control, Refused):
            self._refused[header.incarnation] = control.handshakes
            while len(self._refused) > 16:
                del self._refused[min(self._refused)]
            return
        topic = _topic_of(control)
        now = self._clock()
        if isinstance(control, Probe):
            self._on_probe(header, bytes(frames[0]), control, now)
            return
        sender = self._meet(header, now)
        if sender is None:
            return
        if isinstance(control, Beat):
            self._on_beat(header.sender, sender, control, now)
        elif isinstance(control, Ask):
            self._publisher.on_ask(header.sender, control)
        elif isinstance(control, Taken):
            self._publisher.on_taken(header.sender, control)
        elif isinstance(control, Press) and topic is not None:
            self._acknowledge(header.sender, sender, topic)
        elif isinstance(control, Answer) and topic is not None and control.incarnation == sender.incarnation:
            feed = self._feeds.get(control.token)
            if feed is not None:
                feed.answered(header.sender, topic, control.gone_until, control.until, now)

    def _on_probe(self, header: Header, prefix: bytes, probe: Probe, now: float) -> None:
        if header.sender == self.name and probe.nonce == self._nonce:
            self._missing.discard(prefix)
        known = self._senders.get(header.sender)
        sender = self._meet(header, now)
        if sender is not None and sender is not known:
            sender.is_complete = True  # who probes has published nothing yet
            self._beat_due = min(self._beat_due, now + self._config.retry_s)  # let it know where streams stand

    def _on_beat(self, name: str, sender: _Sender, beat: Beat, now: float) -> None:
        ends = {topic: beat.ends[topic.value] for topic in Topic if topic.value in beat.ends}
        for topic, end in ends.items():
            if topic not in sender.ends:
                start = 0 if sender.is_complete else end
                self._begin_stream(name, sender, topic, start, now)
            sender.ends[topic] = max(sender.ends[topic], end)
            for feed in self._feeds.values():
                feed.ends_at(name, topic, end, now)
        sender.is_complete = True

    def _on_replay(self, header: Header, frames: Sequence[Frame]) -> None:
        replay = decode_body(Replay, frames[2:3])
        if len(frames) < 5:
            raise CodecError("bad-frames", f"a replay of {len(frames)} frames, expected at least 5")
        inner = decode_header(frames[3])
        if (inner.sender, inner.incarnation) != (header.sender, header.incarnation):
            raise CodecError("wrong-sender", f"{header.sender} replays a message of {inner.sender}")
        received = self._decode_replayed(inner, frames)
        now = self._clock()
        sender = self._meet(header, now)
        feed = self._feeds.get(replay.token)
        if sender is None or feed is None:
            return
        num_bytes = sum(map(len, frames))
        feed.take(received, num_bytes, now, replayed=True)
        self._count_taken(header.sender, sender, received.topic, num_bytes)

    def _decode_replayed(self, inner: Header, frames: Sequence[Frame]) -> Received:
        for topic in Topic:
            try:
                return decode_received(check_topic(topic.encode(), inner), inner, frames[4:])
            except CodecError as error:
                if error.reason != "wrong-topic":
                    raise
        raise CodecError("unknown-type", f"{inner.type_name[:40]!r} belongs to no topic")

    # --- counting -----------------------------------------------------------------------------------------------------

    def statistics(self) -> BusStatistics:
        """Counts so far; several subscriptions to one topic are summed."""
        published = self._publisher.published()
        rejected = dict(self._rejected)
        if any(self._refused.values()):
            rejected["handshake"] = sum(self._refused.values())
        return BusStatistics(
            topics={topic: self._topic_statistics(topic, published[topic]) for topic in Topic},
            rejected=rejected,
            queued=sum(len(feed.inbox) for feed in self._feeds.values()),
            retained_bytes=self._publisher.retained_bytes(),
        )

    def _topic_statistics(self, topic: Topic, published: int) -> TopicStatistics:
        counts = self._counts[topic]
        streams = [
            stream.counts
            for feed in self._feeds.values()
            for (_, stream_topic), stream in feed.streams.items()
            if stream_topic is topic
        ]
        alive = [counts.retired, *streams]
        return TopicStatistics(
            published=published,
            received=counts.received,
            received_bytes=counts.received_bytes,
            duplicates=sum(each.duplicates for each in alive),
            gaps=sum(each.gaps for each in alive),
            repaired=sum(each.repaired for each in alive),
            lost=sum(each.lost for each in alive),
            dropped=counts.dropped + sum(each.dropped for each in alive),
        )


def _topic_of(control: Control) -> Topic | None:
    """Return the topic that a control message names; None where it names none."""
    if not isinstance(control, Ask | Answer | Taken | Press):
        return None
    try:
        return Topic(control.topic)
    except ValueError:
        raise CodecError("unknown-topic", f"no topic is called {control.topic[:40]!r}") from None
