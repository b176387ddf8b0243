"""Statistics of observations, rewards and changes of observation, of all given rows at once.

Letters: R rows, O observation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
MIN_STD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normalizer:
    """Count, mean and sum of squared deviations of [observation (O), reward (1), change of observation (O)].

    Attributes:
        count: rows seen; 0 makes every scale 1.
        mean: (2 O + 1,) float64.
        m2: (2 O + 1,) float64.
    """

    count: int
    mean: Float64Array
    m2: Float64Array

    @property
    def observation_size(self) -> int:
        """O."""
        return (len(self.mean) - 1) // 2

    def scales(self) -> Scales:
        """Return float32 shifts and factors; columns that never varied get the factor 0 and so drop out."""
        size = self.observation_size
        std = np.sqrt(self.m2 / max(self.count, 1))
        factor = np.where(std > MIN_STD, 1 / np.maximum(std, MIN_STD), 0.0) if self.count else np.ones_like(std)
        mean = self.mean.astype(np.float32)
        factor = factor.astype(np.float32)
        return Scales(
            observation_mean=mean[:size],
            observation_factor=factor[:size],
            reward_mean=mean[size : size + 1],
            reward_factor=factor[size : size + 1],
            change_mean=mean[size + 1 :],
            change_factor=factor[size + 1 :],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scales:
    """normalised = (raw − mean) · factor, each (O,) or (1,) float32; a factor of 0 drops a column."""

    observation_mean: Float32Array
    observation_factor: Float32Array
    reward_mean: Float32Array
    reward_factor: Float32Array
    change_mean: Float32Array
    change_factor: Float32Array


def empty_normalizer(observation_size: int) -> Normalizer:
    """Return statistics of no rows: everything passes unscaled."""
    return Normalizer(count=0, mean=np.zeros(2 * observation_size + 1), m2=np.zeros(2 * observation_size + 1))


def normalizer_from_rows(observation: Float32Array, reward: Float32Array, next_observation: Float32Array) -> Normalizer:
    """Return the statistics of the rows (…, O), (…), (…, O)."""
    size = observation.shape[-1]
    before = observation.reshape(-1, size).astype(np.float64)
    after = next_observation.reshape(-1, size).astype(np.float64)
    rows = np.concatenate([before, reward.reshape(-1, 1).astype(np.float64), after - before], axis=1)
    if len(rows) == 0:
        return empty_normalizer(size)
    mean = rows.mean(axis=0)
    # A constant column must keep a variance of exactly zero, whatever rounding did to its mean.
    mean = np.where((rows == rows[0]).all(axis=0), rows[0], mean)
    return Normalizer(count=len(rows), mean=mean, m2=np.square(rows - mean).sum(axis=0))
