"""The publishing half of a peer: numbers, retains and replays what it says. Synchronous; sends through a callable."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from swarm.arrays import Frame
from swarm.bus_config import MAX_FRAME_BYTES, BusConfig
from swarm.codec import encode
from swarm.control import Answer, Ask, Control, Press, Replay, Taken, encode_control, own_prefix
from swarm.errors import BusFull, CodecError
from swarm.messages import Message, ParameterVersion
from swarm.retention import Entry, LatestValues, Readers, Ring
from swarm.topics import DELIVERY, TOPIC_OF, Delivery, Topic

Frames: TypeAlias = list[Frame]
MAX_REPLAY_MESSAGES: Final = 1024
MAX_REPLAY_BYTES: Final = 8 << 20
PRESS_S: Final = 0.05


def latest_key(message: Message) -> Hashable:
    """Return what a message of a ``latest`` topic is the value of."""
    assert isinstance(message, ParameterVersion)
    return message.owner


@dataclass(slots=True)
class _Reliable:
    ring: Ring[Frames]
    readers: Readers
    pressed_at: float = -1.0


class Publisher:
    """All streams that one peer publishes.

    Args:
        alive_since: gives the time of the last sign of life of a peer by name, or None for an unknown one.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        config: BusConfig,
        send: Callable[[Frames], None],
        alive_since: Callable[[str], float | None],
    ) -> None:
        self._name = name
        self._incarnation = incarnation
        self._config = config
        self._send = send
        self._alive_since = alive_since
        self._reliable = {
            topic: _Reliable(Ring(config.retention_bytes), Readers())
            for topic, delivery in DELIVERY.items()
            if delivery is Delivery.RELIABLE
        }
        self._latest: dict[Topic, LatestValues[Frames]] = {
            topic: LatestValues() for topic, delivery in DELIVERY.items() if delivery is Delivery.LATEST
        }
        self._passing = {topic: 0 for topic, delivery in DELIVERY.items() if delivery is Delivery.BEST_EFFORT}

    def publish(self, message: Message, now: float) -> int:
        """Number, retain and send ``message``; return its sequence number.

        Raises:
            BusFull: retention is full of what a living reader has not taken yet.
            CodecError: the message does not validate.
        """
        topic = TOPIC_OF.get(type(message))
        if topic is None:
            raise CodecError("unknown-type", f"{type(message).__name__} belongs to no topic")
        if topic in self._reliable and self.is_full(topic, now):
            slowest = self._slowest(topic, now)
            retained = self._reliable[topic].ring.num_bytes
            raise BusFull(topic.value, retained, slowest[0] if slowest else None)
        sequence = self._next(topic)
        frames = [_owned(frame) for frame in encode(self._name, self._incarnation, sequence, message)]
        sizes = [len(frame) for frame in frames]
        if max(sizes) > MAX_FRAME_BYTES:
            raise CodecError("too-large", f"a frame of {max(sizes)} bytes, at most {MAX_FRAME_BYTES} are allowed")
        self._retain(topic, message, frames[1:], sum(sizes), now)
        self._send(frames)
        return sequence

    def _next(self, topic: Topic) -> int:
        if topic in self._reliable:
            return self._reliable[topic].ring.next
        return self._latest[topic].next if topic in self._latest else self._passing[topic]

    def _retain(self, topic: Topic, message: Message, frames: Frames, num_bytes: int, now: float) -> None:
        if topic in self._passing:
            self._passing[topic] += 1
        elif topic in self._latest:
            self._latest[topic].append(latest_key(message), frames, num_bytes)
        else:
            ring = self._reliable[topic].ring
            slowest = self._slowest(topic, now) if ring.num_bytes + num_bytes > ring.limit_bytes else None
            ring.append(frames, num_bytes, slowest[1] if slowest else None)

    def is_full(self, topic: Topic, now: float) -> bool:
        """Return whether `publish` on ``topic`` would raise; then the slowest reader is asked how far it is."""
        stream = self._reliable.get(topic)
        if stream is None or stream.ring.num_bytes < stream.ring.limit_bytes:
            return False
        slowest = self._slowest(topic, now)
        if not stream.ring.is_full(slowest[1] if slowest else None):
            return False
        if slowest is not None and now >= stream.pressed_at + PRESS_S:
            stream.pressed_at = now
            self._say(slowest[0], Press(topic=topic.value))
        return True

    def _slowest(self, topic: Topic, now: float) -> tuple[str, int] | None:
        oldest = now - self._config.silence_s
        return self._reliable[topic].readers.slowest(lambda reader: (self._alive_since(reader) or 0.0) >= oldest)

    def on_taken(self, reader: str, taken: Taken) -> None:
        """A reader told how far it is."""
        stream = self._reliable.get(Topic(taken.topic))
        if stream is None or taken.incarnation != self._incarnation:
            return
        if taken.waived:
            stream.readers.waive(reader)
        else:
            stream.readers.acknowledge(reader, taken.until)

    def on_ask(self, reader: str, ask: Ask) -> None:
        """Replay to ``reader`` what is retained of the range that it asks for, then say what is gone."""
        topic = Topic(ask.topic)
        if ask.incarnation != self._incarnation or topic in self._passing:
            return
        end = min(ask.until, self._next(topic))
        entries: list[Entry[Frames]]
        if topic in self._latest:
            entries, gone_until = self._latest[topic].between(ask.first, end), 0
        else:
            ring = self._reliable[topic].ring
            entries, gone_until = ring.between(ask.first, end), ring.oldest
            entries = _within_budget(entries)
            end = entries[-1].sequence + 1 if entries else end
        replay = Replay(token=ask.token)
        for entry in entries:
            head = encode_control(own_prefix(reader), self._name, self._incarnation, replay)
            self._send([*head, *entry.item])
        answer = Answer(
            token=ask.token, topic=ask.topic, incarnation=self._incarnation, gone_until=gone_until, until=end
        )
        self._say(reader, answer)

    def _say(self, reader: str, control: Control) -> None:
        self._send(encode_control(own_prefix(reader), self._name, self._incarnation, control))

    def published(self) -> dict[Topic, int]:
        """Messages published per topic, which is also the next sequence number."""
        return {
            **{topic: stream.ring.next for topic, stream in self._reliable.items()},
            **{topic: values.next for topic, values in self._latest.items()},
            **self._passing,
        }

    def ends(self) -> dict[str, int]:
        """Next sequence number of each topic that can be repaired and was published on."""
        return {topic.value: end for topic, end in self.published().items() if end and topic not in self._passing}

    def retained_bytes(self) -> int:
        """Bytes held for readers that may ask."""
        rings = sum(stream.ring.num_bytes for stream in self._reliable.values())
        return rings + sum(values.num_bytes for values in self._latest.values())


def _within_budget(entries: list[Entry[Frames]]) -> list[Entry[Frames]]:
    num_bytes = 0
    for index, entry in enumerate(entries[:MAX_REPLAY_MESSAGES]):
        num_bytes += entry.num_bytes
        if num_bytes > MAX_REPLAY_BYTES and index > 0:
            return entries[:index]
    return entries[:MAX_REPLAY_MESSAGES]


def _owned(frame: Frame) -> Frame:
    """Return the frame itself where nobody can write to its memory, else a copy: retention must not change later."""
    if isinstance(frame, bytes):
        return frame
    memory: object = frame.obj
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return bytes(frame)
        if memory.base is None:
            return frame
        memory = memory.base
    return frame if isinstance(memory, bytes) else bytes(frame)
