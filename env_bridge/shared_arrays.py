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

ALIGNMENT: Final = 64  # a cache line: workers never write to the same one


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
    """Arrays one after the other in the memory behind a file descriptor, zero at first.

    The memory has no name in any folder: it lives as long as a process holds the descriptor or a map of it.
    """

    def __init__(self, descriptor: int, specs: Iterable[ArraySpec], *, create: bool) -> None:
        self._specs = tuple(specs)
        size = max(sum(spec.num_bytes for spec in self._specs), ALIGNMENT)
        if create:
            os.ftruncate(descriptor, size)
        self._map = mmap.mmap(descriptor, size)
        self.arrays: dict[str, NDArray[Any]] = {}
        offset = 0
        for spec in self._specs:
            self.arrays[spec.name] = np.ndarray(spec.shape, spec.dtype, buffer=self._map, offset=offset)
            offset += spec.num_bytes


def open_memory() -> int:
    """Return a descriptor of new anonymous shared memory of size zero; the caller closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bridge", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix="bridge-") as file:
        return os.dup(file.fileno())
