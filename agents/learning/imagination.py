"""Imagined rollouts: encoder and heads step forward from real states, and stop counting where the heads disagree.

Letters: L imagined steps, B starts, O observation, A action, V visible part, D features, N heads.

Source: Janner et al. 2019, arXiv:1906.08253 (short rollouts branched from real states); the cut by disagreement follows
Pan et al. 2020, arXiv:2010.09327 (masked rollouts). The heads' mean is the next state; by how much they differ is in
`Imagined.novelty`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.learning.encoder import layer, normalize, normalize_reward, visible_part
from agents.learning.normalizer import Scales
from agents.learning.uncertainty import Calibration
from agents.learning.windows import Windows
from agents.learning.world_model import CLIP, head_predictions
from agents.learning.world_state import WorldState, encoder_parameters

Actions = Callable[[int, Tensor], Tensor]
"""Gives the actions (B, A) of a step from its number and what an actor sees, [visible part, features] (B, V + D)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imagined:
    """Rows as the world model expects them, each (L, B, …), time first.

    Attributes:
        novelty: disagreement of the heads relative to what is usual where the calibration was fitted.
        valid: true up to the first step whose novelty exceeds the cut, which itself does not count.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    novelty: Tensor
    valid: Tensor

    @property
    def horizon(self) -> Tensor:
        """Valid steps of each rollout, (B,)."""
        return self.valid.sum(0)


@torch.no_grad()
def imagine(
    world: WorldState,
    start: Windows,
    scales: Scales,
    calibration: Calibration,
    actions: Actions,
    *,
    horizon: int,
    cut: float,
) -> Imagined:
    """Roll the world model forward from the first step of each window.

    Args:
        start: only its first step is used: observation, what went before it, and the encoder's state.
        actions: chooses actions; for given ones, ``lambda step, seen: given[step]``.
        horizon: L.
        cut: highest novelty of a valid step.
    """
    encoder = encoder_parameters(world)
    observation = start.observation[0]
    scale = _Scale(scales, observation.device)
    action, reward = start.previous_action[0], normalize_reward(start.previous_reward[0], scales, CLIP)
    keep, alive = start.keep[:1], torch.ones(len(observation), dtype=torch.bool, device=observation.device)
    state = start.states[0]
    if state.shape[-1] == 0:
        state = observation.new_zeros(len(observation), world.sizes.encoder.state)
    rows: list[tuple[Tensor, ...]] = []
    for step in range(horizon):
        visible = visible_part(encoder, normalize(observation, scales, CLIP))
        inputs = torch.cat([visible, action, reward[:, None]], dim=-1)
        features, state = (found[0] for found in layer(encoder, inputs[None], keep, state))
        keep = torch.ones_like(keep)
        action = actions(step, torch.cat([visible, features], dim=-1))
        predicted = head_predictions(world, torch.cat([features, visible, action], dim=-1))
        novelty = calibration.novelty(predicted, scale.varies)
        alive = alive & (novelty <= cut)
        change = scale.raw(predicted.mean(0))
        following = observation + change[:, :-1]
        rows.append((observation, action, change[:, -1], following, novelty, alive))
        observation, reward = following, normalize_reward(change[:, -1], scales, CLIP)
    columns = (torch.stack(column) for column in zip(*rows, strict=True))
    return Imagined(**dict(zip(Imagined.__slots__, columns, strict=True)))


class _Scale:
    """Turns normalised predictions of change and reward back into raw ones."""

    def __init__(self, scales: Scales, device: torch.device) -> None:
        mean: NDArray[np.float32] = np.concatenate([scales.change_mean, scales.reward_mean])
        factor: NDArray[np.float32] = np.concatenate([scales.change_factor, scales.reward_factor])
        self._mean = torch.from_numpy(mean).to(device)
        self._inverse = torch.from_numpy(np.where(factor > 0, 1 / np.where(factor > 0, factor, 1), 0)).to(device)
        self.varies = torch.from_numpy((factor > 0).astype(np.float32)).to(device)

    def raw(self, normalised: Tensor) -> Tensor:
        """Return change and reward; what never varied stays at its mean."""
        return normalised * self._inverse + self._mean
