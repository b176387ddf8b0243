"""The training of one member within one round: from its pinned state, lot by lot, to the state that is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite, nan
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from agents.learning.resets import is_due, reset
from agents.learning.sac import LearnMetrics, MemberState, learn
from agents.member import is_finite, to_arrays
from agents.pinned import Pinned
from agents.plan import group_of
from agents.randomness import generator, stream_key
from swarm.messages import Json


class Trainer:
    """Continues from what ``pinned`` says; a function of it, the member and the round. Blocks.

    A lot that leads to what is not finite is left out and its updates are counted as skipped: what is committed stays
    finite, and the next lot draws other rows.
    """

    def __init__(self, pinned: Pinned, member: str, round_index: int) -> None:
        self._pinned = pinned
        self._name = member
        self._rng = generator(pinned.team.seed, round_index, "learn", member)
        self._state = self._begin(round_index)
        self._config = replace(pinned.team.sac, discount=pinned.team.discount_of(member))
        self._guide = pinned.guide(member) if pinned.team.sac.guidance else None
        self._lots: list[LearnMetrics] = []

    def train(self, num_updates: int) -> None:
        """Make a lot of ``num_updates`` more updates."""
        replay, own_rows = self._pinned.replay(self._name)
        before = self._state
        self._state, metrics = learn(
            before,
            self._pinned.peer_targets(self._name),
            replay,
            own_rows,
            num_updates,
            self._rng,
            self._config,
            self._guide,
        )
        if not is_finite(self._state):
            skipped = before.scalars.skipped + num_updates
            self._state = replace(before, scalars=replace(before.scalars, skipped=skipped))
            metrics = replace(metrics, num_updates=0, skipped=num_updates, temperature=nan)
        self._lots.append(metrics)

    def _begin(self, round_index: int) -> MemberState:
        """Return the pinned state, reset where that is due."""
        team, state = self._pinned.team, self._pinned.member(self._name)
        place = team.members.index(self._name)
        if not is_due(state, team.sac.reset_every, place, len(team.members), round_index):
            return state
        return reset(state, team.sac.reset_layers, stream_key(team.seed, round_index, "reset", self._name))

    def to_bytes(self) -> bytes:
        """The member's training state as a safetensors file."""
        return save(to_arrays(self._state))

    def acting_weights(self) -> dict[str, NDArray[np.float32]]:
        """Weights of the member's rollout policy."""
        group = group_of(self._pinned.team, self._name)
        return self._pinned.weights_of(self._state, group)

    def metrics(self) -> Mapping[str, Json]:
        """Counts and means over all lots, in units of the environment's reward; empty before the first."""
        if not self._lots:
            return {}
        unit = self._pinned.team.sac.reward_scale
        in_reward = {"critic_loss": unit**2, "mean_value": unit, "temperature": unit}
        values = {key: value / in_reward.get(key, 1) for key, value in asdict(joined(self._lots)).items()}
        return {key: value for key, value in values.items() if isfinite(value)}


def joined(lots: Sequence[LearnMetrics]) -> LearnMetrics:
    """Return the metrics of several lots as one: counts add up, means weigh by updates, the rest is the newest."""
    made = [lot for lot in lots if lot.num_updates]
    return replace(
        (made or lots)[-1],
        num_updates=sum(lot.num_updates for lot in lots),
        skipped=sum(lot.skipped for lot in lots),
        critic_loss=_mean(made, "critic_loss"),
        mean_value=_mean(made, "mean_value"),
        entropy=_mean(made, "entropy"),
        guide_distance=_mean(made, "guide_distance"),
        imitated_share=_mean(made, "imitated_share"),
    )


def _mean(lots: Sequence[LearnMetrics], name: str) -> float:
    """Return the mean of a metric over the updates of those lots that have it; NaN: none has."""
    rows = [(getattr(lot, name), lot.num_updates) for lot in lots if isfinite(getattr(lot, name))]
    return fmean([value for value, _ in rows], [weight for _, weight in rows]) if rows else nan
