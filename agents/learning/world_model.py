"""Prediction by the world model: one state-space encoder and a context-conditioned dynamics head for each member.

Letters in this file: T time steps, W windows, O observation, A action, V visible part, D features, C context, N heads,
P parameters of the encoder and one head, G gradients, H hidden units of a head.

A head predicts the normalised change of observation and the normalised reward from (features, observation, action,
context). Windows are told apart only by what the encoder remembers and by the context that MAML's inner loop sets.
Each member trains the encoder and its own head on windows that it draws itself; together the heads are an ensemble,
whose mean predicts and whose disagreement says how far to trust it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.learning.encoder import Parameters, encode, normalize, normalize_reward, visible_part
from agents.learning.normalizer import Float32Array, Scales
from agents.learning.windows import Windows
from agents.learning.world_state import WorldSizes, WorldState, encoder_parameters

CLIP = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What the head sees of windows and what it should predict, all normalised.

    Attributes:
        known: (T, W, D + V + A) features, visible part and action.
        target: (T, W, O + 1) change of observation and reward.
        mask: (O + 1,) 0 for outputs that never vary.
    """

    known: Tensor
    target: Tensor
    mask: Tensor

    def split(self, at: int) -> tuple[Prepared, Prepared]:
        """Return the first ``at`` steps and the rest."""
        first, rest = slice(None, at), slice(at, None)
        return (
            Prepared(known=self.known[first], target=self.target[first], mask=self.mask),
            Prepared(known=self.known[rest], target=self.target[rest], mask=self.mask),
        )


def prepare(sizes: WorldSizes, encoder: Parameters, windows: Windows, scales: Scales) -> Prepared:
    """Encode windows (differentiable with respect to ``encoder``) and normalise their targets."""
    dtype = encoder["output_w"].dtype
    observation = normalize(windows.observation.to(dtype), scales, CLIP)
    previous_reward = normalize_reward(windows.previous_reward.to(dtype), scales, CLIP)
    state = windows.states[0].to(dtype)
    if state.shape[-1] == 0:
        state = state.new_zeros(windows.num_windows, sizes.encoder.state)
    features = encode(encoder, observation, windows.previous_action.to(dtype), previous_reward, windows.keep, state)
    visible = visible_part(encoder, observation)
    mean = torch.from_numpy(np.concatenate([scales.change_mean, scales.reward_mean])).to(observation)
    factor = torch.from_numpy(np.concatenate([scales.change_factor, scales.reward_factor])).to(observation)
    change = windows.next_observation - windows.observation
    raw = torch.cat([change, windows.reward[..., None]], dim=-1).to(dtype)
    target = ((raw - mean) * factor).clamp(-CLIP, CLIP)
    known = torch.cat([features, visible, windows.action.to(dtype)], dim=-1)
    return Prepared(known=known, target=target, mask=(factor > 0).to(dtype))


def head_hidden(head: Parameters, known: Tensor, context: Tensor) -> Tensor:
    """Return the head's hidden layer (…, H); the context enters as one more bias, the same for all steps."""
    split = known.shape[-1]
    return torch.nn.functional.silu(known @ head["w1"][:split] + (context @ head["w1"][split:] + head["b1"]))


def head_loss(hidden: Tensor, w2: Tensor, b2: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the squared error per step and varying output, a scalar."""
    error = (hidden @ w2 + b2 - target) * mask
    return error.square().sum() / (error[..., 0].numel() * mask.sum().clamp_min(1))


def prediction_loss(sizes: WorldSizes, part: Tensor, windows: Windows, scales: Scales) -> Tensor:
    """Return the prediction loss with the unadapted context, differentiable with respect to ``part`` (P,)."""
    encoder, head = sizes.views(part)
    prepared = prepare(sizes, encoder, windows, scales)
    hidden = head_hidden(head, prepared.known, head["c0"])
    return head_loss(hidden, head["w2"], head["b2"], prepared.target, prepared.mask)


def prediction_gradients(
    world: WorldState, windows: Windows, scales: Scales, num_gradients: int = 1, head: int = 0
) -> Float32Array:
    """Return gradients (G, P) of the prediction loss of encoder and ``head``, each on an equal part of the windows."""
    size = windows.num_windows // num_gradients
    gradients = []
    for g in range(num_gradients):
        part = world.sizes.part(world.theta, head).requires_grad_()
        some = windows.select(slice(g * size, (g + 1) * size))
        (gradient,) = torch.autograd.grad(prediction_loss(world.sizes, part, some, scales), part)
        gradients.append(gradient)
    return torch.stack(gradients).cpu().numpy()


def head_predictions(world: WorldState, known_TWX: Tensor) -> Tensor:
    """Return what each head predicts with its unadapted context, (N, T, W, O + 1), normalised."""
    heads = world.sizes.all_heads(world.theta)
    known = known_TWX.reshape(-1, known_TWX.shape[-1])
    split = known.shape[-1]
    bias = torch.baddbmm(heads["b1"][:, None], heads["c0"][:, None], heads["w1"][:, split:])
    rows = known.expand(world.sizes.heads, *known.shape)
    hidden = torch.nn.functional.silu(torch.baddbmm(bias, rows, heads["w1"][:, :split]))
    outputs = torch.baddbmm(heads["b2"][:, None], hidden, heads["w2"])
    return outputs.view(world.sizes.heads, *known_TWX.shape[:-1], -1)


@torch.no_grad()
def prediction_error(world: WorldState, windows: Windows, scales: Scales) -> dict[str, float]:
    """Return ``mse`` of the predicted change of observation, that of repeating the last value, and their ``ratio``.

    Both in units of the variance of the change; the heads' mean predicts. 'Repeating the last value' predicts no change
    at all.
    """
    prepared = prepare(world.sizes, encoder_parameters(world), windows, scales)
    predicted = head_predictions(world, prepared.known).mean(0)
    mask = prepared.mask[:-1]
    number = max(1.0, float(mask.sum())) * prepared.target[..., 0].numel()
    no_change = torch.from_numpy(-scales.change_mean * scales.change_factor).to(predicted)
    mse = float(((predicted - prepared.target)[..., :-1] * mask).square().sum()) / number
    persistence = float(((no_change - prepared.target[..., :-1]) * mask).square().sum()) / number
    return {"mse": mse, "persistence_mse": persistence, "ratio": mse / persistence if persistence > 0 else float("nan")}
