"""One update of a member, written with autograd and nothing else: what the compiled updates are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from agents.config import SacConfig
from agents.learning.networks import actor_output, critic_values
from agents.learning.replay import Replay
from agents.learning.sac import MemberState, Scalars
from agents.learning.updates import CLAMP_PERIOD, GUIDE_PERIOD, GUIDE_RATIO, GUIDE_TOLERANCE


def adam(value: Tensor, gradient: Tensor, m: Tensor, v: Tensor, steps: int, rate: float) -> tuple[Tensor, ...]:
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    scale = torch.sqrt(v / (1 - 0.999**steps)) + 1e-8
    return value - rate * (m / (1 - 0.9**steps)) / scale, m, v


def squashed_log_prob(log_std: Tensor, pre_tanh: Tensor, noise: Tensor) -> Tensor:
    """Log density (B,) of a = tanh(u), u = mean + std · noise. Source: arXiv:1812.05905, appendix C.

    log(1 − tanh²u) is written as 2 (log 2 − u − softplus(−2u)), which cannot overflow.
    """
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    correction = 2 * (math.log(2) - pre_tanh - torch.nn.functional.softplus(-2 * pre_tanh))
    return (gaussian - correction).sum(-1)


class Reference:
    """A member that is trained update by update; attributes as of `MemberState`."""

    def __init__(self, member: MemberState, replay: Replay, config: SacConfig) -> None:
        self.sizes, self.scalars, self.config = member.sizes, member.scalars, config
        self.packed = replay.packed
        self.theta, self.m, self.v = member.theta.clone(), member.m.clone(), member.v.clone()
        self.targets, self.anchor = member.targets.clone(), member.anchor.clone()
        self.split = 2 * member.sizes.critic.size

    def update(
        self,
        rows: Tensor,
        noise: Tensor,
        pair: Sequence[int],
        peer_targets: Tensor | None = None,
        foreign: Tensor | None = None,
        guide: Tensor | None = None,
    ) -> None:
        x, a = self.sizes.inputs, self.sizes.actions
        batch = self.packed[rows]
        state, action, following = batch[:, :x], batch[:, x : x + a], batch[:, x + a : 2 * x + a]
        reward, goes_on = batch[:, -2], batch[:, -1]
        pool = self.targets if peer_targets is None else torch.cat([self.targets, peer_targets])
        next_action, log_prob = self.sample(self.theta[self.split :], following, noise[0])
        value = self.values(pool[list(pair)], following, next_action).amin(0) - self.alpha * log_prob
        value = value.clamp(self.scalars.target_low, self.scalars.target_high)
        target = reward + self.config.discount * torch.where(goes_on > 0, value, 0.0)
        self.step_critics(state, action, target)
        if self.scalars.critic_steps % self.config.policy_delay == 0:
            self.step_actor(state, action, noise[1], foreign, guide)

    @property
    def alpha(self) -> float:
        return math.exp(self.scalars.log_alpha)

    @property
    def critics(self) -> Tensor:
        return self.theta[: self.split].view(2, -1)

    def values(self, critics: Tensor, state: Tensor, action: Tensor) -> Tensor:
        return critic_values(self.sizes, critics, torch.cat([state, action], dim=1))

    def sample(self, actor: Tensor, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor_output(self.sizes, actor, state)
        pre_tanh = mean + log_std.exp() * noise
        return torch.tanh(pre_tanh), squashed_log_prob(log_std, pre_tanh, noise)

    def greedy(self, actor: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(actor_output(self.sizes, actor, state)[0])

    def step_critics(self, state: Tensor, action: Tensor, target: Tensor) -> None:
        free = self.theta[: self.split].clone().requires_grad_()
        error = self.values(free.view(2, -1), state, action) - target
        (gradient,) = torch.autograd.grad(0.5 * error.square().mean(1).sum(), free)
        s = self.scalars
        steps = s.critic_steps + 1
        self.apply(gradient, slice(0, self.split), steps - s.critic_restart)
        self.targets += self.config.target_rate * (self.critics - self.targets)
        s = replace(
            s,
            critic_steps=steps,
            seen_low=min(s.seen_low, float(target.min())),
            seen_high=max(s.seen_high, float(target.max())),
        )
        if steps % CLAMP_PERIOD == 0:
            s = replace(s, target_low=s.seen_low, target_high=s.seen_high)
        self.scalars = s

    def step_actor(
        self, state: Tensor, action: Tensor, noise: Tensor, foreign: Tensor | None, guide: Tensor | None
    ) -> None:
        free = self.theta[self.split :].clone().requires_grad_()
        sampled, log_prob = self.sample(free, state, noise)
        value = self.values(self.critics, state, sampled).amin(0)
        loss = (self.alpha * log_prob - value).mean()
        if foreign is not None and self.config.imitation > 0:
            stored = self.values(self.critics, state, action).amin(0)
            worth = foreign & (stored > value.detach())
            distances = 0.5 * (self.greedy(free, state) - action).square().sum(1)
            loss = loss + self.config.imitation * torch.where(worth, distances, 0.0).mean()
        if guide is not None and self.config.guidance > 0:
            distance = 0.5 * (self.greedy(free, state) - self.greedy(guide, state)).square().sum(1).mean()
            loss = loss + self.config.guidance * self.scalars.guide_weight * distance
            self.adapt_guidance(float(distance.detach()), state, guide)
        (gradient,) = torch.autograd.grad(loss, free)
        s = replace(self.scalars, actor_steps=self.scalars.actor_steps + 1)
        steps = s.actor_steps - s.actor_restart
        self.apply(gradient, slice(self.split, None), steps)
        self.scalars = self.temperature_step(s, float(log_prob.detach().mean()), steps)

    def adapt_guidance(self, distance: float, state: Tensor, guide: Tensor) -> None:
        s = self.scalars
        s = replace(s, guide_distance=s.guide_distance + distance, guide_updates=s.guide_updates + 1)
        if s.guide_updates == GUIDE_PERIOD:
            moved = 0.5 * (self.greedy(self.anchor, state) - self.greedy(guide, state)).square().sum(1).mean()
            aimed = max(GUIDE_RATIO * float(moved), self.config.guidance_distance)
            mean = s.guide_distance / GUIDE_PERIOD
            factor = 2.0 if mean > GUIDE_TOLERANCE * aimed else 0.5 if mean < aimed / GUIDE_TOLERANCE else 1.0
            s = replace(s, guide_weight=s.guide_weight * factor, guide_distance=0.0, guide_updates=0)
            self.anchor = guide.clone()
        self.scalars = s

    def temperature_step(self, s: Scalars, log_prob: float, steps: int) -> Scalars:
        state = (torch.tensor(value, dtype=torch.float64) for value in (s.log_alpha, s.alpha_m, s.alpha_v))
        log_alpha, m, v = state
        gradient = torch.tensor(-(log_prob + self.config.target_entropy), dtype=torch.float64)
        log_alpha, m, v = adam(log_alpha, gradient, m, v, steps, self.config.learning_rate)
        return replace(s, log_alpha=float(log_alpha), alpha_m=float(m), alpha_v=float(v))

    def apply(self, gradient: Tensor, part: slice, steps: int) -> None:
        self.theta[part], self.m[part], self.v[part] = adam(
            self.theta[part], gradient, self.m[part], self.v[part], steps, self.config.learning_rate
        )
