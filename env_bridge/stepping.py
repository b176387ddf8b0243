"""The inner loop of stepping, compiled: actions in, MuJoCo's ``mj_step``, fields out, without the interpreter's lock.

Letters: E environments, A actions, F fields.

numba compiles the loop and calls MuJoCo's own C functions in the very library that its Python bindings loaded, on the
addresses of the bindings' models and data: the bits are those of ``mujoco.mj_step``. What is saved is the interpreter's
share of each environment's step (2 of 31 µs for HalfCheetah), and threads scale, because they hardly need the lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_STEP: Final = types.ExternalFunction("mj_step", types.void(types.voidptr, types.voidptr))
_POST_CONSTRAINT: Final = types.ExternalFunction("mj_rnePostConstraint", types.void(types.voidptr, types.voidptr))


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
def _gather(sources: Any, targets: Any, sizes: Any, warnings: Any, diverged: Any, e: int) -> None:  # noqa: ANN401
    for f in range(len(sizes)):
        size = sizes[f]
        source = _array(_doubles(sources[e, f]), size)
        target = _array(_doubles(targets[f] + 8 * size * e), size)
        for k in range(size):
            target[k] = source[k]
    numbers = _array(_words(warnings[e]), (LAST_WARNING - FIRST_WARNING + 1, WARNING_WORDS))
    diverged[e] = False
    for k in range(numbers.shape[0]):
        if numbers[k, 0] != 0:
            diverged[e] = True


@numba.njit(cache=True, nogil=True)
def _step(
    models: Any,  # noqa: ANN401 - arrays of addresses; see `Track`
    datas: Any,  # noqa: ANN401
    controls: Any,  # noqa: ANN401
    sources: Any,  # noqa: ANN401
    targets: Any,  # noqa: ANN401
    sizes: Any,  # noqa: ANN401
    warnings: Any,  # noqa: ANN401
    diverged: Any,  # noqa: ANN401
    action: Any,  # noqa: ANN401
    indices: Any,  # noqa: ANN401
    frame_skip: int,
    post_constraint: bool,
) -> None:
    for i in range(len(indices)):
        e = indices[i]
        control = _array(_doubles(controls[e]), action.shape[1])
        for j in range(action.shape[1]):
            control[j] = action[e, j]
        model, data = _pointer(models[e]), _pointer(datas[e])
        for _ in range(frame_skip):
            _STEP(model, data)
        if post_constraint:
            _POST_CONSTRAINT(model, data)
        _gather(sources, targets, sizes, warnings, diverged, e)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Track:
    """Addresses of E simulations and of the batched fields into which they are copied. Keeps nothing alive.

    Attributes:
        models: (E,) of ``mjModel``; may be rewritten where an environment gets another model.
        datas: (E,) of ``mjData``.
        controls: (E,) of ``mjData.ctrl``.
        sources: (E, F) of the fields' arrays inside each ``mjData``.
        targets: (F,) of the batched fields, float64 and contiguous.
        sizes: (F,) doubles of one environment.
        warnings: (E,) of the counts of diverged states.
        diverged: (E,) whether MuJoCo met a state that was not finite since the last reset.
    """

    models: Integers
    datas: Integers
    controls: Integers
    sources: Integers
    targets: Integers
    sizes: Integers
    warnings: Integers
    diverged: NDArray[np.bool_]

    def gather(self, index: int) -> None:
        """Copy the fields of one environment."""
        _gather(self.sources, self.targets, self.sizes, self.warnings, self.diverged, index)

    def step(self, action: NDArray[np.float32], indices: Integers, frame_skip: int, *, post_constraint: bool) -> None:
        """Step ``indices`` with their rows of ``action`` (E, A) and copy their fields.

        Args:
            post_constraint: also compute the contact forces on bodies, as Gymnasium does where they are read.
        """
        _step(
            self.models,
            self.datas,
            self.controls,
            self.sources,
            self.targets,
            self.sizes,
            self.warnings,
            self.diverged,
            action,
            indices,
            frame_skip,
            post_constraint,
        )


def make_track(
    models: Sequence[mujoco.MjModel],
    datas: Sequence[mujoco.MjData],
    views: Mapping[str, Sequence[NDArray[np.float64]]],
    fields: Mapping[str, NDArray[np.float64]],
) -> Track:
    """Write down the addresses of simulations and fields, all of which the caller keeps alive and in place.

    Args:
        views: by field, per environment, the contiguous array inside its ``mjData``.
        fields: by the same names, (E, …) contiguous float64.
    """
    for name, field in fields.items():
        rows = views[name]
        assert field.flags.c_contiguous, name
        assert field.dtype == np.float64, name
        assert all(row.flags.c_contiguous and row.shape == field.shape[1:] for row in rows), name
    numbers = [data.warning.number[FIRST_WARNING : LAST_WARNING + 1] for data in datas]
    assert all(number.dtype == np.int32 and number.strides == (4 * WARNING_WORDS,) for number in numbers)
    return Track(
        models=np.array([model._address for model in models], np.int64),
        datas=np.array([data._address for data in datas], np.int64),
        controls=np.array([data.ctrl.ctypes.data for data in datas], np.int64),
        sources=np.array([[rows[e].ctypes.data for rows in views.values()] for e in range(len(datas))], np.int64),
        targets=np.array([fields[name].ctypes.data for name in views], np.int64),
        sizes=np.array([fields[name][0].size for name in views], np.int64),
        warnings=np.array([number.ctypes.data for number in numbers], np.int64),
        diverged=np.zeros(len(datas), np.bool_),
    )
