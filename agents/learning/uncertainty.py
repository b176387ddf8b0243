"""How far to trust the world model: disagreement of its heads, calibrated against errors on rows that none has seen.

Letters: N heads, R rows, O outputs, B bins.

The predicted variance of an output is ``scale · (share · s² / mean s² + 1 − share)``: s² is the variance over the heads
(large where they have seen little), the rest a floor for what no head can know. Both numbers of an output are fitted by
maximum likelihood of its errors; how many of these standard deviations cover 50, 80 and 95 % is then read off the same
rows, since errors of contact dynamics have heavier tails than a normal distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

LEVELS: Final = (0.5, 0.8, 0.95)
NORMAL_WIDTHS: Final = (0.6745, 1.2816, 1.96)
SHARES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
NUM_BINS: Final = 8
MIN_VARIANCE: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What turns disagreement into a predicted standard deviation.

    Attributes:
        typical: (O,) mean variance over the heads on the rows of the fit.
        scale: (O,) mean predicted variance there.
        share: (O,) in [0, 1], how much of it follows the disagreement.
        widths: standard deviations that covered each of `LEVELS`, over all outputs that vary.
    """

    typical: Tensor
    scale: Tensor
    share: Tensor
    widths: tuple[float, ...]

    def std(self, predictions_NRO: Tensor) -> Tensor:
        """Return the predicted standard deviation (R, O) of the error of the heads' mean."""
        variance = _variance(predictions_NRO)
        relative = self.share * variance / self.typical + 1 - self.share
        return (self.scale * relative).clamp_min(MIN_VARIANCE).sqrt()

    def novelty(self, predictions_NRO: Tensor, mask_O: Tensor) -> Tensor:
        """Return the heads' disagreement (R,) relative to where the fit was made: 1 is as usual there."""
        relative = _variance(predictions_NRO) / self.typical * mask_O
        return (relative.sum(-1) / mask_O.sum().clamp_min(1)).sqrt()


def _variance(predictions_NRO: Tensor) -> Tensor:
    return predictions_NRO.var(0, unbiased=False)


@torch.no_grad()
def fit_calibration(predictions_NRO: Tensor, target_RO: Tensor, mask_O: Tensor) -> Calibration:
    """Fit the spread of each output on rows that were not trained on.

    Of one head, which cannot disagree, only the floor remains.

    Args:
        mask_O: 0 for outputs that never vary: nobody trains them, so their errors say nothing of the others' and do
            not count for the widths.
    """
    variance, squared = _variance(predictions_NRO), (predictions_NRO.mean(0) - target_RO).square()
    typical = variance.mean(0).clamp_min(MIN_VARIANCE)
    shares = torch.tensor(SHARES, dtype=squared.dtype, device=squared.device)[:, None, None]
    relative = (shares * variance / typical + 1 - shares).clamp_min(1e-6)
    scales = (squared / relative).mean(1).clamp_min(MIN_VARIANCE)
    losses = (scales[:, None] * relative).log().mean(1)  # the quadratic term of the likelihood is 1 at the best scale
    best = losses.argmin(0)
    columns = torch.arange(len(typical), device=typical.device)
    unscaled = Calibration(
        typical=typical, scale=scales[best, columns], share=shares[:, 0, 0][best], widths=NORMAL_WIDTHS
    )
    ratios = (squared.sqrt() / unscaled.std(predictions_NRO))[:, mask_O > 0].flatten().sort().values
    if not len(ratios):
        return unscaled
    widths = tuple(float(ratios[int(level * (len(ratios) - 1))]) for level in LEVELS)
    return Calibration(typical=typical, scale=unscaled.scale, share=unscaled.share, widths=widths)


def coverage(error_RO: Tensor, std_RO: Tensor, widths: tuple[float, ...]) -> tuple[float, ...]:
    """Return the share of errors within each width times the predicted standard deviation."""
    ratios = error_RO.abs() / std_RO
    return tuple(float((ratios <= width).double().mean()) for width in widths)


def calibration_error(covered: tuple[float, ...]) -> float:
    """Return the mean distance between what was covered and what was promised at each of `LEVELS`."""
    return sum(abs(found - level) for found, level in zip(covered, LEVELS, strict=True)) / len(LEVELS)


def reliability(error_RO: Tensor, std_RO: Tensor) -> list[list[float]]:
    """Return (mean predicted standard deviation, root mean square error), (B, 2), in bins of equally many."""
    order = std_RO.flatten().argsort(stable=True)
    std, squared = std_RO.flatten()[order].double(), error_RO.flatten()[order].double().square()
    return [
        [float(s.mean()), float(e.mean().sqrt())]
        for s, e in zip(std.tensor_split(NUM_BINS), squared.tensor_split(NUM_BINS), strict=True)
        if len(s)
    ]
