from __future__ import annotations

import numpy as np
import pytest

from agents.learning.normalizer import Normalizer, empty_normalizer, normalizer_from_rows
from swarm.errors import ConfigError


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


def test_merging_blocks_equals_all_rows_at_once() -> None:
    observation, reward, following = rows()
    merged = empty_normalizer(3)
    for part in (slice(0, 7), slice(7, 60), slice(60, 100)):
        merged = merged.merge(observation[part], reward[part], following[part])
    whole = normalizer_from_rows(observation, reward, following)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-10, atol=1e-10)


def test_columns_that_never_vary_are_dropped_also_after_merging() -> None:
    merged = empty_normalizer(3)
    for seed in range(20):
        merged = merged.merge(*rows(7, seed))
    scales = merged.scales()
    assert scales.observation_factor[2] == 0
    assert scales.change_factor[2] == 0
    assert (scales.observation_factor[:2] > 0).all()


def test_no_rows_pass_everything_unscaled() -> None:
    scales = empty_normalizer(3).scales()
    assert scales.observation_factor.tolist() == [1, 1, 1]
    assert scales.observation_mean.tolist() == [0, 0, 0]


def test_save_and_load_is_exact() -> None:
    found = normalizer_from_rows(*rows())
    again = Normalizer.from_arrays(found.to_arrays())
    assert again.count == found.count
    assert again.mean.tobytes() == found.mean.tobytes()
    assert again.m2.tobytes() == found.m2.tobytes()


def test_observations_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 3, expected 4"):
        empty_normalizer(4).merge(*rows(5))
