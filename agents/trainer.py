"""The training of one member within one round: from its pinned state, lot by lot, to the state that is committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from agents.learning.sac import LearnMetrics, learn
from agents.member import acting_weights, to_arrays
from agents.plan import group_of
from agents.randomness import generator
from swarm.messages import Json

if TYPE_CHECKING:
    from agents.pinned import Pinned


class Trainer:
    """Continues from what ``pinned`` says; a function of it, the member and the round. Blocks."""

    def __init__(self, pinned: Pinned, member: str, round_index: int) -> None:
        self._pinned = pinned
        self._name = member
        self._rng = generator(pinned.team.seed, round_index, "learn", member)
        self._state = pinned.member(member)
        self._last: LearnMetrics | None = None

    def train(self, num_updates: int) -> None:
        """Make ``num_updates`` more updates."""
        replay, own_rows = self._pinned.replay(self._name)
        self._state, self._last = learn(
            self._state,
            self._pinned.peer_targets(self._name),
            replay,
            own_rows,
            num_updates,
            self._rng,
            self._pinned.team.sac,
        )

    def to_bytes(self) -> bytes:
        """The member's training state as a safetensors file."""
        return save(to_arrays(self._state))

    def acting_weights(self) -> dict[str, NDArray[np.float32]]:
        """Weights of the member's rollout policy."""
        group = group_of(self._pinned.team, self._name)
        return acting_weights(self._state, self._pinned.encoder(group), self._pinned.scales(group))

    def metrics(self) -> Mapping[str, Json]:
        """Means over the last lot; empty before the first."""
        if self._last is None:
            return {}
        return {key: value for key, value in asdict(self._last).items() if isfinite(value)}
