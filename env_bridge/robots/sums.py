"""Sums of squares with the bits of NumPy's, for the compiled formulas of robots.

NumPy adds up contiguous numbers pairwise: eight running sums for each block, and the sum of two halves beyond that.

numba's cache looks at a caller's own file alone: who changes this one must touch the robots' as well.

Letters: E environments, N numbers.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

LANES: Final = 8
"""From so many numbers on, there are eight running sums; below, one."""
BLOCK: Final = 128
"""Beyond so many, they are halved."""
MAX_DEPTH: Final = 64


@numba.njit(cache=True, nogil=True)
def _square(rows: Any, e: int, k: int) -> Any:  # noqa: ANN401 - one function for both precisions
    return rows[e, k] * rows[e, k]


@numba.njit(cache=True, nogil=True)
def _sum_block(rows: Any, e: int, first: int, size: int) -> Any:  # noqa: ANN401
    total, end = rows.dtype.type(0), first + size - size % LANES
    if size >= LANES:
        a, b = _square(rows, e, first), _square(rows, e, first + 1)
        c, d = _square(rows, e, first + 2), _square(rows, e, first + 3)
        p, q = _square(rows, e, first + 4), _square(rows, e, first + 5)
        r, s = _square(rows, e, first + 6), _square(rows, e, first + 7)
        for k in range(first + LANES, end, LANES):
            a += _square(rows, e, k)
            b += _square(rows, e, k + 1)
            c += _square(rows, e, k + 2)
            d += _square(rows, e, k + 3)
            p += _square(rows, e, k + 4)
            q += _square(rows, e, k + 5)
            r += _square(rows, e, k + 6)
            s += _square(rows, e, k + 7)
        total = ((a + b) + (c + d)) + ((p + q) + (r + s))
    for k in range(end, first + size):
        total += _square(rows, e, k)
    return total


@numba.njit(cache=True, nogil=True)
def _sum_halves(rows: Any, e: int) -> Any:  # noqa: ANN401
    # Blocks come from left to right; one is added to what is to the left of it once that has the same depth.
    # A loop, since numba's cache does not survive functions that call themselves.
    firsts, sizes = np.zeros(MAX_DEPTH, np.int64), np.zeros(MAX_DEPTH, np.int64)
    depths, is_left = np.zeros(MAX_DEPTH, np.int64), np.zeros(MAX_DEPTH, np.bool_)
    left = np.zeros(MAX_DEPTH, rows.dtype)
    sizes[0], waiting = rows.shape[1], 1
    total = rows.dtype.type(0)
    while waiting > 0:
        waiting -= 1
        first, size, depth = firsts[waiting], sizes[waiting], depths[waiting]
        if size > BLOCK:
            half = size // 2 - size // 2 % LANES
            firsts[waiting], sizes[waiting], depths[waiting] = first + half, size - half, depth + 1
            firsts[waiting + 1], sizes[waiting + 1], depths[waiting + 1] = first, half, depth + 1
            waiting += 2
            continue
        total = _sum_block(rows, e, first, size)
        while is_left[depth]:
            total = left[depth] + total
            is_left[depth] = False
            depth -= 1
        left[depth], is_left[depth] = total, True
    return total


@numba.njit(cache=True, nogil=True)
def sum_of_squares(rows: Any, e: int) -> Any:  # noqa: ANN401
    """``np.sum(np.square(rows[e]))`` of (E, N), to the bit, in its precision; for compiled code."""
    if rows.shape[1] <= BLOCK:
        return _sum_block(rows, e, 0, rows.shape[1])
    return _sum_halves(rows, e)
