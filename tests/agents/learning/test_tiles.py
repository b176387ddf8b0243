from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.learning.compiled import compiled_and_kept
from agents.learning.tiles import TILE_ROWS, multiply, scratch_size

Floats = NDArray[np.floating]


@compiled_and_kept
def product(a: Floats, b: Floats, bias: Floats, scratch: Floats) -> Floats:
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    multiply(a, b, bias, out, scratch)
    return out


def arrays(rows: int, depth: int, width: int, dtype: type = np.float64) -> tuple[Floats, ...]:
    rng = np.random.default_rng(rows + 100 * depth + 10_000 * width)
    a, b, bias = rng.standard_normal((rows, depth)), rng.standard_normal((depth, width)), rng.standard_normal(width)
    scratch = np.full(scratch_size(rows, depth, width), np.nan)
    return tuple(array.astype(dtype) for array in (a, b, bias, scratch))


@pytest.mark.parametrize("rows", [1, TILE_ROWS - 1, TILE_ROWS, 3 * TILE_ROWS + 5])
@pytest.mark.parametrize("depth", [1, 17])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 31, 40, 104])
def test_products_of_all_shapes_equal_numpys(rows: int, depth: int, width: int) -> None:
    a, b, bias, scratch = arrays(rows, depth, width)
    np.testing.assert_allclose(product(a, b, bias, scratch), a @ b + bias, rtol=1e-12, atol=1e-12)


def test_products_of_transposed_and_strided_operands_equal_numpys() -> None:
    a, b, bias, scratch = arrays(21, 12, 40)
    expected = a @ b + bias
    turned = (np.ascontiguousarray(a.T).T, np.ascontiguousarray(b.T).T)
    strided = (np.repeat(a, 2, axis=1)[:, ::2], np.concatenate([b, b], axis=1)[:, :40])
    for left, right in (turned, strided, (a, turned[1]), (turned[0], b)):
        np.testing.assert_allclose(product(left, right, bias, scratch), expected, rtol=1e-12, atol=1e-12)


def test_a_row_has_the_same_bits_wherever_it_stands_in_the_batch() -> None:
    a, b, bias, scratch = arrays(27, 33, 50, np.float32)
    whole = product(a, b, bias, scratch)
    for first in (1, 8, 26):
        assert np.array_equal(product(a[first:], b, bias, scratch), whole[first:])


def test_numbers_that_are_not_finite_stay_visible() -> None:
    a, b, bias, scratch = arrays(9, 4, 20, np.float32)
    a[3, 2] = np.nan
    found = product(a, b, bias, scratch)
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()
