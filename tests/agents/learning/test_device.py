"""Device is an argument: what is plain PyTorch runs on 'meta', which computes shapes and refuses to meet the CPU."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from agents.config import ADAPTED, ENCODERS, MemberConfig, SacConfig, WorldConfig
from agents.learning.closed_form import ridge_change
from agents.learning.encoder import Columns, encode_stream
from agents.learning.imagination import imagine
from agents.learning.maml import meta_loss
from agents.learning.networks import actor_output, critic_values
from agents.learning.normalizer import Scales
from agents.learning.replay import Replay
from agents.learning.sac import learn
from agents.learning.uncertainty import NORMAL_WIDTHS, Calibration
from agents.learning.windows import Windows, cut_windows, split_windows
from agents.learning.world_model import head_predictions, prediction_loss, prepare
from agents.learning.world_state import WorldState, encoder_parameters, init_world
from agents.member import init_member

STARTS = np.array([[3, 1], [20, 2], [40, 0]])
META = torch.device("meta")


@pytest.fixture
def there(columns: Columns) -> Columns:
    """The rows, on the other device."""
    return Columns(**{f.name: getattr(columns, f.name).to("meta") for f in fields(Columns)})


@pytest.fixture(params=ENCODERS)
def world(request: pytest.FixtureRequest, small_world: WorldConfig, small_member: MemberConfig) -> WorldState:
    member = replace(small_member, encoder=request.param, projection=3)
    return init_world(small_world, member, 5, 2, seed=0, heads=3, device="meta")


def windows_of(world: WorldState, there: Columns, scales: Scales) -> Windows:
    stream = encode_stream(world.sizes.encoder, encoder_parameters(world), there, scales)
    assert stream.features.shape == stream.features_next.shape == (200, 4, 6)
    assert (stream.features.device, stream.states.shape) == (META, (200, 4, world.sizes.encoder.state))
    return cut_windows(there, stream.states, STARTS, 8)


def test_encoder_and_world_model_run_on_another_device(world: WorldState, there: Columns, scales: Scales) -> None:
    windows = windows_of(world, there, scales)
    prepared = prepare(world.sizes, encoder_parameters(world), windows, scales)
    predictions = head_predictions(world, prepared.known)
    assert (predictions.device, predictions.shape) == (META, (3, 8, 3, 6))
    part = world.sizes.part(world.theta, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(prediction_loss(world.sizes, part, windows, scales), part)
    assert (gradient.device, gradient.shape) == (META, part.shape)
    without_memory = cut_windows(there, None, STARTS, 8)
    assert prediction_loss(world.sizes, part, without_memory, scales).device == META


@pytest.mark.parametrize("adapted", ADAPTED)
def test_the_inner_loop_runs_on_another_device(
    world: WorldState, there: Columns, scales: Scales, small_world: WorldConfig, adapted: str
) -> None:
    support, query = split_windows(windows_of(world, there, scales), 4)
    part = world.sizes.part(world.theta, 0).requires_grad_()
    loss = meta_loss(world.sizes, part, support, query, scales, replace(small_world, adapted=adapted))
    (gradient,) = torch.autograd.grad(loss, part)
    assert (gradient.device, gradient.shape) == (META, part.shape)


def test_the_closed_form_runs_on_another_device() -> None:
    weights, bias = ridge_change(torch.zeros(2, 7, 3, device="meta"), torch.zeros(2, 7, 4, device="meta"), 0.5)
    assert (weights.device, weights.shape, bias.shape) == (META, (2, 3, 4), (2, 1, 4))


def test_imagination_runs_on_another_device(world: WorldState, there: Columns, scales: Scales) -> None:
    windows = windows_of(world, there, scales)
    ones = torch.ones(6, device="meta")
    calibration = Calibration(typical=ones, scale=ones, share=ones, widths=NORMAL_WIDTHS)
    dreamt = imagine(world, windows, scales, calibration, lambda step, _: windows.action[step], horizon=4, cut=2.0)
    assert (dreamt.next_observation.device, dreamt.next_observation.shape) == (META, (4, 3, 5))


def test_a_member_is_born_acts_and_judges_on_another_device(small_member: MemberConfig) -> None:
    member = init_member(small_member, 5, 2, seed=0, device="meta")
    inputs = torch.zeros(9, member.sizes.inputs, device="meta")
    mean, _ = actor_output(member.sizes, member.actor, inputs)
    values = critic_values(member.sizes, member.targets, torch.cat([inputs, mean], dim=-1))
    assert (mean.device, mean.shape, values.shape) == (META, (9, 2), (2, 9))


def test_compiled_updates_refuse_a_member_on_another_device(small_member: MemberConfig) -> None:
    member = init_member(small_member, 5, 2, seed=0, device="meta")
    inputs, actions = member.sizes.inputs, member.sizes.actions
    replay = Replay(packed=torch.zeros(8, 2 * (inputs + actions) + 2), inputs=inputs, actions=actions)
    with pytest.raises(TypeError, match="can't convert meta device type tensor to numpy"):
        learn(member, None, replay, np.arange(8), 1, np.random.default_rng(0), SacConfig())
