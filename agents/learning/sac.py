"""The training state of a member and its updates by soft actor-critic: a pure function of state, rows and draws.

Letters in this file: U updates, B batch, K target critics to choose from, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import SacConfig
from agents.learning.networks import NetworkSizes
from agents.learning.replay import Replay, draw_indices
from agents.learning.tiles import aligned_copy
from agents.learning.update_state import (
    NUM_SUMS,
    SUM_DISTANCE,
    SUM_ENTROPY,
    SUM_IMITATED,
    SUM_LOSS,
    SUM_VALUE,
    Draws,
    Peers,
    Settings,
    Sizes,
    Vectors,
    workspace,
)
from agents.learning.updates import run_updates

DRAW_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """The few numbers of a member's training state; all exactly representable as float64.

    Attributes:
        log_alpha: log temperature, with ``alpha_m`` and ``alpha_v`` its Adam moments.
        critic_steps: Adam steps of the critics (= updates); ``actor_steps``: of actor and temperature.
        target_low: successor values are clamped to [``target_low``, ``target_high``].
        seen_low: range of targets since the beginning, which becomes the clamp every 250 updates.
        skipped: updates that were skipped because a target or log density was not finite.
        critic_restart: ``critic_steps`` when the optimiser last started afresh.
        actor_restart: ``actor_steps`` then.
        resets: how often networks were drawn afresh.
        guide_weight: adaptive weight of guidance, with the sum of ``guide_distance`` over ``guide_updates`` since it
            was last adapted.
    """

    log_alpha: float = 0.0
    alpha_m: float = 0.0
    alpha_v: float = 0.0
    critic_steps: int = 0
    actor_steps: int = 0
    target_low: float = -math.inf
    target_high: float = math.inf
    seen_low: float = math.inf
    seen_high: float = -math.inf
    skipped: int = 0
    critic_restart: int = 0
    actor_restart: int = 0
    resets: int = 0
    guide_weight: float = 1.0
    guide_distance: float = 0.0
    guide_updates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberState:
    """Everything that a member's training continues from. Functions return new states and never write to given ones.

    Attributes:
        theta: (P,) two critics, then the actor; ``m`` and ``v`` are its Adam moments.
        targets: (2, P_critic) target critics.
        anchor: (P_actor,) the best member's actor when the weight of guidance was last adapted; empty without guidance.
        average: (P_actor,) running average of the actor, which is deployed; empty: the actor itself is.

    There is no random state: every draw comes from a stream keyed by the run's seed, the round and the member.
    """

    sizes: NetworkSizes
    theta: Tensor
    m: Tensor
    v: Tensor
    targets: Tensor
    scalars: Scalars
    anchor: Tensor = field(default_factory=lambda: torch.empty(0))
    average: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def num_updates(self) -> int:
        """Updates so far."""
        return self.scalars.critic_steps

    @property
    def updates_since_reset(self) -> int:
        """Updates since networks were last drawn afresh."""
        return self.scalars.critic_steps - self.scalars.critic_restart

    @property
    def actor(self) -> Tensor:
        """(P_actor,) the trained actor, a view of ``theta``."""
        return self.sizes.split(self.theta)[1]

    @property
    def deployed_actor(self) -> Tensor:
        """(P_actor,) the actor that is deployed."""
        return self.average if len(self.average) else self.actor


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnMetrics:
    """Means over the updates of one call; NaN where no update was made.

    Attributes:
        resets: of the member so far.
        guide_weight: adaptive weight of guidance; ``guide_distance``: from the best member's actions. NaN: no guide.
        imitated_share: share of rows whose action, a peer's, was worth imitating.
    """

    num_updates: int
    critic_loss: float
    mean_value: float
    entropy: float
    temperature: float
    skipped: int
    resets: int
    guide_weight: float
    guide_distance: float
    imitated_share: float


def learn(
    member: MemberState,
    peer_targets: Tensor | None,
    replay: Replay,
    own_rows: NDArray[np.int64],
    num_updates: int,
    rng: np.random.Generator,
    config: SacConfig,
    guide: Tensor | None = None,
) -> tuple[MemberState, LearnMetrics]:
    """Return the member after ``num_updates`` updates. The same arguments give the same bits (one torch thread).

    Args:
        peer_targets: (K, P_critic) frozen target critics of the other members, in fixed order; ``None``: none.
        own_rows: indices of rows in which this member acted; ``config.own_share`` of each batch comes from them.
        guide: (P_actor,) the best member's actor, for ``config.guidance``; ``None``: the member is the best, or alone.
        rng: drives batches, exploration noise and the choice of target critics, in this order per 64 updates.

    Raises:
        ConfigError: the replay is empty.
    """
    if num_updates == 0:
        return member, _no_updates(member)
    learner = _Learner(member, peer_targets, replay, own_rows, config, guide)
    for start in range(0, num_updates, DRAW_CHUNK):
        num_draws = min(DRAW_CHUNK, num_updates - start)
        learner.run(draw_updates(rng, num_draws, replay, own_rows, learner.num_targets, config))
    return learner.result()


def draw_updates(
    rng: np.random.Generator,
    num_updates: int,
    replay: Replay,
    own_rows: NDArray[np.int64],
    num_targets: int,
    config: SacConfig,
) -> Draws:
    """Return all that is random in ``num_updates`` updates.

    Raises:
        ConfigError: the replay is empty.
    """
    shape = (num_updates, config.batch_size)
    rows = draw_indices(rng, replay.num_rows, own_rows, config.own_share, shape)
    noise = rng.standard_normal((num_updates, 2, config.batch_size, replay.actions), dtype=np.float32)
    pairs = np.argsort(rng.random((num_updates, num_targets)), axis=1, kind="stable")[:, :2]
    return Draws(
        rows=rows, noise=noise.astype(replay.packed.numpy().dtype, copy=False), pairs=np.ascontiguousarray(pairs)
    )


class _Learner:
    """Working copies of one call of `learn`."""

    def __init__(
        self,
        member: MemberState,
        peer_targets: Tensor | None,
        replay: Replay,
        own_rows: NDArray[np.int64],
        config: SacConfig,
        guide: Tensor | None,
    ) -> None:
        self._member, self._packed = member, replay.packed.numpy()
        self._average_rate = config.average_rate
        peers = [peer_targets] if peer_targets is not None and config.pooled_targets > 1 else []
        self._vectors = Vectors(
            theta=aligned_copy(member.theta.numpy()),
            m=aligned_copy(member.m.numpy()),
            v=aligned_copy(member.v.numpy()),
            targets=aligned_copy(torch.cat([member.targets, *peers]).numpy()),
        )
        self._scalars = np.array(astuple(member.scalars), np.float64)
        self._sums = np.zeros(NUM_SUMS)
        self._peers = _peers(member, replay, own_rows, config, guide)
        sizes = member.sizes
        self._sizes = Sizes(sizes.inputs, sizes.actions, *sizes.actor_hidden, *sizes.critic_hidden)
        self._workspace = workspace(self._vectors, self._sizes, config.batch_size, self._packed.shape[1])
        self._settings = Settings(
            learning_rate=float(config.learning_rate),
            discount=float(config.discount),
            target_rate=float(config.target_rate),
            target_entropy=float(config.target_entropy),
            policy_delay=int(config.policy_delay),
            guidance=float(config.guidance),
            guidance_distance=float(config.guidance_distance),
            imitation=float(config.imitation),
        )

    @property
    def num_targets(self) -> int:
        """Target critics to choose from."""
        return len(self._vectors.targets)

    @property
    def _guided(self) -> bool:
        return len(self._peers.guide) > 0

    def run(self, draws: Draws) -> None:
        """Make one update for each batch of draws."""
        run_updates(
            self._vectors,
            self._scalars,
            self._packed,
            self._peers,
            draws,
            self._sizes,
            self._settings,
            self._sums,
            self._workspace,
        )

    def result(self) -> tuple[MemberState, LearnMetrics]:
        """Return the new state and what the updates were like."""
        before, scalars = self._member.scalars, scalars_from(self._scalars.tolist())
        theta, m, v, targets = (torch.from_numpy(vector) for vector in self._vectors)
        state = MemberState(
            sizes=self._member.sizes,
            theta=theta,
            m=m,
            v=v,
            targets=targets[:2].clone(),
            scalars=scalars,
            anchor=torch.from_numpy(self._peers.anchor) if self._guided else self._member.anchor,
        )
        updates, actor_updates = scalars.critic_steps - before.critic_steps, scalars.actor_steps - before.actor_steps
        state = replace(state, average=_moved(self._member.average, state.actor, updates, self._average_rate))
        return state, LearnMetrics(
            num_updates=updates,
            critic_loss=_mean(self._sums[SUM_LOSS], updates),
            mean_value=_mean(self._sums[SUM_VALUE], updates),
            entropy=_mean(self._sums[SUM_ENTROPY], actor_updates),
            temperature=math.exp(scalars.log_alpha),
            skipped=scalars.skipped - before.skipped,
            resets=scalars.resets,
            guide_weight=scalars.guide_weight if self._guided else math.nan,
            guide_distance=_mean(self._sums[SUM_DISTANCE], actor_updates if self._guided else 0),
            imitated_share=_mean(self._sums[SUM_IMITATED], actor_updates),
        )


def _peers(
    member: MemberState, replay: Replay, own_rows: NDArray[np.int64], config: SacConfig, guide: Tensor | None
) -> Peers:
    """Return what the actor learns from its peers, by ``config``; a first guide is its own anchor."""
    foreign = np.zeros(replay.num_rows if config.imitation > 0 else 0, np.uint8)
    if config.imitation > 0:
        foreign[:] = 1
        foreign[own_rows] = 0
    nobody = np.empty(0, member.theta.numpy().dtype)
    if config.guidance == 0 or guide is None:
        return Peers(guide=nobody, anchor=nobody.copy(), foreign=foreign)
    anchor = member.anchor if len(member.anchor) else guide
    return Peers(guide=guide.numpy(), anchor=anchor.numpy().copy(), foreign=foreign)


def scalars_from(values: Sequence[float]) -> Scalars:
    """Return the scalars whose fields have the given values, in order; `dataclasses.astuple` gives them back."""
    named: dict[str, Any] = {
        field.name: int(value) if field.type == "int" else value
        for field, value in zip(fields(Scalars), values, strict=True)
    }
    return Scalars(**named)


def _moved(average: Tensor, actor: Tensor, num_updates: int, rate: float) -> Tensor:
    """Return ``average`` after ``num_updates`` updates that led to ``actor``; it begins with the first one's."""
    if rate == 0:
        return torch.empty(0)
    if not len(average):
        return actor.clone()
    return torch.lerp(average, actor, 1 - (1 - rate) ** num_updates)


def _mean(total: float, count: int) -> float:
    return float(total) / count if count else math.nan


def _no_updates(member: MemberState) -> LearnMetrics:
    return LearnMetrics(
        num_updates=0,
        critic_loss=math.nan,
        mean_value=math.nan,
        entropy=math.nan,
        temperature=math.exp(member.scalars.log_alpha),
        skipped=0,
        resets=member.scalars.resets,
        guide_weight=math.nan,
        guide_distance=math.nan,
        imitated_share=math.nan,
    )
