from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.config import ENCODERS
from agents.learning.encoder import (
    Columns,
    EncoderSizes,
    encode,
    encode_stream,
    init_encoder,
    normalize,
    normalize_reward,
)
from agents.learning.normalizer import Scales
from agents.learning.ssm import MAX_PHASE, MAX_RADIUS, MIN_RADIUS, decay


def make(
    projection: int = 0, dtype: torch.dtype = torch.float32, kind: str = "ssm"
) -> tuple[EncoderSizes, torch.Tensor]:
    sizes = EncoderSizes(observation=5, action=2, projection=projection, features=6, states=4, kind=kind)
    flat = torch.zeros(sizes.layout.size, dtype=dtype)
    init_encoder(sizes, flat, torch.Generator().manual_seed(1))
    return sizes, flat


def test_fresh_eigenvalues_lie_in_the_ring_with_small_phase() -> None:
    sizes = EncoderSizes(observation=5, action=2, projection=0, features=6, states=500)
    flat = torch.zeros(sizes.layout.size)
    init_encoder(sizes, flat, torch.Generator().manual_seed(1))
    eigenvalues = torch.complex(*decay(sizes.layout.views(flat)).chunk(2))
    assert MIN_RADIUS <= float(eigenvalues.abs().min()) < 0.6
    assert 0.95 < float(eigenvalues.abs().max()) <= MAX_RADIUS + 1e-6
    assert float(eigenvalues.angle().min()) > 0
    assert float(eigenvalues.angle().max()) <= MAX_PHASE + 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("projection", [0, 3])
def test_stream_features_equal_those_of_encode(columns: Columns, scales: Scales, projection: int, kind: str) -> None:
    sizes, flat = make(projection, kind=kind)
    w = sizes.layout.views(flat)
    stream = encode_stream(sizes, w, columns, scales)
    keep = ~columns.reset
    previous_action = torch.roll(columns.action, 1, 0) * keep[..., None]
    previous_reward = normalize_reward(torch.roll(columns.reward, 1, 0), scales, 10.0) * keep
    zero = torch.zeros(columns.reset.shape[1], sizes.state)
    features = encode(w, normalize(columns.observation, scales, 10.0), previous_action, previous_reward, keep, zero)
    torch.testing.assert_close(stream.features, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_features_of_the_successor_are_those_of_the_next_row_inside_an_episode(
    columns: Columns, scales: Scales, kind: str
) -> None:
    sizes, flat = make(kind=kind)
    stream = encode_stream(sizes, sizes.layout.views(flat), columns, scales)
    inside = ~columns.reset[1:]
    torch.testing.assert_close(stream.features_next[:-1][inside], stream.features[1:][inside], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(stream.features_next[:-1][~inside], stream.features[1:][~inside], atol=1e-3)


def test_an_episode_does_not_see_the_one_before(columns: Columns, scales: Scales) -> None:
    sizes, flat = make()
    start, environment = (int(x) for x in columns.reset[50:].nonzero()[0])
    start += 50
    before = encode_stream(sizes, sizes.layout.views(flat), columns, scales)
    columns.observation[:start] += 1
    columns.reward[:start] -= 1
    columns.action[:start] *= -1
    after = encode_stream(sizes, sizes.layout.views(flat), columns, scales)
    torch.testing.assert_close(before.features[start:, environment], after.features[start:, environment])
    assert not torch.allclose(before.features[start - 1, environment], after.features[start - 1, environment])


def test_policy_state_is_the_last_state_and_action(columns: Columns, scales: Scales) -> None:
    sizes, flat = make()
    stream = encode_stream(sizes, sizes.layout.views(flat), columns, scales)
    assert stream.policy_state.shape == (4, 2 * 4 + 2)
    np.testing.assert_array_equal(stream.policy_state[:, 8:], columns.action[-1].numpy())
    np.testing.assert_array_equal(stream.policy_state[:, 0], stream.states[-1, :, 0].numpy())


def test_encoder_gradient_equals_finite_differences(columns: Columns, scales: Scales) -> None:
    sizes, flat = make(projection=3, dtype=torch.float64)
    observation = normalize(columns.observation[:6].double(), scales, 10.0)
    action, reward, keep = columns.action[:6].double(), columns.reward[:6].double(), ~columns.reset[:6]
    state = torch.randn(4, sizes.state, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return encode(sizes.layout.views(theta), observation, action, reward, keep, state).square().mean()

    assert torch.autograd.gradcheck(loss, (flat.requires_grad_(),))
