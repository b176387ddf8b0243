"""The shared world model: state-space encoder and context-conditioned dynamics head, trained by prediction.

Letters in this file: T time steps, W windows, O observation, A action, D features, C context, P parameters,
G gradients, H hidden units of the head.

The head predicts the normalised change of observation and the normalised reward from (features, observation, action,
context). Windows are told apart only by what the encoder remembers and by the context that MAML's inner loop sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import (
    EncoderSizes,
    Parameters,
    encode,
    init_encoder,
    normalize,
    normalize_reward,
)
from agents.learning.normalizer import Float32Array, Scales
from agents.learning.parameters import ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, ParameterLayout, uniform_
from agents.learning.windows import Windows
from swarm.errors import CheckpointError

CLIP = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSizes:
    """Sizes of encoder and dynamics head."""

    encoder: EncoderSizes
    hidden: int
    context: int

    @property
    def head(self) -> ParameterLayout:
        """Arrays of the head; ``c0`` is the context before any adaptation."""
        e = self.encoder
        inputs = e.features + e.visible + e.action + self.context
        outputs = e.observation + 1
        return ParameterLayout(
            shapes=(
                ("c0", (self.context,)),
                ("w1", (inputs, self.hidden)),
                ("b1", (self.hidden,)),
                ("w2", (self.hidden, outputs)),
                ("b2", (outputs,)),
            )
        )

    @property
    def num_parameters(self) -> int:
        """P: encoder, then head."""
        return self.encoder.layout.size + self.head.size

    def views(self, theta: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return named views of the encoder's and the head's part of ``theta`` (P,)."""
        split = self.encoder.layout.size
        return self.encoder.layout.views(theta[:split]), self.head.views(theta[split:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorldState:
    """A world model and its optimiser. Functions return new states and never write to given ones.

    Attributes:
        theta: (P,) encoder, then head; ``m`` and ``v`` are its Adam moments.
        steps: Adam steps so far.
    """

    sizes: WorldSizes
    theta: Tensor
    m: Tensor
    v: Tensor
    steps: int


def world_sizes(world: WorldConfig, member: MemberConfig, observation_size: int, action_size: int) -> WorldSizes:
    """Return the sizes that the configuration implies for one robot."""
    encoder = EncoderSizes(
        observation=observation_size,
        action=action_size,
        projection=member.projection,
        features=member.encoder_width,
        states=member.encoder_states,
    )
    return WorldSizes(encoder=encoder, hidden=world.hidden, context=world.context_size)


def init_world(
    world: WorldConfig, member: MemberConfig, observation_size: int, action_size: int, seed: int
) -> WorldState:
    """Return a fresh world model; its head starts close to predicting the mean change."""
    sizes = world_sizes(world, member, observation_size, action_size)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(sizes.num_parameters)
    init_encoder(sizes.encoder, theta[: sizes.encoder.layout.size], generator)
    head = sizes.views(theta)[1]
    uniform_(head["w1"], head["w1"].shape[0], generator, scale=3**0.5)
    uniform_(head["w2"], sizes.hidden, generator)
    return WorldState(sizes=sizes, theta=theta, m=torch.zeros_like(theta), v=torch.zeros_like(theta), steps=0)


def encoder_parameters(world: WorldState) -> dict[str, Tensor]:
    """Return named views of the encoder's weights."""
    return world.sizes.views(world.theta)[0]


def world_to_arrays(world: WorldState) -> dict[str, NDArray[np.generic]]:
    """Arrays for a checkpoint; `world_from_arrays` gives the same world model back, to the last bit."""
    vectors = {name: getattr(world, name).numpy() for name in ("theta", "m", "v")}
    return {**vectors, "steps": np.array([world.steps], np.int64)}


def world_from_arrays(
    world: WorldConfig,
    member: MemberConfig,
    observation_size: int,
    action_size: int,
    arrays: Mapping[str, NDArray[np.generic]],
) -> WorldState:
    """Rebuild a world model from `world_to_arrays`.

    Raises:
        CheckpointError: an array is missing or has another size than the configuration implies.
    """
    sizes = world_sizes(world, member, observation_size, action_size)
    for name, shape in (*((n, (sizes.num_parameters,)) for n in ("theta", "m", "v")), ("steps", (1,))):
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise CheckpointError(f"world array {name!r} has shape {found}, expected {shape}: other sizes?")
    return WorldState(
        sizes=sizes,
        **{name: torch.tensor(arrays[name]) for name in ("theta", "m", "v")},
        steps=int(arrays["steps"][0]),
    )


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


def prepare(sizes: WorldSizes, encoder: Parameters, windows: Windows, scales: Scales) -> Prepared:
    """Encode windows (differentiable with respect to ``encoder``) and normalise their targets."""
    dtype = encoder["nu"].dtype
    observation = normalize(windows.observation.to(dtype), scales, CLIP)
    previous_reward = normalize_reward(windows.previous_reward.to(dtype), scales, CLIP)
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    state = windows.states[0].to(complex_dtype)
    if state.shape[-1] == 0:
        state = torch.zeros(windows.num_windows, sizes.encoder.states, dtype=complex_dtype)
    features = encode(encoder, observation, windows.previous_action.to(dtype), previous_reward, windows.keep, state)
    visible = observation @ encoder["proj_w"] + encoder["proj_b"] if "proj_w" in encoder else observation
    mean = torch.from_numpy(np.concatenate([scales.change_mean, scales.reward_mean])).to(dtype)
    factor = torch.from_numpy(np.concatenate([scales.change_factor, scales.reward_factor])).to(dtype)
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


def prediction_loss(sizes: WorldSizes, theta: Tensor, windows: Windows, scales: Scales) -> Tensor:
    """Return the prediction loss with the unadapted context, differentiable with respect to ``theta``."""
    encoder, head = sizes.views(theta)
    prepared = prepare(sizes, encoder, windows, scales)
    hidden = head_hidden(head, prepared.known, head["c0"])
    return head_loss(hidden, head["w2"], head["b2"], prepared.target, prepared.mask)


def prediction_gradients(world: WorldState, windows: Windows, scales: Scales, num_gradients: int = 1) -> Float32Array:
    """Return ``num_gradients`` gradients (G, P) of the prediction loss, each on an equal part of the windows."""
    size = windows.num_windows // num_gradients
    gradients = []
    for g in range(num_gradients):
        theta = world.theta.clone().requires_grad_()
        part = windows.select(slice(g * size, (g + 1) * size))
        (gradient,) = torch.autograd.grad(prediction_loss(world.sizes, theta, part, scales), theta)
        gradients.append(gradient)
    return torch.stack(gradients).numpy()


@torch.no_grad()
def prediction_error(world: WorldState, windows: Windows, scales: Scales) -> dict[str, float]:
    """Return ``mse`` of the predicted change of observation, that of repeating the last value, and their ``ratio``.

    Both in units of the variance of the change. 'Repeating the last value' predicts no change at all.
    """
    encoder, head = world.sizes.views(world.theta)
    prepared = prepare(world.sizes, encoder, windows, scales)
    predicted = head_hidden(head, prepared.known, head["c0"]) @ head["w2"] + head["b2"]
    mask = prepared.mask[:-1]
    number = max(1.0, float(mask.sum())) * prepared.target[..., 0].numel()
    no_change = torch.from_numpy(-scales.change_mean * scales.change_factor).to(predicted.dtype)
    mse = float(((predicted - prepared.target)[..., :-1] * mask).square().sum()) / number
    persistence = float(((no_change - prepared.target[..., :-1]) * mask).square().sum()) / number
    return {"mse": mse, "persistence_mse": persistence, "ratio": mse / persistence if persistence > 0 else float("nan")}


def apply_gradients(world: WorldState, gradients_KP: Float32Array, config: WorldConfig) -> WorldState:
    """Return the world model after one Adam step for each gradient (K, P), in order.

    All of them were taken at the same parameters; applied in turn they act like K steps (LEARNING's asynchronous
    gradients), which Adam's moments smooth. The encoder learns ``config.encoder_rate`` times slower than the head,
    because actor and critics stand on its features.
    """
    theta, m, v = world.theta.clone(), world.m.clone(), world.v.clone()
    rate = torch.full_like(theta, config.learning_rate)
    rate[: world.sizes.encoder.layout.size] *= config.encoder_rate
    steps = world.steps
    for gradient in torch.from_numpy(gradients_KP):
        steps += 1
        m.lerp_(gradient, 1 - ADAM_BETA1)
        v.mul_(ADAM_BETA2).addcmul_(gradient, gradient, value=1 - ADAM_BETA2)
        scale = (v / (1 - ADAM_BETA2**steps)).sqrt_().add_(ADAM_EPSILON)
        theta.sub_(rate * m / (scale * (1 - ADAM_BETA1**steps)))
    return WorldState(sizes=world.sizes, theta=theta, m=m, v=v, steps=steps)
