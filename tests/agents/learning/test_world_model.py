from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import Columns
from agents.learning.normalizer import Scales
from agents.learning.windows import sample_windows
from agents.learning.world_model import (
    head_hidden,
    head_predictions,
    prediction_error,
    prediction_gradients,
    prediction_loss,
    prepare,
)
from agents.learning.world_state import (
    WorldState,
    apply_gradients,
    apply_parts,
    encoder_parameters,
    init_world,
    world_from_arrays,
    world_to_arrays,
)
from swarm.errors import CheckpointError


@pytest.fixture
def world(small_world: WorldConfig, small_member: MemberConfig) -> WorldState:
    return init_world(small_world, small_member, 5, 2, seed=0)


@pytest.mark.parametrize("projection", [0, 3])
def test_prediction_gradient_equals_finite_differences(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig, projection: int
) -> None:
    world = init_world(small_world, replace(small_member, projection=projection), 5, 2, seed=0)
    windows = sample_windows(columns, None, np.random.default_rng(0), 3, 6)
    theta = world.theta.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: prediction_loss(world.sizes, t, windows, scales), (theta,), fast_mode=True
    )


def test_training_predicts_much_better_than_repeating_the_last_value(
    world: WorldState, columns: Columns, scales: Scales, small_world: WorldConfig
) -> None:
    held_out = sample_windows(columns, None, np.random.default_rng(99), 32, 8)
    rng = np.random.default_rng(0)
    config = replace(small_world, learning_rate=1e-2)
    before = prediction_error(world, held_out, scales)["ratio"]
    for _ in range(40):
        windows = sample_windows(columns, None, rng, 64, 8)
        world = apply_parts(world, prediction_gradients(world, windows, scales, 4), config)
    after = prediction_error(world, held_out, scales)["ratio"]
    assert before > 0.9
    assert after < 0.3


def test_each_gradient_is_of_its_own_part_of_the_windows(world: WorldState, columns: Columns, scales: Scales) -> None:
    windows = sample_windows(columns, None, np.random.default_rng(0), 6, 8)
    gradients = prediction_gradients(world, windows, scales, 2)
    assert gradients.shape == (2, world.sizes.num_parameters)
    np.testing.assert_array_equal(gradients[1:], prediction_gradients(world, windows.select(slice(3, 6)), scales))


def test_applying_gradients_leaves_the_given_world_alone_and_moves_the_encoder_less(
    world: WorldState, columns: Columns, scales: Scales, small_world: WorldConfig
) -> None:
    before = world.theta.clone()
    gradients = prediction_gradients(world, sample_windows(columns, None, np.random.default_rng(0), 6, 8), scales, 2)
    after = apply_parts(world, gradients, small_world)
    assert torch.equal(world.theta, before)
    moved = (after.theta - before).abs()
    split = world.sizes.encoder.layout.size
    assert after.steps.tolist() == [2, 2]
    assert 0 < moved[:split].max() < 0.2 * moved[split:].max()


def test_columns_that_never_vary_cost_nothing(world: WorldState, columns: Columns, scales: Scales) -> None:
    dead = scales.change_factor.copy()
    dead[0] = 0
    masked = replace(scales, change_factor=dead)
    windows = sample_windows(columns, None, np.random.default_rng(0), 4, 8)
    gradient = torch.from_numpy(prediction_gradients(world, windows, masked)[0])
    head = world.sizes.views(gradient)[1]
    assert not head["w2"][:, 0].any()
    assert head["w2"][:, 1].any()


def test_save_and_load_is_exact(
    world: WorldState, columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    windows = sample_windows(columns, None, np.random.default_rng(0), 4, 8)
    gradients = prediction_gradients(world, windows, scales, 2)
    once = apply_parts(world, gradients, small_world)
    again = world_from_arrays(small_world, small_member, 5, 2, world_to_arrays(once))
    one, two = (world_to_arrays(apply_parts(w, gradients, small_world)) for w in (once, again))
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


def test_arrays_of_other_sizes_are_refused(
    world: WorldState, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    with pytest.raises(CheckpointError, match="'theta' has shape"):
        world_from_arrays(small_world, small_member, 6, 2, world_to_arrays(world))


def test_encoder_parameters_are_views_of_the_world(world: WorldState) -> None:
    assert encoder_parameters(world)["nu"].data_ptr() == world.theta.data_ptr()


def test_heads_start_apart_and_predict_as_each_would_alone(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    world = init_world(small_world, small_member, 5, 2, seed=0, heads=3)
    windows = sample_windows(columns, None, np.random.default_rng(0), 4, 8)
    prepared = prepare(world.sizes, encoder_parameters(world), windows, scales)
    together = head_predictions(world, prepared.known)
    for index in range(3):
        head = world.sizes.views(world.sizes.part(world.theta, index))[1]
        alone = head_hidden(head, prepared.known, head["c0"]) @ head["w2"] + head["b2"]
        torch.testing.assert_close(together[index], alone)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_a_head_moves_only_by_its_own_gradients_and_the_others_keep_their_moments(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    world = init_world(small_world, small_member, 5, 2, seed=0, heads=3)
    windows = sample_windows(columns, None, np.random.default_rng(0), 6, 8)
    part = prediction_gradients(world, windows, scales, 2, head=1)
    split = world.sizes.num_shared
    after = apply_gradients(world, part[:, :split], {1: part[:, split:]}, small_world)
    assert after.steps.tolist() == [2, 0, 2, 0]
    for head, moved in ((0, False), (1, True), (2, False)):
        span = world.sizes.span(head)
        assert torch.equal(after.theta[span], world.theta[span]) != moved
        assert bool(after.m[span].any()) == moved
