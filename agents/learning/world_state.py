"""Parameters of the world model: one shared encoder and a dynamics head for each member; their Adam and files.

Letters in this file: N heads, P parameters of the encoder and one head (a `part`), Q parameters of the encoder and all
heads, E of the encoder, H of a head, G gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import EncoderSizes, init_encoder
from agents.learning.normalizer import Float32Array
from agents.learning.parameters import ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, ParameterLayout, uniform_
from swarm.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSizes:
    """Sizes of the encoder and of each dynamics head; ``heads`` is their number N."""

    encoder: EncoderSizes
    hidden: int
    context: int
    heads: int = 1

    @property
    def head(self) -> ParameterLayout:
        """Arrays of a head; ``c0`` is the context before any adaptation, ``rates`` multiply the inner learning rates.

        ``rates`` are logarithms: of the context's, then of the layers' multiplier.
        """
        e = self.encoder
        inputs = e.features + e.visible + e.action + self.context
        outputs = e.observation + 1
        return ParameterLayout(
            shapes=(
                ("c0", (self.context,)),
                ("rates", (2,)),
                ("w1", (inputs, self.hidden)),
                ("b1", (self.hidden,)),
                ("w2", (self.hidden, outputs)),
                ("b2", (outputs,)),
            )
        )

    @property
    def num_shared(self) -> int:
        """Parameters of the encoder, which come first."""
        return self.encoder.layout.size

    @property
    def num_parameters(self) -> int:
        """Q: encoder, then one head after the other."""
        return self.num_shared + self.heads * self.head.size

    @property
    def num_part(self) -> int:
        """P: encoder and one head."""
        return self.num_shared + self.head.size

    def span(self, head: int) -> slice:
        """Return where ``head`` lies in a vector (Q,)."""
        start = self.num_shared + head * self.head.size
        return slice(start, start + self.head.size)

    def part(self, theta: Tensor, head: int) -> Tensor:
        """Return the encoder and one head of ``theta`` (Q,) as a new vector (P,)."""
        return torch.cat([theta[: self.num_shared], theta[self.span(head)]])

    def views(self, part: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return named views of the encoder and of the head in ``part`` (P,)."""
        return self.encoder.layout.views(part[: self.num_shared]), self.head.views(part[self.num_shared :])

    def all_heads(self, theta: Tensor) -> dict[str, Tensor]:
        """Return named views (N, …) of all heads in ``theta`` (Q,)."""
        return self.head.views(theta[self.num_shared :].view(self.heads, self.head.size))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorldState:
    """A world model and its optimiser. Functions return new states and never write to given ones.

    Attributes:
        theta: (Q,) encoder, then the heads; ``m`` and ``v`` are its Adam moments.
        steps: (1 + N,) int64, Adam steps of the encoder and of each head so far.
        skips: (1 + N,) int64, rounds in a row without any usable gradient, and with a refused one of each member.
    """

    sizes: WorldSizes
    theta: Tensor
    m: Tensor
    v: Tensor
    steps: NDArray[np.int64]
    skips: NDArray[np.int64]


def world_sizes(
    world: WorldConfig, member: MemberConfig, observation_size: int, action_size: int, heads: int = 1
) -> WorldSizes:
    """Return the sizes that the configuration implies for one robot and ``heads`` members."""
    encoder = EncoderSizes(
        observation=observation_size,
        action=action_size,
        projection=member.projection,
        features=member.encoder_width,
        states=member.encoder_states,
        kind=member.encoder,
    )
    return WorldSizes(encoder=encoder, hidden=world.hidden, context=world.context_size, heads=heads)


def init_world(
    world: WorldConfig,
    member: MemberConfig,
    observation_size: int,
    action_size: int,
    seed: int,
    heads: int = 1,
    *,
    device: torch.device | str = "cpu",
) -> WorldState:
    """Return a fresh world model; its heads differ and start close to predicting the mean change.

    Args:
        device: where it is put; it is drawn on the CPU, so that a seed gives the same numbers everywhere.
    """
    sizes = world_sizes(world, member, observation_size, action_size, heads)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(sizes.num_parameters)
    init_encoder(sizes.encoder, theta[: sizes.num_shared], generator)
    for index in range(heads):
        head = sizes.head.views(theta[sizes.span(index)])
        uniform_(head["w1"], head["w1"].shape[0], generator, scale=3**0.5)
        uniform_(head["w2"], sizes.hidden, generator)
    theta = theta.to(device)
    return WorldState(
        sizes=sizes,
        theta=theta,
        m=torch.zeros_like(theta),
        v=torch.zeros_like(theta),
        steps=np.zeros(1 + heads, np.int64),
        skips=np.zeros(1 + heads, np.int64),
    )


