from __future__ import annotations

import torch

from agents.learning.closed_form import ridge_change


def made(samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, samples, 3), (2, samples, 4), (2, 5, 3))
    support, residual, query = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return support, residual, query


def ridge_correction(
    support: torch.Tensor, residual: torch.Tensor, query: torch.Tensor, precision: float
) -> torch.Tensor:
    """What the change adds to predictions on the query."""
    weights, bias = ridge_change(support, residual, precision)
    return query @ weights + bias


def test_the_correction_is_that_of_the_normal_equations_with_many_and_with_few_samples() -> None:
    for samples in (2, 40):
        support, residual, query = made(samples)
        found = ridge_correction(support, residual, query, 0.7)
        for k in range(2):
            features = torch.cat([support[k], torch.ones(samples, 1, dtype=torch.float64)], dim=-1)
            weights = torch.linalg.solve(features.T @ features + 0.7 * torch.eye(4), features.T @ residual[k])
            asked = torch.cat([query[k], torch.ones(5, 1, dtype=torch.float64)], dim=-1)
            torch.testing.assert_close(found[k], asked @ weights)


def test_a_hard_hold_corrects_nothing_and_a_loose_one_meets_few_samples_exactly() -> None:
    support, residual, _ = made(3)
    assert ridge_correction(support, residual, support, 1e12).abs().max() < 1e-9
    torch.testing.assert_close(ridge_correction(support, residual, support, 1e-12), residual)
