"""Messages as frames and back. MessagePack with every cap set; no pickle; sizes are checked before allocating.

Frames of a message: ``[topic, header, body, array, …]``. Header: ``[sender, incarnation, sequence, type name]``. Body:
the values of the dataclass's fields, in order. Arrays of `swarm.arrays.OWN_FRAME_BYTES` or more have own frames.

What any peer sends is either a valid message or a `CodecError` with a countable reason: never another exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgpack

from swarm.arrays import Frame, pack_arrays, unpack_arrays
from swarm.bus import Received
from swarm.errors import CodecError
from swarm.messages import Message
from swarm.topics import TOPIC_OF, Topic
from swarm.validation import Rule, check_count, check_id, rules_of

ThingT = TypeVar("ThingT")

MAX_FRAMES: Final = 1100
MAX_HEADER_BYTES: Final = 1024
MAX_BODY_BYTES: Final = 32 << 20
MAX_ITEMS: Final = 1 << 20
MESSAGE_TYPE_BY_NAME: Final[Mapping[str, type[Message]]] = {
    message_type.__name__: message_type for message_type in TOPIC_OF
}
_rules: dict[type, tuple[tuple[str, Rule | None], ...]] = {}


@dataclass(frozen=True, slots=True)
class Header:
    """Who sent a frame set, in which life, at which place of the stream, and of which type it is."""

    sender: str
    incarnation: int
    sequence: int
    type_name: str


def encode(sender: str, incarnation: int, sequence: int, message: Message) -> list[Frame]:
    """Return the frames of ``message``; array frames are views of the message's own memory.

    Raises:
        CodecError: the message does not validate, or its type belongs to no topic.
    """
    topic = TOPIC_OF.get(type(message))
    if topic is None:
        raise CodecError(
            "unknown-type", f"{type(message).__name__} belongs to no topic; see swarm.topics.MESSAGE_TYPES"
        )
    header = encode_header(Header(sender, incarnation, sequence, type(message).__name__))
    return [topic.encode(), header, *encode_body(message)]


def decode(frames: Sequence[Frame]) -> Received:
    """Return the message in ``frames``. Raises ``CodecError`` for everything that is not a valid one."""
    if not 3 <= len(frames) <= MAX_FRAMES:
        raise CodecError("bad-frames", f"got {len(frames)} frames, expected 3 to {MAX_FRAMES}")
    header = decode_header(frames[1])
    return decode_received(check_topic(frames[0], header), header, frames[2:])


def check_topic(frame: Frame, header: Header) -> Topic:
    """Return the topic that ``frame`` names, which must be the one of the header's message type."""
    message_type = MESSAGE_TYPE_BY_NAME.get(header.type_name)
    if message_type is None:
        raise CodecError("unknown-type", f"no message type is called {header.type_name[:40]!r}")
    topic = TOPIC_OF[message_type]
    if bytes(frame) != topic.encode():
        raise CodecError("wrong-topic", f"{header.type_name} belongs to {topic!s}, not to {bytes(frame[:40])!r}")
    return topic


def decode_received(topic: Topic, header: Header, frames: Sequence[Frame]) -> Received:
    """Return the message whose header is read already; ``frames`` are body and arrays."""
    return Received(
        sender=header.sender,
        incarnation=header.incarnation,
        topic=topic,
        sequence=header.sequence,
        message=decode_body(MESSAGE_TYPE_BY_NAME[header.type_name], frames),
    )


def encode_header(header: Header) -> bytes:
    """Return the header frame."""
    return _pack([header.sender, header.incarnation, header.sequence, header.type_name])


def decode_header(frame: Frame) -> Header:
    """Return the validated header."""
    if len(frame) > MAX_HEADER_BYTES:
        raise CodecError("too-large", f"header of {len(frame)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    values = _unpack(frame)
    if not isinstance(values, list) or len(values) != 4 or not isinstance(values[3], str):
        raise CodecError("bad-header", "expected [sender, incarnation, sequence, type name]")
    sender = check_id(values[0], "sender")
    return Header(sender, check_count(values[1], "incarnation"), check_count(values[2], "sequence"), values[3])


def encode_body(thing: object) -> list[Frame]:
    """Return body and array frames of a dataclass instance."""
    frames: list[Frame] = []
    values: list[object] = []
    for name, rule in _rules_of(type(thing)):
        value = getattr(thing, name)
        values.append(rule(value, name) if rule is not None else pack_arrays(value, name, frames))
    body = _pack(values)
    if len(body) > MAX_BODY_BYTES:
        raise CodecError("too-large", f"body of {len(body)} bytes, at most {MAX_BODY_BYTES} are allowed")
    return [body, *frames]


def decode_body(thing_type: type[ThingT], frames: Sequence[Frame]) -> ThingT:
    """Return an instance of the dataclass ``thing_type`` from body and array frames."""
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise CodecError("bad-frames", f"got {len(frames)} frames of body and arrays, expected 1 to {MAX_FRAMES}")
    if len(frames[0]) > MAX_BODY_BYTES:
        raise CodecError("too-large", f"body of {len(frames[0])} bytes, at most {MAX_BODY_BYTES} are allowed")
    rules = _rules_of(thing_type)
    values = _unpack(frames[0])
    if not isinstance(values, list) or len(values) != len(rules):
        raise CodecError("bad-body", f"expected the {len(rules)} fields of {thing_type.__name__}")
    taken: set[int] = set()
    checked: dict[str, object] = {}
    for (name, rule), value in zip(rules, values, strict=True):
        checked[name] = rule(value, name) if rule is not None else unpack_arrays(value, name, frames[1:], taken)
    if len(taken) != len(frames) - 1:
        raise CodecError("bad-frames", f"{len(frames) - 1} array frames arrived, {len(taken)} are described")
    return thing_type(**checked)


def _rules_of(thing_type: type) -> tuple[tuple[str, Rule | None], ...]:
    rules = _rules.get(thing_type)
    if rules is None:
        rules = _rules[thing_type] = rules_of(thing_type)
    return rules


def _pack(values: list[object]) -> bytes:
    try:
        packed: bytes = msgpack.packb(values, use_bin_type=True, default=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError("not-packable", str(error)) from error
    return packed


def _plain(value: object) -> object:
    """Turn mappings and sequences that MessagePack does not know into those that it knows."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot travel")


def _unpack(frame: Frame) -> object:
    """Unpack one whole frame. The caps bound memory; nesting beyond MessagePack's own stack is an error of it."""
    try:
        value: object = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique_pairs,
            max_str_len=MAX_ITEMS,
            max_bin_len=MAX_BODY_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError, RecursionError) as error:
        raise CodecError(_slug(error), str(error)[:200] or type(error).__name__) from error
    return value


def _unique_pairs(pairs: list[tuple[object, object]]) -> dict[object, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise CodecError("duplicate-key", "a mapping names a key twice")
    return mapping


def _slug(error: Exception) -> str:
    if isinstance(error, msgpack.ExtraData):
        return "trailing-bytes"
    if isinstance(error, msgpack.StackError):
        return "too-deep"
    if isinstance(error, UnicodeDecodeError):
        return "bad-text"
    text = str(error)
    if "incomplete" in text:
        return "truncated"
    if "exceeds" in text:
        return "too-large"
    return "bad-key" if "map key" in text else "not-msgpack"
