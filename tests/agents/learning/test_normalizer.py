from __future__ import annotations

import numpy as np

from agents.learning.normalizer import normalizer_from_rows


def rows(num: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    observation = (rng.standard_normal((num, 8, 3)) * [1, 5, 0] + [0.1, 2, 0.7]).astype(np.float32)
    following = observation + (rng.standard_normal((num, 8, 3)) * [1, 2, 0]).astype(np.float32)
    return observation, rng.standard_normal((num, 8)).astype(np.float32), following


def test_statistics_are_those_of_numpy() -> None:
    observation, reward, following = rows()
    found = normalizer_from_rows(observation, reward, following)
    flat = observation.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean[:3], flat.mean(0))
    np.testing.assert_allclose(found.m2[:3] / found.count, flat.var(0), atol=1e-12)
    scales = found.scales()
    np.testing.assert_allclose(scales.reward_factor[0] * reward.astype(np.float64).std(), 1, rtol=1e-6)


def test_columns_that_never_vary_are_dropped() -> None:
    scales = normalizer_from_rows(*rows(997)).scales()
    assert scales.observation_factor[2] == 0
    assert scales.change_factor[2] == 0
    assert (scales.observation_factor[:2] > 0).all()


def test_no_rows_pass_everything_unscaled() -> None:
    observation, reward, following = rows()
    scales = normalizer_from_rows(observation[:0], reward[:0], following[:0]).scales()
    assert scales.observation_factor.tolist() == [1, 1, 1]
    assert scales.observation_mean.tolist() == [0, 0, 0]
