"""What the buses of peers say to each other below the topics: handshake, beats, repair. Pure.

Control frames are ``[prefix, header, body]`` and never reach a subscriber. Prefixes start with ``!``, which no topic
does; the prefix of one peer ends with ``/``, so that
``!to/a/`` is no prefix of ``!to/ab/`` (ZeroMQ subscribes by prefix).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from swarm.arrays import Frame
from swarm.codec import Header, encode_body, encode_header
from swarm.topics import Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Sent on every prefix by a peer that joins; READY once each came back. ``nonce`` tells one life from another."""

    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Where a peer stands, every half second.

    Attributes:
        ends: next sequence number of each topic that the peer has published on, so that a lost tail is noticed.
    """

    ends: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A reader asks for messages [first, until) of the stream; ``token`` names the asking subscription."""

    token: int
    topic: str
    incarnation: int
    first: int
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Ends the replay that an `Ask` asked for: what it holds of [first, until) was sent just before.

    Attributes:
        gone_until: messages before this one are retained no more.
    """

    token: int
    topic: str
    incarnation: int
    gone_until: int
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Head of a replayed message; the frames behind it are the original header, body and arrays."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A reader says up to where it has taken a stream, now and then and when pressed.

    Attributes:
        waived: the reader paused or left; it must not hold the publisher up and will bear what it loses.
    """

    topic: str
    incarnation: int
    until: int
    waived: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """A publisher whose retention is full asks the slowest reader to say how far it is."""

    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The broker counts what it refused at its door, since it started: bytes that are not ZeroMQ at all."""

    handshakes: int


Control: TypeAlias = Probe | Beat | Ask | Answer | Replay | Taken | Press | Refused
CONTROL_TYPES: Final[Mapping[str, type[Control]]] = {
    "!probe": Probe,
    "!beat": Beat,
    "!ask": Ask,
    "!answer": Answer,
    "!replay": Replay,
    "!taken": Taken,
    "!press": Press,
    "!refused": Refused,
}
_NAMES: Final = {control_type: name for name, control_type in CONTROL_TYPES.items()}

EVERYBODY: Final = b"!all/"


def own_prefix(name: str) -> bytes:
    """Return the prefix of frames that are addressed to peer ``name``."""
    return b"!to/" + name.encode() + b"/"


def prefixes(name: str) -> tuple[bytes, ...]:
    """Return all prefixes that the peer ``name`` receives."""
    return (*(topic.encode() for topic in Topic), EVERYBODY, own_prefix(name))


def encode_control(prefix: bytes, sender: str, incarnation: int, control: Control) -> list[Frame]:
    """Return the frames of a control message."""
    return [prefix, encode_header(Header(sender, incarnation, 0, _NAMES[type(control)])), *encode_body(control)]
