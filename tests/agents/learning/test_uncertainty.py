from __future__ import annotations

import pytest
import torch

from agents.learning.uncertainty import (
    LEVELS,
    NORMAL_WIDTHS,
    calibration_error,
    coverage,
    fit_calibration,
    reliability,
)

HEADS, ROWS, OUTPUTS = 5, 4_000, 3
ALL = torch.ones(OUTPUTS)


def ensemble(factor: float, floor: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (N, R, O) whose heads disagree by a known spread, and targets (R, O).

    The error's standard deviation is √((factor · spread)² + floor²), the same law in every output.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = 0.05 + torch.rand(ROWS, OUTPUTS, generator=generator) ** 2
    heads = torch.randn(HEADS, ROWS, OUTPUTS, generator=generator)
    heads = (heads - heads.mean(0)) / heads.std(0, unbiased=False) * spread
    error = torch.randn(ROWS, OUTPUTS, generator=generator) * (factor**2 * spread**2 + floor**2).sqrt()
    return heads + 1.0, 1.0 + error


@pytest.mark.parametrize(("factor", "floor"), [(3.0, 0.01), (0.3, 0.2), (1.5, 0.5)])
def test_intervals_of_the_calibrated_spread_cover_what_they_promise_on_other_rows(factor: float, floor: float) -> None:
    calibration = fit_calibration(*ensemble(factor, floor), ALL)
    predictions, target = ensemble(factor, floor, seed=1)
    error = target - predictions.mean(0)
    covered = coverage(error, calibration.std(predictions), calibration.widths)
    assert covered == pytest.approx(LEVELS, abs=0.03)
    raw = coverage(error, predictions.std(0, unbiased=False), NORMAL_WIDTHS)
    assert calibration_error(covered) < 0.03 < calibration_error(raw)


def test_the_fit_finds_whether_disagreement_or_the_floor_explains_the_errors() -> None:
    assert fit_calibration(*ensemble(3.0, 0.0), ALL).share.min() == 1.0
    assert fit_calibration(*ensemble(0.0, 1.0), ALL).share.max() <= 0.1


def test_the_reliability_curve_follows_the_diagonal_when_calibrated() -> None:
    calibration = fit_calibration(*ensemble(2.0, 0.1), ALL)
    predictions, target = ensemble(2.0, 0.1, seed=1)
    pairs = reliability(target - predictions.mean(0), calibration.std(predictions))
    assert len(pairs) == 8
    assert [std for std, _ in pairs] == sorted(std for std, _ in pairs)
    for std, error in pairs:
        assert error == pytest.approx(std, rel=0.15)
    assert pairs[-1][0] > 3 * pairs[0][0]


def test_outputs_that_never_vary_do_not_move_the_intervals_of_the_others() -> None:
    """Nobody trains them: there the heads are wrong by a constant, which is always within one of their deviations."""

    def wider(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, target = ensemble(2.0, 0.1, seed)
        constant = torch.linspace(-0.3, 0.4, HEADS)[:, None, None].expand(HEADS, ROWS, OUTPUTS)
        return torch.cat([predictions, constant], dim=-1), torch.cat([target, torch.zeros(ROWS, OUTPUTS)], dim=-1)

    mask = torch.cat([ALL, 0 * ALL])
    calibration, alone = fit_calibration(*wider(0), mask), fit_calibration(*ensemble(2.0, 0.1), ALL)
    assert calibration.widths == pytest.approx(alone.widths, rel=1e-5)
    predictions, target = wider(1)
    error, std = target - predictions.mean(0), calibration.std(predictions)
    covered = coverage(error[:, :OUTPUTS], std[:, :OUTPUTS], calibration.widths)
    assert covered == pytest.approx(LEVELS, abs=0.03)
    unmasked = fit_calibration(*wider(0), torch.ones_like(mask))
    assert coverage(error[:, :OUTPUTS], std[:, :OUTPUTS], unmasked.widths)[0] > 0.6
    assert fit_calibration(*wider(0), 0 * mask).widths == NORMAL_WIDTHS


def test_outputs_that_no_head_varies_on_get_the_floor_and_stay_finite() -> None:
    predictions, target = ensemble(1.0, 0.1)
    predictions[..., 0] = 0.0
    target[..., 0] = 0.0
    calibration = fit_calibration(predictions, target, ALL)
    assert torch.isfinite(calibration.std(predictions)).all()
    assert torch.isfinite(calibration.novelty(predictions, ALL)).all()


def test_novelty_is_one_on_average_where_it_was_fitted_and_grows_with_disagreement() -> None:
    predictions, target = ensemble(1.0, 0.1)
    calibration = fit_calibration(predictions, target, ALL)
    usual = calibration.novelty(predictions, ALL)
    assert float(usual.square().mean()) == pytest.approx(1.0, abs=1e-4)
    wider = predictions.mean(0) + 3 * (predictions - predictions.mean(0))
    torch.testing.assert_close(calibration.novelty(wider, ALL), 3 * usual)
