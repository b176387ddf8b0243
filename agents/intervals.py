"""Confidence intervals of a mean by bootstrap over episodes; the same numbers for the same episodes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from agents.randomness import generator

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval; of a single value, the interval is that value."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean of ``values`` with its percentile-bootstrap interval.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3. With fewer than about ten values
    it is narrower than it should be.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("got no values, expected at least one")
    data = np.asarray(values, np.float64)
    rows = generator(0, "bootstrap", len(data)).integers(len(data), size=(RESAMPLES, len(data)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(data[rows].mean(axis=1), (tail, 1 - tail))
    return Estimate(mean=float(data.mean()), low=float(low), high=float(high))
