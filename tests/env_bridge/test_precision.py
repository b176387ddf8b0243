"""Casts and scaled actions: the bits of NumPy's own formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from env_bridge.precision import scale_actions, to_float32, write_float32

WIDE = np.random.default_rng(0).normal(scale=1e3, size=(16, 20))


@pytest.mark.parametrize(
    "source",
    [WIDE, WIDE[:, ::2], np.asfortranarray(WIDE), WIDE.astype(np.float32), WIDE.astype(np.int64)],
    ids=["contiguous", "strided", "columns first", "float32", "integers"],
)
def test_observations_of_any_layout_and_type_are_cast_as_numpy_does(source: NDArray[Any]) -> None:
    target = np.zeros(source.shape, np.float32)
    assert write_float32(source, target)
    np.testing.assert_array_equal(target, source.astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("place", [(0, 0), (7, 3), (15, 19)])
def test_what_is_not_finite_in_single_precision_is_told(value: float, place: tuple[int, int]) -> None:
    source, target = WIDE.copy(), np.zeros(WIDE.shape, np.float32)
    source[place] = value
    assert not write_float32(source, target)
    np.testing.assert_array_equal(target, to_float32(source))


def test_actions_are_scaled_to_the_bits_of_the_formula() -> None:
    action = np.random.default_rng(1).uniform(-1.0, 1.0, (64, 17)).astype(np.float32)
    low, high = np.linspace(-0.4, -3.0, 17), np.linspace(0.7, 2.0, 17)
    wanted = (low + (action.astype(np.float64) + 1.0) * 0.5 * (high - low)).astype(np.float32)
    np.testing.assert_array_equal(scale_actions(action, low, high), wanted)
    np.testing.assert_array_equal(scale_actions(np.asfortranarray(action), low, high), wanted)