def encoder_parameters(world: WorldState) -> dict[str, Tensor]:
    """Return named views of the encoder's weights."""
    return world.sizes.encoder.layout.views(world.theta[: world.sizes.num_shared])


def world_to_arrays(world: WorldState) -> dict[str, NDArray[np.generic]]:
    """Arrays for a checkpoint; `world_from_arrays` gives the same world model back, to the last bit."""
    vectors = {name: getattr(world, name).cpu().numpy() for name in ("theta", "m", "v")}
    return {**vectors, "steps": world.steps, "skips": world.skips}


def world_from_arrays(
    world: WorldConfig,
    member: MemberConfig,
    observation_size: int,
    action_size: int,
    arrays: Mapping[str, NDArray[np.generic]],
    heads: int = 1,
) -> WorldState:
    """Rebuild a world model from `world_to_arrays`.

    Raises:
        CheckpointError: an array is missing or has another size than the configuration implies.
    """
    sizes = world_sizes(world, member, observation_size, action_size, heads)
    vectors, counts = ("theta", "m", "v"), ("steps", "skips")
    shapes = {**dict.fromkeys(vectors, (sizes.num_parameters,)), **dict.fromkeys(counts, (1 + heads,))}
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise CheckpointError(f"world array {name!r} has shape {found}, expected {shape}: other sizes?")
    theta, m, v = (torch.tensor(arrays[name]) for name in vectors)
    steps, skips = (np.array(arrays[name], np.int64) for name in counts)
    return WorldState(sizes=sizes, theta=theta, m=m, v=v, steps=steps, skips=skips)


def apply_gradients(
    world: WorldState, shared_GE: Float32Array, heads: Mapping[int, Float32Array], config: WorldConfig
) -> WorldState:
    """Return the world model after one Adam step for each gradient, in order.

    Args:
        shared_GE: gradients of the encoder, one step each. The encoder learns ``config.encoder_rate`` times slower than
            the heads, because actor and critics stand on its features.
        heads: gradients (G, H) of some heads, one step each; the other heads stay as they are.

    All of them were taken at the same parameters; applied in turn they act like as many steps (LEARNING's asynchronous
    gradients), which Adam's moments smooth.
    """
    world = replace(world, theta=world.theta.clone(), m=world.m.clone(), v=world.v.clone(), steps=world.steps.copy())
    _descend(world, slice(0, world.sizes.num_shared), 0, shared_GE, config.learning_rate * config.encoder_rate)
    for index, gradients in sorted(heads.items()):
        _descend(world, world.sizes.span(index), 1 + index, gradients, config.learning_rate)
    return world


def _descend(world: WorldState, span: slice, counter: int, gradients: Float32Array, rate: float) -> None:
    """Make Adam steps on ``span`` of a world model, in place."""
    theta, m, v = world.theta[span], world.m[span], world.v[span]
    for gradient in torch.from_numpy(gradients).to(theta.device):
        world.steps[counter] += 1
        steps = int(world.steps[counter])
        m.lerp_(gradient, 1 - ADAM_BETA1)
        v.mul_(ADAM_BETA2).addcmul_(gradient, gradient, value=1 - ADAM_BETA2)
        scale = (v / (1 - ADAM_BETA2**steps)).sqrt_().add_(ADAM_EPSILON)
        theta.sub_(rate * m / (scale * (1 - ADAM_BETA1**steps)))


def apply_parts(world: WorldState, gradients_GP: Float32Array, config: WorldConfig, head: int = 0) -> WorldState:
    """Return the world model after the steps that one member's gradients (G, P) make alone."""
    split = world.sizes.num_shared
    return apply_gradients(world, gradients_GP[:, :split], {head: gradients_GP[:, split:]}, config)
