from __future__ import annotations

import pytest
import torch

from agents.learning.parameters import Adam, ParameterLayout
from swarm.errors import ConfigError

LAYOUT = ParameterLayout(shapes=(("w", (3, 2)), ("b", (2,))))


def test_views_share_memory_with_the_flat_vector() -> None:
    flat = torch.zeros(8)
    LAYOUT.views(flat)["b"].fill_(7)
    assert flat.tolist() == [0] * 6 + [7, 7]


def test_views_keep_leading_dimensions() -> None:
    views = LAYOUT.views(torch.arange(16.0).view(2, 8))
    assert views["w"].shape == (2, 3, 2)
    assert views["b"].tolist() == [[6, 7], [14, 15]]


def test_a_vector_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 9 parameters, expected 8"):
        LAYOUT.views(torch.zeros(9))


def test_adam_equals_torch_optim_adam_across_a_save_and_load_of_its_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=generator)
    gradients = torch.randn(6, 50, generator=generator)
    parameter = torch.nn.Parameter(start.clone())
    reference = torch.optim.Adam([parameter], lr=1e-2, fused=True)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        reference.step()
    theta, buffer, m, v = start.clone(), torch.zeros(50), torch.zeros(50), torch.zeros(50)
    for part, done in ((gradients[:3], 0), (gradients[3:], 3)):
        adam = Adam(theta, buffer, m, v, steps=done)
        for gradient in part:
            buffer.copy_(gradient)
            adam.step(1e-2)
    assert torch.equal(theta, parameter.detach())
