from __future__ import annotations

import pytest
import torch

from agents.learning.parameters import ParameterLayout
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
