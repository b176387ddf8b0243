from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.config import ENCODERS, MemberConfig, WorldConfig
from agents.learning.encoder import (
    KINDS,
    Columns,
    EncoderSizes,
    encode_stream,
    init_encoder,
    layer,
    step,
)
from agents.learning.normalizer import Scales
from agents.learning.windows import sample_windows
from agents.learning.world_model import prediction_error, prediction_gradients
from agents.learning.world_state import WorldState, apply_parts, encoder_parameters, init_world

CONTROLS = ["mlp", "lstm"]


def sizes_of(kind: str) -> EncoderSizes:
    return EncoderSizes(observation=5, action=2, projection=0, features=6, states=4, kind=kind)


def problem(kind: str, num_steps: int) -> tuple[EncoderSizes, Tensor, Tensor, Tensor, Tensor]:
    sizes, generator = sizes_of(kind), torch.Generator().manual_seed(0)
    flat = torch.zeros(sizes.layout.size, dtype=torch.float64)
    init_encoder(sizes, flat, generator)
    inputs = torch.randn(num_steps, 3, sizes.inputs, generator=generator, dtype=torch.float64)
    keep = torch.rand(num_steps, 3, generator=generator) > 0.2
    state = torch.randn(3, sizes.state, generator=generator, dtype=torch.float64)
    return sizes, flat, inputs, keep, state


def test_configuration_names_the_encoders_that_exist() -> None:
    assert set(ENCODERS) == set(KINDS)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("observation", "action", "projection"), [(17, 6, 0), (27, 8, 0), (376, 17, 36)])
def test_encoders_of_all_kinds_have_the_same_number_of_parameters(
    kind: str, observation: int, action: int, projection: int
) -> None:
    size = {
        k: EncoderSizes(
            observation=observation, action=action, projection=projection, features=32, states=32, kind=k
        ).layout.size
        for k in ("ssm", kind)
    }
    assert abs(size[kind] - size["ssm"]) <= 0.02 * size["ssm"]


@pytest.mark.parametrize("kind", CONTROLS)
def test_gradients_equal_finite_differences(kind: str) -> None:
    sizes, flat, inputs, keep, state = problem(kind, 4)

    def loss(theta: Tensor, inputs: Tensor) -> Tensor:
        return layer(sizes.layout.views(theta), inputs, keep, state)[0].square().mean()

    assert torch.autograd.gradcheck(loss, (flat.requires_grad_(), inputs.requires_grad_()))


@pytest.mark.parametrize("kind", ENCODERS)
def test_single_steps_equal_the_whole(kind: str) -> None:
    sizes, flat, inputs, keep, state = problem(kind, 7)
    w = sizes.layout.views(flat)
    features, states = layer(w, inputs, keep, state)
    assert features.shape == (7, 3, 6)
    assert states.shape == (7, 3, sizes.state)
    for t in range(7):
        one, state = step(w, inputs[t], keep[t], state)
        torch.testing.assert_close(one, features[t], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state, states[t], rtol=1e-12, atol=1e-12)


def test_the_lstm_is_that_of_torch() -> None:
    sizes, flat, inputs, keep, state = problem("lstm", 9)
    w, hidden = sizes.layout.views(flat), sizes.state // 2
    reference = torch.nn.LSTM(sizes.inputs, hidden).double()
    with torch.no_grad():
        reference.weight_ih_l0.copy_(w["recurrent_w"][: sizes.inputs].t())
        reference.weight_hh_l0.copy_(w["recurrent_w"][sizes.inputs :].t())
        reference.bias_ih_l0.copy_(w["recurrent_b"])
        reference.bias_hh_l0.zero_()
    output, (_, cell) = reference(inputs, (state[None, :, :hidden], state[None, :, hidden:].contiguous()))
    _, states = layer(w, inputs, torch.ones_like(keep), state)
    torch.testing.assert_close(states[..., :hidden], output)
    torch.testing.assert_close(states[-1, :, hidden:], cell[0])


@pytest.mark.parametrize(("kind", "remembers"), [("ssm", True), ("mlp", False), ("lstm", True)])
def test_memory_ends_with_the_episode_and_the_mlp_has_none(kind: str, remembers: bool) -> None:
    sizes, flat, inputs, keep, state = problem(kind, 8)
    keep[:], keep[5, 1] = True, False
    changed = inputs.clone()
    changed[:3] += 1
    w = sizes.layout.views(flat)
    before, after = (layer(w, u, keep, state)[0] for u in (inputs, changed))
    assert torch.equal(before[5:, 1], after[5:, 1])
    assert torch.equal(before[4], after[4]) != remembers


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_world_model_learns_with_every_encoder_and_moves_all_of_it(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig, kind: str
) -> None:
    config = replace(small_world, learning_rate=3e-3, encoder_rate=1.0)
    fresh = init_world(config, replace(small_member, encoder=kind), 5, 2, seed=0)
    world, rng = fresh, np.random.default_rng(0)

    def states(now: WorldState) -> Tensor:
        return encode_stream(now.sizes.encoder, encoder_parameters(now), columns, scales).states

    for _ in range(60):
        windows = sample_windows(columns, states(world), rng, 16, config.window)
        world = apply_parts(world, prediction_gradients(world, windows, scales, 1), config)
    windows = sample_windows(columns, states(world), np.random.default_rng(9), 64, config.window)
    assert prediction_error(world, windows, scales)["ratio"] < 0.8 * prediction_error(fresh, windows, scales)["ratio"]
    for name, value in encoder_parameters(world).items():
        assert not torch.equal(value, encoder_parameters(fresh)[name]), name
