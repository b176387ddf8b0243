"""Rules that make one gradient of several senders' gradients. Pure NumPy in float64, sums in the order given.

Letters: S senders, E parameters.

The mean follows any single sender wherever it goes; the other rules bound what a minority can do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.learning.normalizer import Float64Array

TRIMMED_SHARE: Final = 0.2
WEISZFELD_STEPS: Final = 16
SMOOTHING: Final = 1e-6


def mean(rows_SE: Float64Array, weights_S: Float64Array) -> Float64Array:
    """Return the weighted mean (E,)."""
    combined = np.zeros(rows_SE.shape[1])
    for row, weight in zip(rows_SE, weights_S / weights_S.sum(), strict=True):
        combined += row * weight
    return combined


def clipped_mean(rows_SE: Float64Array, weights_S: Float64Array) -> Float64Array:
    """Return the weighted mean after scaling every row down to the median norm of the senders.

    With a minority of wild senders the median norm is that of an honest one, and so is the most that each can add.
    """
    norms = _norms(rows_SE)
    factors = np.minimum(1.0, np.median(norms) / np.maximum(norms, np.finfo(np.float64).tiny))
    return mean(rows_SE * factors[:, None], weights_S)


def trimmed_mean(rows_SE: Float64Array, weights_S: Float64Array) -> Float64Array:
    """Return, for each parameter, the weighted mean without the largest and the smallest fifth (at least one each).

    Fewer than three senders leave nothing to trim.

    Source: Yin et al. 2018, arXiv:1803.01498, definition 2, with weights on what is left.
    """
    num_senders = len(rows_SE)
    if num_senders < 3:
        return mean(rows_SE, weights_S)
    cut = max(1, int(TRIMMED_SHARE * num_senders))
    order = np.argsort(rows_SE, axis=0, kind="stable")[cut : num_senders - cut]
    kept, weights = np.take_along_axis(rows_SE, order, axis=0), weights_S[order]
    trimmed: Float64Array = (kept * weights).sum(axis=0) / weights.sum(axis=0)
    return trimmed


def geometric_median(rows_SE: Float64Array, weights_S: Float64Array) -> Float64Array:
    """Return the point with the smallest weighted sum of distances to the rows, by 16 smoothed Weiszfeld steps.

    Starts from the median of each parameter, which a minority cannot carry away. Smoothing is relative to the weighted
    median of the rows' norms. Where that is zero, so is the result: half of the weight at one point holds the median.

    Source: Pillutla et al. 2022, arXiv:1912.13445, algorithm 2.
    """
    floor = SMOOTHING * _weighted_median(_norms(rows_SE), weights_S)
    if floor == 0:
        return np.zeros(rows_SE.shape[1])
    centre: Float64Array = np.median(rows_SE, axis=0)
    for _ in range(WEISZFELD_STEPS):
        centre = mean(rows_SE, weights_S / np.maximum(_norms(rows_SE - centre), floor))
    return centre


def _weighted_median(values_S: NDArray[np.float64], weights_S: Float64Array) -> float:
    """Return the smallest value that, with all smaller ones, has half of the weight."""
    order = np.argsort(values_S, kind="stable")
    upto = np.cumsum(weights_S[order])
    return float(values_S[order[np.searchsorted(upto, 0.5 * upto[-1])]])


def _norms(rows_SE: Float64Array) -> NDArray[np.float64]:
    return np.array([np.sqrt(np.square(row).sum()) for row in rows_SE])


RULES: Final[Mapping[str, Callable[[Float64Array, Float64Array], Float64Array]]] = {
    "mean": mean,
    "clipped_mean": clipped_mean,
    "trimmed_mean": trimmed_mean,
    "geometric_median": geometric_median,
}
