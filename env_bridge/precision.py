"""Between the physics' double precision and the policies' single precision: one compiled pass over a batch each.

Letters: E environments, O observation, A action.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from env_bridge.stepping import are_finite


@numba.njit(cache=True, nogil=True)
def _write_float32(source: Any, target: Any) -> bool:  # noqa: ANN401 - (E, O) float64, (E, O) float32
    finite = True
    for e in range(source.shape[0]):
        for o in range(source.shape[1]):
            value = np.float32(source[e, o])
            finite &= np.isfinite(value)
            target[e, o] = value
    return finite


def write_float32(source: NDArray[Any], target: NDArray[np.float32]) -> bool:
    """Write observations (E, O) in single precision; return whether all are finite there."""
    if source.dtype == np.float64 and source.flags.c_contiguous:
        return bool(_write_float32(source, target))
    target[...] = to_float32(source)
    return are_finite(target)


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Cast to single precision; what is too large becomes infinite, which the caller treats as diverged."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _scale_actions(action: Any, low: Any, high: Any) -> Any:  # noqa: ANN401 - (E, A) float32, (A,) float64 twice
    scaled = np.empty(action.shape, np.float32)
    for e in range(action.shape[0]):
        for a in range(action.shape[1]):
            scaled[e, a] = low[a] + (np.float64(action[e, a]) + 1.0) * 0.5 * (high[a] - low[a])
    return scaled


def scale_actions(
    action: NDArray[np.float32], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Map actions (E, A) from [-1, 1] to the limits (A,) of the environment, a new array."""
    scaled: NDArray[np.float32] = _scale_actions(np.ascontiguousarray(action), low, high)
    return scaled
