from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.learning.networks import (
    LOG_STD_MAX,
    ActorPass,
    CriticPair,
    CriticWeights,
    NetworkSizes,
    OnlineCritics,
    actor_output,
    critic_values,
    init_networks,
    squashed_log_prob,
)

SIZES = NetworkSizes(inputs=7, actions=3, actor_hidden=(10, 8), critic_hidden=(12, 9))
BATCH = 6


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def theta() -> Tensor:
    return init_networks(SIZES, torch.Generator().manual_seed(3), torch.float64)


def test_critic_pass_gives_the_values_of_the_reference(theta: Tensor) -> None:
    critics, _ = SIZES.split(theta)
    x = random_tensor(BATCH, 10)
    values = CriticPair(SIZES, BATCH, torch.float64).forward([CriticWeights(SIZES, flat) for flat in critics], x)
    torch.testing.assert_close(values, critic_values(SIZES, critics, x), rtol=1e-12, atol=1e-12)


def test_critic_gradients_equal_autograd(theta: Tensor) -> None:
    critics = SIZES.split(theta)[0]
    x, dq = random_tensor(BATCH, 10), random_tensor(2, BATCH, seed=1)
    gradient = torch.zeros_like(critics)
    online = OnlineCritics(SIZES, critics, gradient)
    both = CriticPair(SIZES, BATCH, torch.float64)
    both.forward(online.pair, x)
    both.backward_parameters(online, x, dq[..., None])
    free, free_x = critics.clone().requires_grad_(), x.clone().requires_grad_()
    expected, expected_x = torch.autograd.grad((critic_values(SIZES, free, free_x) * dq).sum(), (free, free_x))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    both.forward(online.pair, x)
    d_action = both.backward_action(online, dq[..., None])
    torch.testing.assert_close(d_action, expected_x[:, SIZES.inputs :], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clamped", [False, True])
def test_actor_gradients_equal_autograd(theta: Tensor, clamped: bool) -> None:
    actor = SIZES.split(theta)[1].clone()
    if clamped:
        SIZES.actor.views(actor)["b3"][SIZES.actions] = LOG_STD_MAX + 1
    x, noise, d_action = random_tensor(BATCH, 7), random_tensor(BATCH, 3, seed=1), random_tensor(BATCH, 3, seed=2)
    gradient, action = torch.zeros_like(actor), torch.empty(BATCH, 3, dtype=torch.float64)
    mine = ActorPass(SIZES, actor, gradient, BATCH)
    log_prob = mine.sample(x, noise, action)
    mine.backward(x, action, d_action, 0.3)
    free = actor.clone().requires_grad_()
    mean, log_std = actor_output(SIZES, free, x)
    pre_tanh = mean + log_std.exp() * noise
    expected_log_prob = squashed_log_prob(log_std, pre_tanh, noise)
    loss = (torch.tanh(pre_tanh) * d_action).sum() + 0.3 * expected_log_prob.sum()
    torch.testing.assert_close(log_prob, expected_log_prob.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, free)[0], rtol=1e-9, atol=1e-12)


def test_log_prob_is_the_density_of_the_squashed_gaussian() -> None:
    mean, log_std, noise = (random_tensor(4, 3, seed=s) for s in range(3))
    pre_tanh = mean + log_std.exp() * noise
    gaussian = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(gaussian, [torch.distributions.TanhTransform(cache_size=1)])
    expected = squashed.log_prob(torch.tanh(pre_tanh)).sum(-1)
    torch.testing.assert_close(squashed_log_prob(log_std, pre_tanh, noise), expected, rtol=1e-6, atol=1e-6)


def test_log_prob_of_a_saturated_action_is_finite() -> None:
    one = torch.ones(1, 1)
    assert squashed_log_prob(one, 80 * one, one).isfinite().all()
    assert squashed_log_prob(one, -80 * one, one).isfinite().all()
