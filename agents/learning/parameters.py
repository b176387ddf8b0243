"""Parameters as one flat vector with named views: one Adam step, one copy, one message for a whole network."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from swarm.errors import ConfigError

ADAM_BETA1 = 0.9
ADAM_BETA2 = 0.999
ADAM_EPSILON = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterLayout:
    """Where each named array lies inside a flat vector (..., size).

    Attributes:
        shapes: shape by name, in storage order.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Number of scalars."""
        return sum(prod(shape) for _, shape in self.shapes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of ``flat`` (..., size) with shapes (..., *shape); writing to them writes to ``flat``.

        Raises:
            ConfigError: the last dimension of ``flat`` is not ``size``.
        """
        if flat.shape[-1] != self.size:
            raise ConfigError(f"got {flat.shape[-1]} parameters, expected {self.size}: they belong to other sizes")
        views, offset = {}, 0
        for name, shape in self.shapes:
            end = offset + prod(shape)
            views[name] = flat[..., offset:end].view(*flat.shape[:-1], *shape)
            offset = end
        return views

    def span(self, *names: str) -> slice:
        """Return the contiguous range that the consecutive arrays ``names`` occupy."""
        offsets, offset = {}, 0
        for name, shape in self.shapes:
            offsets[name] = (offset, offset + prod(shape))
            offset += prod(shape)
        return slice(offsets[names[0]][0], offsets[names[-1]][1])


class Adam:
    """Adam on parts of flat vectors, in place, by the one kernel behind ``torch.optim.Adam(fused=True)``.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """

    def __init__(self, theta: Tensor, gradient: Tensor, m: Tensor, v: Tensor, *, steps: int) -> None:
        self._lists = ([theta], [gradient], [m], [v])
        # float32 counts exactly up to 2^24 steps; the kernel wants it on the tensors' device.
        self._steps = torch.tensor(float(steps))

    def step(self, learning_rate: float) -> None:
        """Move the parameters against the gradient as it is now."""
        self._steps.add_(1)
        torch._fused_adam_(
            *self._lists,
            [],
            [self._steps],
            lr=learning_rate,
            beta1=ADAM_BETA1,
            beta2=ADAM_BETA2,
            weight_decay=0.0,
            eps=ADAM_EPSILON,
            amsgrad=False,
            maximize=False,
        )


def uniform_(view: Tensor, fan_in: int, generator: torch.Generator, scale: float = 1.0) -> None:
    """Fill with U(±scale/√fan_in), the usual initialisation of a linear layer's weights and biases."""
    bound = scale / fan_in**0.5
    view.uniform_(-bound, bound, generator=generator)
