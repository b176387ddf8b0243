"""Sizes and times of a bus peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from swarm.arrays import Frame
from swarm.streams import RepairConfig

MAX_FRAME_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BusConfig:
    """How much a peer retains, how often it beats, when it gives up.

    Attributes:
        retention_bytes: kept per reliable topic for readers that missed something.
        beat_s: how often a peer says where its streams end.
        silence_s: a peer without a sign of life for so long holds nobody up, and its gaps count as lost.
        patience_s: how long joining may take before ``PeerLost``.
        retry_s: how often a joining peer tries.
        high_water: messages that may wait per connection before ZeroMQ drops (and the peers repair).
        drain_messages: messages taken from the socket at a time, before other tasks of the loop get their turn.
        drain_s: time for the same.
        linger_s: how long closing may flush.
        max_senders: peers that are remembered; more are rejected.
    """

    retention_bytes: int = 64 << 20
    beat_s: float = 0.5
    silence_s: float = 5.0
    patience_s: float = 10.0
    retry_s: float = 0.02
    high_water: int = 100_000
    drain_messages: int = 512
    drain_s: float = 0.005
    linger_s: float = 1.0
    max_senders: int = 1024
    repair: RepairConfig = field(default_factory=RepairConfig)


class Faults(Protocol):
    """What happens to frames between transport and peer, for tests and drills (`swarm.testing.faults`)."""

    def deliveries(self, receiver: str, frames: Sequence[Frame], now: float) -> Sequence[float]:
        """Return after how many seconds to deliver ``frames``: ``(0.0,)`` is undisturbed, empty is lost."""
        ...
