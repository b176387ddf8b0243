"""Parameters as one flat vector with named views: one Adam step, one copy, one message for a whole network."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from swarm.errors import ConfigError

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
ADAM_BETA1 = 0.9
ADAM_BETA2 = 0.999
ADAM_EPSILON = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterLayout:
    """Where each named array lies inside a flat vector (..., size).

    Attributes:
        shapes: shape by name, in storage order.
    """

    shapes: Shapes

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


def uniform_(view: Tensor, fan_in: int, generator: torch.Generator, scale: float = 1.0) -> None:
    """Fill with U(±scale/√fan_in), the usual initialisation of a linear layer's weights and biases."""
    bound = scale / fan_in**0.5
    view.uniform_(-bound, bound, generator=generator)
