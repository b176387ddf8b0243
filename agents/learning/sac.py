"""Soft actor-critic updates of one member: many per call, on flat vectors, with hand-written gradients.

Letters in this file: U updates, B batch, X inputs, A actions, K target critics to choose from, P parameters.

Source: Haarnoja et al. 2018, arXiv:1812.05905 (losses, temperature); Chen et al. 2021, arXiv:2101.05982 (REDQ: minimum
over a random two of many target critics); Fujimoto et al. 2023, arXiv:2306.02451, section 4.2 (values of successors are
clamped to the range of past targets, updated every 250 updates).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import SacConfig
from agents.learning.networks import ActorPass, CriticPair, CriticWeights, NetworkSizes, OnlineCritics
from agents.learning.parameters import ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, Adam
from agents.learning.replay import Batch, Replay, draw_indices

CLAMP_PERIOD = 250
DRAW_CHUNK = 64
METRICS_PERIOD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """The few numbers of a member's training state; all exactly representable as float64.

    Attributes:
        log_alpha: log temperature, with ``alpha_m`` and ``alpha_v`` its Adam moments.
        critic_steps: Adam steps of the critics (= updates); ``actor_steps``: of actor and temperature.
        target_low: successor values are clamped to [``target_low``, ``target_high``].
        seen_low: range of targets since the beginning, which becomes the clamp every 250 updates.
        skipped: updates that were skipped because a target or log density was not finite.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberState:
    """Everything that a member's training continues from. Functions return new states and never write to given ones.

    Attributes:
        theta: (P,) two critics, then the actor; ``m`` and ``v`` are its Adam moments.
        targets: (2, P_critic) target critics.
    """

    sizes: NetworkSizes
    theta: Tensor
    m: Tensor
    v: Tensor
    targets: Tensor
    scalars: Scalars

    @property
    def num_updates(self) -> int:
        """Updates so far."""
        return self.scalars.critic_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnMetrics:
    """Means over the updates of one call; NaN where no update was made."""

    num_updates: int
    critic_loss: float
    mean_value: float
    entropy: float
    temperature: float
    skipped: int


def learn(
    member: MemberState,
    peer_targets: Tensor | None,
    replay: Replay,
    own_rows: NDArray[np.int64],
    num_updates: int,
    rng: np.random.Generator,
    config: SacConfig,
) -> tuple[MemberState, LearnMetrics]:
    """Return the member after ``num_updates`` updates. The same arguments give the same bits (one torch thread).

    Args:
        peer_targets: (K, P_critic) frozen target critics of the other members, in fixed order; ``None``: none.
        own_rows: indices of rows in which this member acted; ``config.own_share`` of each batch comes from them.
        rng: drives batches, exploration noise and the choice of target critics, in this order per 64 updates.

    Raises:
        ConfigError: the replay is empty.
    """
    if num_updates == 0:
        return member, _no_updates(member)
    with torch.inference_mode():
        learner = _Learner(member, peer_targets, replay, config)
        for start in range(0, num_updates, DRAW_CHUNK):
            shape = (min(DRAW_CHUNK, num_updates - start), config.batch_size)
            rows = draw_indices(rng, replay.num_rows, own_rows, config.own_share, shape)
            noise = rng.standard_normal((shape[0], 2, shape[1], member.sizes.actions), dtype=np.float32)
            pairs = np.argsort(rng.random((shape[0], learner.num_targets)), axis=1, kind="stable")[:, :2]
            learner.run(torch.from_numpy(rows), torch.from_numpy(noise).to(member.theta.dtype), pairs.tolist())
    return learner.result()


