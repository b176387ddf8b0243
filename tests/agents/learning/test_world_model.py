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
    WorldState,
    apply_gradients,
    encoder_parameters,
    init_world,
    prediction_error,
    prediction_gradients,
    prediction_loss,
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
        world = apply_gradients(world, prediction_gradients(world, windows, scales, 4), config)
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
    after = apply_gradients(world, gradients, small_world)
    assert torch.equal(world.theta, before)
    moved = (after.theta - before).abs()
    split = world.sizes.encoder.layout.size
    assert after.steps == 2
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
    once = apply_gradients(world, gradients, small_world)
    again = world_from_arrays(small_world, small_member, 5, 2, world_to_arrays(once))
    one, two = (world_to_arrays(apply_gradients(w, gradients, small_world)) for w in (once, again))
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


def test_arrays_of_other_sizes_are_refused(
    world: WorldState, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    with pytest.raises(CheckpointError, match="'theta' has shape"):
        world_from_arrays(small_world, small_member, 6, 2, world_to_arrays(world))


def test_encoder_parameters_are_views_of_the_world(world: WorldState) -> None:
    assert encoder_parameters(world)["nu"].data_ptr() == world.theta.data_ptr()
