"""NumPy arrays as frames: what may travel, and how large it may claim to be. Pure; used by `swarm.codec`.

In a body an array is ``[dtype, shape, bytes]``, or ``[dtype, shape, index]`` where its bytes are a frame of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swarm.errors import CodecError

Frame: TypeAlias = bytes | memoryview

DTYPES: Final[Mapping[str, np.dtype[np.generic]]] = {
    name: np.dtype(name) for name in ("bool", "int32", "int64", "uint64", "float32", "float64")
}
MAX_ARRAYS: Final = 1024
MAX_DIMENSIONS: Final = 8
MAX_NAME: Final = 256
OWN_FRAME_BYTES: Final = 4096
"""Arrays of so many bytes travel as a frame of their own, without a copy."""


def pack_arrays(arrays: object, path: str, frames: list[Frame]) -> dict[str, list[object]]:
    """Return descriptions of ``arrays`` by name; large ones are appended to ``frames`` as views of their memory.

    Raises:
        CodecError: not a mapping of C-contiguous arrays of an allowed dtype.
    """
    if not isinstance(arrays, Mapping):
        raise CodecError("bad-type", f"{path} is {type(arrays).__name__}, expected a mapping of arrays")
    if len(arrays) > MAX_ARRAYS:
        raise CodecError("too-large", f"{path} has {len(arrays)} arrays, at most {MAX_ARRAYS} are allowed")
    packed: dict[str, list[object]] = {}
    for name, array in arrays.items():
        _check_name(name, path)
        if not isinstance(array, np.ndarray):
            raise CodecError("bad-type", f"{path}.{name} is {type(array).__name__}, expected a NumPy array")
        if DTYPES.get(array.dtype.name) != array.dtype:
            raise CodecError(
                "bad-dtype", f"{path}.{name} has dtype {array.dtype.str!r}, expected one of {list(DTYPES)}"
            )
        if not array.flags.c_contiguous or array.ndim > MAX_DIMENSIONS:
            raise CodecError(
                "bad-shape", f"{path}.{name} must be C-contiguous with at most {MAX_DIMENSIONS} dimensions"
            )
        packed[name] = [array.dtype.name, list(array.shape), _place(array, frames)]
    return packed


def _place(array: NDArray[np.generic], frames: list[Frame]) -> bytes | int:
    if array.nbytes < OWN_FRAME_BYTES:
        return array.tobytes()
    frames.append(array.reshape(-1).view(np.uint8).data.toreadonly())
    return len(frames) - 1


def unpack_arrays(
    described: object, path: str, frames: Sequence[Frame], taken: set[int]
) -> dict[str, NDArray[np.generic]]:
    """Return read-only arrays over ``frames``; ``taken`` collects the indices of the frames that were used.

    Sizes are compared before anything is made: a description can claim nothing that did not arrive.
    """
    if not isinstance(described, dict):
        raise CodecError("bad-type", f"{path} is {type(described).__name__}, expected a mapping of arrays")
    if len(described) > MAX_ARRAYS:
        raise CodecError("too-large", f"{path} has {len(described)} arrays, at most {MAX_ARRAYS} are allowed")
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, description in described.items():
        _check_name(name, path)
        where = f"{path}.{name}"
        if not isinstance(description, list) or len(description) != 3:
            raise CodecError("bad-array", f"{where} is not [dtype, shape, bytes or frame index]")
        dtype_name, shape, place = description
        dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
        if dtype is None:
            raise CodecError("bad-dtype", f"{where} has dtype {str(dtype_name)[:40]!r}, expected one of {list(DTYPES)}")
        buffer = _buffer(place, where, frames, taken)
        arrays[name] = _array(buffer, dtype, _checked_shape(shape, where), where)
    return arrays


def _check_name(name: object, path: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise CodecError("bad-key", f"{path} has a bad array name {str(name)[:40]!r}")


def _buffer(place: object, where: str, frames: Sequence[Frame], taken: set[int]) -> Frame:
    if isinstance(place, bytes):
        return place
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(frames) or place in taken:
        raise CodecError("bad-array", f"{where} names frame {str(place)[:40]}, which is not there or already used")
    taken.add(place)
    return frames[place]


def _checked_shape(shape: object, where: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise CodecError("bad-shape", f"{where} must have a list of at most {MAX_DIMENSIONS} sizes as its shape")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**48:
            raise CodecError("bad-shape", f"{where} has a size {str(size)[:40]} in its shape")
    return tuple(shape)


def _array(buffer: Frame, dtype: np.dtype[np.generic], shape: tuple[int, ...], where: str) -> NDArray[np.generic]:
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != len(buffer):
        raise CodecError("bad-length", f"{where} claims {claimed} bytes by its shape, {len(buffer)} arrived")
    if dtype == np.bool_ and np.frombuffer(buffer, np.uint8).max(initial=0) > 1:
        raise CodecError("bad-value", f"{where} holds bytes that are neither true nor false")
    array = np.frombuffer(buffer, dtype).reshape(shape)
    array.flags.writeable = False
    return array
