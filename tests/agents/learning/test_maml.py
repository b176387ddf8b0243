from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import Columns
from agents.learning.maml import adapted_loss, meta_gradients, meta_loss
from agents.learning.normalizer import Scales
from agents.learning.windows import Windows, sample_windows, split_windows
from agents.learning.world_model import head_hidden, head_loss, prepare
from agents.learning.world_state import apply_parts, init_world
from swarm.errors import ConfigError


def drawn_tasks(columns: Columns, rng: np.random.Generator, num_tasks: int, length: int) -> tuple[Windows, Windows]:
    """Support and query windows, one after the other: a task is an environment for a while."""
    return split_windows(sample_windows(columns, None, rng, num_tasks, 2 * length), length)


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_second_order_gradient_equals_an_explicit_loop_over_tasks(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig, inner_steps: int
) -> None:
    config = replace(small_world, inner_steps=inner_steps)
    world = init_world(config, small_member, 5, 2, seed=0)
    support, query = drawn_tasks(columns, np.random.default_rng(0), 5, 8)
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


@pytest.mark.parametrize("adapted", ["both", "ridge"])
def test_meta_gradient_equals_finite_differences(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig, adapted: str
) -> None:
    config = replace(small_world, adapted=adapted, learned_rates=True)
    world = init_world(config, small_member, 5, 2, seed=0)
    support, query = drawn_tasks(columns, np.random.default_rng(0), 3, 6)
    theta = world.theta.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: meta_loss(world.sizes, t, support, query, scales, config), (theta,), fast_mode=True
    )


def test_meta_training_makes_adaptation_pay_and_more_than_from_a_random_start(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    """The environments of the fixture drift differently, which only the support window tells."""
    config = replace(small_world, learning_rate=3e-3, inner_learning_rate=0.5)
    fresh = init_world(config, small_member, 5, 2, seed=0)
    world, rng = fresh, np.random.default_rng(0)
    for _ in range(60):
        support, query = drawn_tasks(columns, rng, 16, 8)
        world = apply_parts(world, meta_gradients(world, support, query, scales, config, 2), config)
    support, query = drawn_tasks(columns, np.random.default_rng(9), 64, 8)
    before, after = adapted_loss(world, support, query, scales, config)
    fresh_before, fresh_after = adapted_loss(fresh, support, query, scales, config)
    assert after < 0.9 * before
    assert after / before < fresh_after / fresh_before


def test_a_members_meta_gradient_is_of_its_own_head(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    world = init_world(small_world, small_member, 5, 2, seed=0, heads=3)
    support, query = drawn_tasks(columns, np.random.default_rng(0), 4, 6)
    one, two = (meta_gradients(world, support, query, scales, small_world, head=head) for head in (0, 2))
    assert one.shape == (1, world.sizes.num_part)
    part = world.sizes.part(world.theta, 2).requires_grad_()
    (expected,) = torch.autograd.grad(meta_loss(world.sizes, part, support, query, scales, small_world), part)
    np.testing.assert_array_equal(two[0], expected.numpy())
    assert np.abs(one - two).max() > 1e-4


@pytest.mark.parametrize("adapted", ["context", "head", "both", "all", "ridge"])
def test_each_choice_of_what_is_adapted_lowers_the_support_loss(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig, adapted: str
) -> None:
    config = replace(small_world, adapted=adapted, inner_steps=5)
    world = init_world(config, small_member, 5, 2, seed=0)
    head = world.sizes.views(world.theta)[1]
    head["c0"].fill_(0.1)
    support, _ = drawn_tasks(columns, np.random.default_rng(0), 8, 8)
    before, after = adapted_loss(world, support, support, scales, config)
    assert after < before


def test_learned_rates_receive_a_gradient_and_fixed_ones_none(
    columns: Columns, scales: Scales, small_world: WorldConfig, small_member: MemberConfig
) -> None:
    world = init_world(small_world, small_member, 5, 2, seed=0)
    support, query = drawn_tasks(columns, np.random.default_rng(0), 4, 6)
    for learned in (False, True):
        config = replace(small_world, learned_rates=learned)
        gradient = torch.from_numpy(meta_gradients(world, support, query, scales, config)[0])
        assert bool(world.sizes.views(gradient)[1]["rates"].all()) == learned


def test_an_unknown_choice_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'everything'; expected one of context, head, both, all, ridge"):
        WorldConfig(adapted="everything")
