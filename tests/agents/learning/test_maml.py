from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import Columns
from agents.learning.maml import adapted_loss, meta_gradients, meta_loss
from agents.learning.normalizer import Scales
from agents.learning.windows import sample_task_windows
from agents.learning.world_model import apply_gradients, head_hidden, head_loss, init_world, prepare


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_second_order_gradient_equals_an_explicit_loop_over_tasks(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig, inner_steps: int
) -> None:
    config = replace(small_world, inner_steps=inner_steps)
    world = init_world(config, small_member, 5, 2, seed=0)
    support, query = sample_task_windows(columns, None, np.random.default_rng(0), 5, 8)
    theta = world.theta.double().requires_grad_()
    (mine,) = torch.autograd.grad(meta_loss(world.sizes, theta, support, query, scales, config), theta)
    encoder, head = world.sizes.views(theta)
    seen, asked = prepare(world.sizes, encoder, support, scales), prepare(world.sizes, encoder, query, scales)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(5):
        fast = [head["c0"], head["w2"], head["b2"]]
        for _ in range(inner_steps):
            hidden = head_hidden(head, seen.known[:, k], fast[0])
            loss = head_loss(hidden, fast[1], fast[2], seen.target[:, k], seen.mask)
            gradients = torch.autograd.grad(loss, fast, create_graph=True)
            fast = [value - config.inner_learning_rate * g for value, g in zip(fast, gradients, strict=True)]
        hidden = head_hidden(head, asked.known[:, k], fast[0])
        total = total + head_loss(hidden, fast[1], fast[2], asked.target[:, k], asked.mask)
    (expected,) = torch.autograd.grad(total / 5, theta)
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


def test_meta_gradient_equals_finite_differences(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    world = init_world(small_world, small_member, 5, 2, seed=0)
    support, query = sample_task_windows(columns, None, np.random.default_rng(0), 3, 6)
    theta = world.theta.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: meta_loss(world.sizes, t, support, query, scales, small_world), (theta,), fast_mode=True
    )


def test_meta_training_makes_adaptation_pay_and_more_than_from_a_random_start(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    """The environments of the fixture drift differently, which only the support window tells."""
    config = replace(small_world, learning_rate=3e-3, inner_learning_rate=0.5)
    fresh = init_world(config, small_member, 5, 2, seed=0)
    world, rng = fresh, np.random.default_rng(0)
    for _ in range(60):
        support, query = sample_task_windows(columns, None, rng, 16, 8)
        world = apply_gradients(world, meta_gradients(world, support, query, scales, config, 2), config)
    support, query = sample_task_windows(columns, None, np.random.default_rng(9), 64, 8)
    before, after = adapted_loss(world, support, query, scales, config)
    fresh_before, fresh_after = adapted_loss(fresh, support, query, scales, config)
    assert after < 0.9 * before
    assert after / before < fresh_after / fresh_before
