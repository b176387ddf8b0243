from __future__ import annotations

import torch
from torch import Tensor

from tests.agents.learning.reference_sac import squashed_log_prob


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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
