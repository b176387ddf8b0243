"""The inner loop of stepping, compiled: actions in, MuJoCo's ``mj_step``, fields out, without the interpreter's lock.

Letters: E environments, A actions, F fields.

numba compiles the loop and calls MuJoCo's own C functions in the very library that its Python bindings loaded, on the
addresses of the bindings' models and data: the bits are those of ``mujoco.mj_step``. What is saved is the interpreter's
share of each environment's step (2 of 31 µs for HalfCheetah), and threads scale, because they hardly need the lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import llvmlite.binding
import mujoco
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from swarm.errors import SwarmError

Integers = NDArray[np.int64]
FIRST_WARNING: Final = int(mujoco.mjtWarning.mjWARN_BADQPOS)
LAST_WARNING: Final = int(mujoco.mjtWarning.mjWARN_BADQACC)
STATE: Final = int(mujoco.mjtState.mjSTATE_INTEGRATION)
WARNING_WORDS: Final = 2
"""A warning's statistics are two 32-bit words, (last information, number)."""


def _load_library() -> None:
    """Make MuJoCo's functions known by name. Raises ``SwarmError`` where the bindings came without their library."""
    folder = Path(mujoco.__file__).parent
    found = sorted(
        path for pattern in ("libmujoco*.so*", "libmujoco*.dylib", "mujoco.dll") for path in folder.glob(pattern)
    )
    if not found:
        raise SwarmError(f"no MuJoCo library beside the bindings in {folder}; reinstall the package mujoco")
    llvmlite.binding.load_library_permanently(str(found[0]))


_load_library()
_DOUBLES: Final[Any] = types.CPointer(types.float64)  # type: ignore[no-untyped-call]
_WORDS: Final[Any] = types.CPointer(types.int32)  # type: ignore[no-untyped-call]
_array: Final[Any] = numba.carray  # type: ignore[attr-defined]
_STEP: Final[Any] = types.ExternalFunction("mj_step", types.void(types.voidptr, types.voidptr))
_SET_STATE: Final[Any] = types.ExternalFunction(
    "mj_setState", types.void(types.voidptr, types.voidptr, types.voidptr, types.intc)
)
_GET_STATE: Final[Any] = types.ExternalFunction(
    "mj_getState", types.void(types.voidptr, types.voidptr, types.voidptr, types.intc)
)
_POST_CONSTRAINT: Final[Any] = types.ExternalFunction("mj_rnePostConstraint", types.void(types.voidptr, types.voidptr))


def _make_pointer(context: Any, address: Any) -> Any:  # noqa: ANN401 - numba's protocol
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


_pointer: Any = intrinsic(_make_pointer)


def _make_doubles(context: Any, address: Any) -> Any:  # noqa: ANN401
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(values[0], ir.DoubleType().as_pointer())

    return _DOUBLES(types.intp), generate


_doubles: Any = intrinsic(_make_doubles)


def _make_words(context: Any, address: Any) -> Any:  # noqa: ANN401
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(values[0], ir.IntType(32).as_pointer())

    return _WORDS(types.intp), generate


_words: Any = intrinsic(_make_words)


@numba.njit(cache=True, nogil=True)
def _gather(sources: Any, targets: Any, sizes: Any, e: int) -> None:  # noqa: ANN401 - arrays of addresses; see `Track`
    for f in range(len(sizes)):
        size = sizes[f]
        source = _array(_doubles(sources[f]), size)
        target = _array(_doubles(targets[f] + 8 * size * e), size)
        for k in range(size):
            target[k] = source[k]


@numba.njit(cache=True, nogil=True)
def _step(
    models: Any,  # noqa: ANN401
    data_address: int,
    control_address: int,
    warning_address: int,
    sources: Any,  # noqa: ANN401
    targets: Any,  # noqa: ANN401
    sizes: Any,  # noqa: ANN401
    states_address: int,
    states_size: int,
    diverged: Any,  # noqa: ANN401
    action: Any,  # noqa: ANN401
    indices: Any,  # noqa: ANN401
    frame_skip: int,
    post_constraint: bool,
) -> None:
    control = _array(_doubles(control_address), action.shape[1])
    warnings = _array(_words(warning_address), (LAST_WARNING - FIRST_WARNING + 1, WARNING_WORDS))
    data = _pointer(data_address)
    for i in range(len(indices)):
        e = indices[i]
        model, state = _pointer(models[e]), _pointer(states_address + 8 * states_size * e)
        _SET_STATE(model, data, state, STATE)
        for j in range(action.shape[1]):
            control[j] = action[e, j]
        for k in range(warnings.shape[0]):
            warnings[k, 0] = 0
        for _ in range(frame_skip):
            _STEP(model, data)
        if post_constraint:
            _POST_CONSTRAINT(model, data)
        _gather(sources, targets, sizes, e)
        _GET_STATE(model, data, state, STATE)
        diverged[e] = False
        for k in range(warnings.shape[0]):
            if warnings[k, 0] != 0:
                diverged[e] = True


class Track:
    """One ``mjData``, and what of E simulations goes through it in turn: states in, fields and states out.

    What MuJoCo derives from a state, it derives again at each step, so that the integration state (warm start included)
    is all that needs to be kept of each simulation; and the processor's caches hold one ``mjData`` instead of many.

    Args:
        models: (E,) addresses of ``mjModel``; may be rewritten where an environment gets another model.
        data: which `step` may use freely.
        views: by field, its contiguous array inside ``data``.
        fields: by the same names, the batched fields (E, …), contiguous float64.
        states: (E, S) integration states.
    """

    def __init__(
        self,
        models: Integers,
        data: mujoco.MjData,
        views: Mapping[str, NDArray[np.float64]],
        fields: Mapping[str, NDArray[np.float64]],
        states: NDArray[np.float64],
    ) -> None:
        for name, view in views.items():
            assert view.flags.c_contiguous, name
            assert fields[name].flags.c_contiguous, name
            assert fields[name].dtype == view.dtype == np.float64, name
            assert fields[name].shape[1:] == view.shape, name
        numbers = data.warning.number[FIRST_WARNING : LAST_WARNING + 1]
        assert numbers.dtype == np.int32, "the kernel reads 32-bit words"
        assert numbers.strides == (4 * WARNING_WORDS,), "the kernel reads every second word"
        self.data = data
        self.models = models
        self._kept = (views, fields, states)  # the addresses below are theirs
        self._places = (data._address, data.ctrl.ctypes.data, numbers.ctypes.data)
        self._sources = np.array([view.ctypes.data for view in views.values()], np.int64)
        self._targets = np.array([fields[name].ctypes.data for name in views], np.int64)
        self._sizes = np.array([view.size for view in views.values()], np.int64)
        self._states = (states.ctypes.data, states.shape[1])

    def gather(self, index: int) -> None:
        """Copy the fields of ``data`` as those of an environment."""
        _gather(self._sources, self._targets, self._sizes, index)

    def step(
        self,
        action: NDArray[np.float32],
        indices: Integers,
        diverged: NDArray[np.bool_],
        frame_skip: int,
        *,
        post_constraint: bool,
    ) -> None:
        """Step ``indices`` with their rows of ``action`` (E, A); write their states, fields and ``diverged`` (E,).

        Args:
            diverged: whether MuJoCo met a state that was not finite, and reset it.
            post_constraint: also compute the contact forces on bodies, as Gymnasium does where they are read.
        """
        _step(
            self.models,
            *self._places,
            self._sources,
            self._targets,
            self._sizes,
            *self._states,
            diverged,
            action,
            indices,
            frame_skip,
            post_constraint,
        )