class _Learner:
    """Working copies and buffers of one call of `learn`."""

    def __init__(self, member: MemberState, peer_targets: Tensor | None, replay: Replay, config: SacConfig) -> None:
        sizes = member.sizes
        self._sizes, self._config, self._replay = sizes, config, replay
        self._theta, self._m, self._v = member.theta.clone(), member.m.clone(), member.v.clone()
        self._gradient = torch.zeros_like(self._theta)
        peers = [peer_targets] if peer_targets is not None and config.pooled_targets > 1 else []
        self._targets = torch.cat([member.targets, *peers])
        self._target_weights = [CriticWeights(sizes, flat) for flat in self._targets]
        self.num_targets = len(self._targets)
        critics, actor = sizes.split(self._theta)
        critics_gradient, actor_gradient = sizes.split(self._gradient)
        self._critics, self._own_targets = critics, self._targets[:2]
        self._online = OnlineCritics(sizes, critics, critics_gradient)
        self._critic_pass = CriticPair(sizes, config.batch_size, self._theta.dtype)
        self._actor_pass = ActorPass(sizes, actor, actor_gradient, config.batch_size)
        self._batch = Batch(replay, config.batch_size)
        critic, policy = slice(0, critics.numel()), slice(critics.numel(), None)
        vectors = (self._theta, self._gradient, self._m, self._v)
        self._critic_adam = Adam(*(flat[critic] for flat in vectors), steps=member.scalars.critic_steps)
        self._actor_adam = Adam(*(flat[policy] for flat in vectors), steps=member.scalars.actor_steps)
        self._scalars = member.scalars
        self._before = member.scalars
        self._loss, self._value, self._entropy = Mean(), Mean(), Mean()

    def run(self, rows: Tensor, noise: Tensor, pairs: Sequence[Sequence[int]]) -> None:
        """Make one update for each batch of row indices (U, B), with noise (U, 2, B, A) and pairs of target critics."""
        for batch_rows, (next_noise, own_noise), pair in zip(rows, noise, pairs, strict=True):
            self._batch.load(self._replay, batch_rows)
            if self._update_critics(next_noise, pair) and self._steps % self._config.policy_delay == 0:
                self._update_actor(own_noise)

    @property
    def _steps(self) -> int:
        return self._scalars.critic_steps

    def _target(self, noise: Tensor, pair: Sequence[int]) -> Tensor:
        """Return r + γ · continues · clamp(min of two target critics − α log π), shape (B,)."""
        batch, scalars = self._batch, self._scalars
        log_prob = self._actor_pass.sample(batch.next_state, noise, batch.next_action)
        weights = [self._target_weights[k] for k in pair]
        values = self._critic_pass.forward(weights, batch.next_state_action)
        value = torch.minimum(values[0], values[1]).sub_(log_prob, alpha=math.exp(scalars.log_alpha))
        value.clamp_(scalars.target_low, scalars.target_high)
        # `where`, not a product: a successor value that is not finite must not reach a terminated row.
        value = torch.where(batch.continues > 0, value, 0.0)
        return torch.add(batch.reward, value, alpha=self._config.discount)

    def _update_critics(self, noise: Tensor, pair: Sequence[int]) -> bool:
        """One step of both critics and their targets; skipped, counted and answered by false if not finite."""
        target = self._target(noise, pair)
        low, high = float(target.amin()), float(target.amax())
        if not (math.isfinite(low) and math.isfinite(high)):
            self._skip()
            return False
        values = self._critic_pass.forward(self._online.pair, self._batch.state_action)
        error = values - target
        if self._steps % METRICS_PERIOD == 0:
            self._loss.add(float(error.square().mean()))
            self._value.add(float(values.mean()))
        self._critic_pass.backward_parameters(
            self._online, self._batch.state_action, error.div_(len(target))[..., None]
        )
        self._critic_adam.step(self._config.learning_rate)
        self._own_targets.lerp_(self._critics, self._config.target_rate)
        self._scalars = _after_critic_step(self._scalars, low, high)
        return True

    def _update_actor(self, noise: Tensor) -> None:
        """Follow the minimum of the member's own two critics; the batch's actions are overwritten."""
        batch, batch_size = self._batch, len(noise)
        alpha = math.exp(self._scalars.log_alpha)
        log_prob = float(self._actor_pass.sample(batch.state, noise, batch.action).mean())
        if not math.isfinite(log_prob):
            self._skip()
            return
        values = self._critic_pass.forward(self._online.pair, batch.state_action)
        d_values = torch.empty_like(values)
        d_values[0] = values[0] <= values[1]
        torch.sub(1, d_values[0], out=d_values[1])
        d_action = self._critic_pass.backward_action(self._online, d_values.div_(-batch_size)[..., None])
        self._actor_pass.backward(batch.state, batch.action, d_action, alpha / batch_size)
        self._actor_adam.step(self._config.learning_rate)
        self._entropy.add(-log_prob)
        self._scalars = _after_actor_step(self._scalars, log_prob, self._config)

    def _skip(self) -> None:
        self._scalars = replace(self._scalars, skipped=self._scalars.skipped + 1)

    def result(self) -> tuple[MemberState, LearnMetrics]:
        """Return the new state and what the updates were like."""
        state = MemberState(
            sizes=self._sizes,
            theta=self._theta,
            m=self._m,
            v=self._v,
            targets=self._own_targets.clone(),
            scalars=self._scalars,
        )
        return state, LearnMetrics(
            num_updates=self._scalars.critic_steps - self._before.critic_steps,
            critic_loss=self._loss.value,
            mean_value=self._value.value,
            entropy=self._entropy.value,
            temperature=math.exp(self._scalars.log_alpha),
            skipped=self._scalars.skipped - self._before.skipped,
        )


def _no_updates(member: MemberState) -> LearnMetrics:
    return LearnMetrics(
        num_updates=0,
        critic_loss=math.nan,
        mean_value=math.nan,
        entropy=math.nan,
        temperature=math.exp(member.scalars.log_alpha),
        skipped=0,
    )


class Mean:
    """A running mean; NaN of nothing."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """Count one more value."""
        self._sum += value
        self._count += 1

    @property
    def value(self) -> float:
        """The mean so far."""
        return self._sum / self._count if self._count else math.nan


def _after_critic_step(scalars: Scalars, low: float, high: float) -> Scalars:
    """Count the step and widen the range of targets seen; every `CLAMP_PERIOD` steps it becomes the clamp."""
    steps = scalars.critic_steps + 1
    low, high = min(scalars.seen_low, low), max(scalars.seen_high, high)
    if steps % CLAMP_PERIOD == 0:
        return replace(scalars, critic_steps=steps, seen_low=low, seen_high=high, target_low=low, target_high=high)
    return replace(scalars, critic_steps=steps, seen_low=low, seen_high=high)


def _after_actor_step(scalars: Scalars, log_prob: float, config: SacConfig) -> Scalars:
    """One Adam step on −log α · (log π + target entropy), in double precision."""
    gradient = -(log_prob + config.target_entropy)
    steps = scalars.actor_steps + 1
    m = ADAM_BETA1 * scalars.alpha_m + (1 - ADAM_BETA1) * gradient
    v = ADAM_BETA2 * scalars.alpha_v + (1 - ADAM_BETA2) * gradient * gradient
    scale = math.sqrt(v / (1 - ADAM_BETA2**steps)) + ADAM_EPSILON
    log_alpha = scalars.log_alpha - config.learning_rate * (m / (1 - ADAM_BETA1**steps)) / scale
    return replace(scalars, log_alpha=log_alpha, alpha_m=m, alpha_v=v, actor_steps=steps)
