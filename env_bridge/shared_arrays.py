"""Named arrays in one memory map that a process shares with the children it starts."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from swarm.messages import Json

ALIGNMENT: Final = 64
"""A cache line: no two arrays lie in the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Name, dtype (as ``np.dtype.str``) and shape of one array."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the array, rounded up to whole cache lines."""
        size = int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT

    def to_json(self) -> list[Json]:
        """Plain data; `from_json` gives an equal object back."""
        return [self.name, self.dtype, list(self.shape)]

    @classmethod
    def from_json(cls, data: Any) -> Self:  # noqa: ANN401 - decoded data
        """Rebuild from `to_json`."""
        name, dtype, shape = data
        return cls(name=name, dtype=dtype, shape=tuple(shape))


class SharedArrays:
    """Arrays one after the other in the memory behind a file descriptor, zero where nobody wrote.

    Who creates them makes the memory large enough; it never shrinks, so that others may lie there, too. It has no name
    in any folder: it lives as long as a process holds the descriptor or a map of it.
    """

    def __init__(self, descriptor: int, specs: Iterable[ArraySpec], *, create: bool) -> None:
        self._layout: dict[str, tuple[tuple[int, ...], np.dtype[Any], int]] = {}
        size = 0
        for spec in specs:
            self._layout[spec.name] = (spec.shape, np.dtype(spec.dtype), size)
            size += spec.num_bytes
        size = max(size, ALIGNMENT)
        if create and os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._bytes = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
        self.arrays = self._arrays_in(self._bytes)

    def copy(self) -> dict[str, NDArray[Any]]:
        """Copies of all arrays, made in one piece."""
        return self._arrays_in(self._bytes.copy())

    def _arrays_in(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        buffer = memory.data
        return {name: np.ndarray(shape, dtype, buffer, offset) for name, (shape, dtype, offset) in self._layout.items()}


def open_memory() -> int:
    """Return a descriptor of new anonymous shared memory of size zero; the caller closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bridge", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix="bridge-") as file:
        return os.dup(file.fileno())
