"""Interventions on what an agent publishes: is a topic's content really used? Pure; the host applies it.

``stop`` keeps every message of a topic from travelling. ``replace`` lets the envelope travel (who, which task, which
round) with the payload of *another* round: the one before it. Nothing is replaced in the first round of a stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from swarm.errors import ConfigError
from swarm.messages import Evaluation, Gradient, Json, Message, ParameterVersion, Proposal
from swarm.topics import TOPIC_OF, Topic

REPLACEABLE: Final = frozenset({Topic.PROPOSALS, Topic.GRADIENTS, Topic.EVALUATIONS, Topic.PARAMETERS})
STOPPABLE: Final = REPLACEABLE | {Topic.EXPERIENCE}
MAX_STREAMS: Final = 10_000

_PAYLOADS: Final[dict[type[Message], tuple[str, ...]]] = {
    Proposal: ("values", "cost", "uncertainty", "terms"),
    Gradient: ("arrays", "num_samples"),
    Evaluation: ("scores", "details"),
    ParameterVersion: ("arrays",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Topics whose payloads are replaced, and topics that are stopped."""

    replace: frozenset[Topic] = frozenset()
    stop: frozenset[Topic] = frozenset()

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Self:
        """Read ``{"replace": [topic, …], "stop": [topic, …]}``. Raises ``ConfigError``."""
        unknown = sorted(set(data) - {"replace", "stop"})
        if unknown:
            raise ConfigError(f"faults: unknown key {unknown[0]!r}; known keys are 'replace' and 'stop'")
        return cls(
            replace=_topics("replace", data.get("replace", ()), REPLACEABLE),
            stop=_topics("stop", data.get("stop", ()), STOPPABLE),
        )

    def to_json(self) -> dict[str, Json]:
        """JSON-like form, as `from_json` reads it."""
        return {"replace": sorted(self.replace), "stop": sorted(self.stop)}


@dataclass(slots=True)
class _Stream:
    """Payloads of one publisher's stream: of the round that it is in, and of the one before."""

    round_key: str
    current: Mapping[str, object]
    previous: Mapping[str, object] | None = None


@dataclass(slots=True)
class Ablation:
    """Applies `Faults` to the messages of one node.

    Attributes:
        replaced: messages per topic whose payload was replaced.
        stopped: messages per topic that did not travel.
    """

    faults: Faults = field(default_factory=Faults)
    replaced: dict[Topic, int] = field(default_factory=dict)
    stopped: dict[Topic, int] = field(default_factory=dict)
    _streams: dict[tuple[str, ...], _Stream] = field(default_factory=dict)

    def apply(self, message: Message) -> Message | None:
        """Return what to publish in place of ``message``; ``None``: nothing."""
        topic = TOPIC_OF[type(message)]
        if topic in self.faults.stop:
            self.stopped[topic] = self.stopped.get(topic, 0) + 1
            return None
        if topic not in self.faults.replace or type(message) not in _PAYLOADS:
            return message
        payload = self._earlier_payload(message)
        if payload is None:
            return message
        self.replaced[topic] = self.replaced.get(topic, 0) + 1
        return replace(message, **payload)

    def _earlier_payload(self, message: Message) -> Mapping[str, object] | None:
        """Remember the payload of ``message`` and return the one of the round before it, if there was one.

        A round that is published again (re-auction, restart of the coordinator) gets the same replacement again.
        """
        key, round_key = _stream_of(message)
        payload = {name: getattr(message, name) for name in _PAYLOADS[type(message)]}
        stream = self._streams.get(key)
        if stream is None:
            while len(self._streams) >= MAX_STREAMS:
                self._streams.pop(next(iter(self._streams)))
            self._streams[key] = _Stream(round_key, payload)
            return None
        if stream.round_key != round_key:
            stream.round_key, stream.previous, stream.current = round_key, stream.current, payload
        return stream.previous


def _stream_of(message: Message) -> tuple[tuple[str, ...], str]:
    """Return the stream of ``message`` and which round it belongs to.

    Tasks whose ids differ only in their numbers (``r7.act``, ``r8.act``) are one stream; the first number is the round.
    """
    match message:
        case Proposal(agent=agent, task_id=task_id):
            return ("proposal", agent, re.sub(r"\d+", "#", task_id)), _first_number(task_id)
        case Gradient(owner=owner, kind=kind, version=version):
            return ("gradient", owner, kind), str(version)
        case Evaluation(judge=judge, kind=kind, round_index=round_index):
            return ("evaluation", judge, kind), str(round_index)
        case ParameterVersion(owner=owner, version=version):
            return ("parameters", owner), str(version)
    raise AssertionError(f"no stream is defined for {type(message).__name__}")


def _first_number(task_id: str) -> str:
    found = re.search(r"\d+", task_id)
    return found.group() if found else task_id


def _topics(key: str, names: Json, allowed: frozenset[Topic]) -> frozenset[Topic]:
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise ConfigError(f"faults.{key}: got {names!r}, expected a list of topic names")
    known = {topic.value: topic for topic in allowed}
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ConfigError(f"faults.{key}: got {name!r}, expected one of {', '.join(sorted(known))}")
    return frozenset(known[name] for name in names if isinstance(name, str))
