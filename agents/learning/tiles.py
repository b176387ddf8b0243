"""Matrix products of the sizes that small networks have, inside compiled code, near the machine's peak.

A general BLAS spends as long on packing and dispatch as on such a product: here, float32, 128 × 112 times 112 × 104
takes 33 µs by torch's MKL, 32 by OpenBLAS, 28 by this (115 GFLOP/s, one thread). All threads, layouts of the team and
batch positions give the same bits: each element is one chain of multiply-adds over the inner index.

Source: Goto & van de Geijn 2008, doi:10.1145/1356052.1356053: a tile of the result stays in registers over the whole
inner index. Differs from it: no packing, since the operands fit the second-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from agents.learning.compiled import compiled, inlined

_FEATURES: Final = llvmlite.binding.get_host_cpu_features()
VECTOR_BYTES: Final = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
TILE_ROWS: Final = 8 if VECTOR_BYTES == 64 else 4
"""With two vectors a row, the tile's sums fill half of the machine's registers and hide the latency of its adders."""

Untyped = Any
"""What numba and llvmlite, which have no types, pass to a code generator: types, values, builders."""

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_CONTRACT = ("contract",)


def _make_tile(num_rows: int, num_vectors: int) -> Callable[..., None]:
    """Return ``out = bias + a @ b`` of one tile, for compiled code.

    Its arguments are a number of the elements' type, addresses and strides in bytes, and the inner length: of
    addresses there is one kind, of arrays one for each layout, and each kind would be compiled again.
    """

    def tile(
        context: Untyped,
        like: Untyped,
        a: Untyped,
        a_row: Untyped,
        a_step: Untyped,
        b: Untyped,
        b_step: Untyped,
        bias: Untyped,
        out: Untyped,
        out_row: Untyped,
        depth: Untyped,
    ) -> Untyped:
        return types.void(like, *[types.intp] * 9), _Tile(num_rows, num_vectors).generate

    return cast(Callable[..., None], intrinsic(tile))


class _Tile:
    """Code generator of one tile size."""

    def __init__(self, num_rows: int, num_vectors: int) -> None:
        self._rows, self._vectors = range(num_rows), range(num_vectors)

    def generate(self, context: Untyped, builder: Untyped, signature: Untyped, arguments: Untyped) -> Untyped:
        """Emit a loop over the inner index whose sums stay in registers."""
        self._builder = builder
        self._element = context.get_value_type(signature.args[0])
        self._size = context.get_abi_sizeof(self._element)
        self._vector = ir.VectorType(self._element, VECTOR_BYTES // self._size)
        _, a, a_row, a_step, b, b_step, bias, out, out_row, depth = arguments
        a, b, bias, out = (builder.inttoptr(address, _BYTES) for address in (a, b, bias, out))
        a_rows = [self._row(a, r, a_row) for r in self._rows]
        start = [self._load(bias, n) for n in self._vectors]
        sums = self._loop(a_rows, a_step, b, b_step, depth, start)
        for r in self._rows:
            for n in self._vectors:
                target = builder.gep(self._row(out, r, out_row), [_INT64(n * VECTOR_BYTES)])
                builder.store(sums[r][n], builder.bitcast(target, self._vector.as_pointer()), align=self._size)
        return context.get_dummy_value()

    def _row(self, pointer: Untyped, r: int, stride: Untyped) -> Untyped:
        return self._builder.gep(pointer, [self._builder.mul(_INT64(r), stride)])

    def _load(self, pointer: Untyped, n: int) -> Untyped:
        place = self._builder.gep(pointer, [_INT64(n * VECTOR_BYTES)])
        return self._builder.load(self._builder.bitcast(place, self._vector.as_pointer()), align=self._size)

    def _everywhere(self, pointer: Untyped) -> Untyped:
        """One element, in all lanes of a vector."""
        builder, undefined = self._builder, ir.Constant(self._vector, ir.Undefined)
        scalar = builder.load(builder.bitcast(pointer, self._element.as_pointer()), align=self._size)
        lanes = ir.Constant(ir.VectorType(_INT32, self._vector.count), [0] * self._vector.count)
        return builder.shuffle_vector(builder.insert_element(undefined, scalar, _INT32(0)), undefined, lanes)

    def _loop(
        self, a_rows: Untyped, a_step: Untyped, b: Untyped, b_step: Untyped, depth: Untyped, start: Untyped
    ) -> Untyped:
        """Emit the sums over the inner index; at least one pass is made."""
        builder, entry = self._builder, self._builder.block
        body, done = builder.append_basic_block("inner"), builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        index, a_offset, b_row = builder.phi(_INT64), builder.phi(_INT64), builder.phi(_BYTES)
        sums = [[builder.phi(self._vector) for _ in self._vectors] for _ in self._rows]
        b_now = [self._load(b_row, n) for n in self._vectors]
        after = []
        for r in self._rows:
            a_now = self._everywhere(builder.gep(a_rows[r], [a_offset]))
            products = [builder.fmul(a_now, b_now[n], flags=_CONTRACT) for n in self._vectors]
            after.append([builder.fadd(products[n], sums[r][n], flags=_CONTRACT) for n in self._vectors])
        following = builder.add(index, _INT64(1))
        steps = (
            (index, _INT64(0), following),
            (a_offset, _INT64(0), builder.add(a_offset, a_step)),
            (b_row, b, builder.gep(b_row, [b_step])),
            *((sums[r][n], start[n], after[r][n]) for r in self._rows for n in self._vectors),
        )
        for phi, first, then in steps:
            phi.add_incoming(first, entry)
            phi.add_incoming(then, body)
        builder.cbranch(builder.icmp_signed("<", following, depth), body, done)
        builder.position_at_end(done)
        return after


_wide = _make_tile(TILE_ROWS, 2)
_narrow = _make_tile(TILE_ROWS, 1)
_wide_row = _make_tile(1, 2)
_narrow_row = _make_tile(1, 1)


@inlined
def multiply(a: NDArray[Any], b: NDArray[Any], bias: NDArray[Any], out: NDArray[Any], scratch: NDArray[Any]) -> None:
    """Write ``a @ b + bias`` to ``out``, all of one type, inner index not empty. For compiled code.

    Args:
        a: (M, K), any strides.
        b: (K, N), any strides; rows that are not contiguous or too short for a vector are copied to scratch.
        bias: (N,), contiguous.
        out: (M, N), contiguous rows; shares no memory with the others.
        scratch: (S,), contiguous, S ≥ `scratch_size`.
    """
    _multiply(
        out.shape,
        (a.ctypes.data, a.strides[0], a.strides[1]),
        (b.ctypes.data, b.strides[0], b.strides[1]),
        bias.ctypes.data,
        (out.ctypes.data, out.strides[0]),
        scratch,
        a.shape[1],
    )


@compiled
def _multiply(
    shape: tuple[int, int],
    a: tuple[int, int, int],
    b: tuple[int, int, int],
    bias: int,
    out: tuple[int, int],
    scratch: NDArray[Any],
    depth: int,
) -> None:
    """Multiply what lies at given addresses, with given strides in bytes, after copying what needs it."""
    (rows, width), size, like = shape, scratch.itemsize, scratch.dtype.type(0)
    lanes = VECTOR_BYTES // size
    if width >= lanes and b[2] == size:
        _columns(like, shape, a, b, bias, out, depth, size)
        return
    padded = max(width, lanes)
    if padded > width:
        for n in range((depth + 1) * padded):
            scratch[n] = like
    for j in range(width):
        for k in range(depth):
            scratch[k * padded + j] = _peek(like, b[0] + k * b[1] + j * b[2])
        scratch[depth * padded + j] = _peek(like, bias + j * size)
    start, row = scratch.ctypes.data, padded * size
    end = (depth + 1) * padded
    to = out if padded == width else (start + end * size, row)
    _columns(like, (rows, padded), a, (start, row, size), start + depth * row, to, depth, size)
    if padded > width:
        for i in range(rows):
            for j in range(width):
                _poke(out[0] + i * out[1] + j * size, scratch[end + i * padded + j])


def _typed_peek(context: Untyped, like: Untyped, address: Untyped) -> Untyped:
    def generate(context: Untyped, builder: Untyped, signature: Untyped, arguments: Untyped) -> Untyped:
        element = context.get_value_type(signature.args[0])
        return builder.load(builder.inttoptr(arguments[1], element.as_pointer()))

    return like(like, types.intp), generate


def _typed_poke(context: Untyped, address: Untyped, value: Untyped) -> Untyped:
    def generate(context: Untyped, builder: Untyped, signature: Untyped, arguments: Untyped) -> Untyped:
        element = context.get_value_type(signature.args[1])
        builder.store(arguments[1], builder.inttoptr(arguments[0], element.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, value), generate


_peek = cast(Callable[..., float], intrinsic(_typed_peek))
"""The number of the type of ``like`` at an address."""

_poke = cast(Callable[..., None], intrinsic(_typed_poke))
"""Write a number to an address."""


def aligned(shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros whose first element lies at a multiple of 64 bytes, which NumPy's own lie at by chance.

    A vector of 64 bytes that crosses a cache line costs two accesses: an update takes 5 % longer on unaligned buffers.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that lies as `aligned` says."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def scratch_size(rows: int, depth: int, width: int) -> int:
    """Return how many elements of scratch a product of these sizes can need at most."""
    padded = max(width, VECTOR_BYTES)
    return (depth + 1 + (rows if padded > width else 0)) * padded


@compiled
def _columns(
    like: float,
    shape: tuple[int, int],
    a: tuple[int, int, int],
    b: tuple[int, int, int],
    bias: int,
    out: tuple[int, int],
    depth: int,
    size: int,
) -> None:
    """Go through the tiles, columns first; the last tiles overlap their neighbours instead of being cut."""
    rows, width = shape
    lanes = VECTOR_BYTES // size
    tall = rows >= TILE_ROWS
    step = TILE_ROWS if tall else 1
    j = 0
    while j < width:
        wide = width - j >= 2 * lanes
        at = (j if wide else min(j, width - lanes)) * size
        for first in range(0, rows, step):
            i = min(first, rows - step)
            a_at, b_at, bias_at, out_at = a[0] + i * a[1], b[0] + at, bias + at, out[0] + i * out[1] + at
            if tall and wide:
                _wide(like, a_at, a[1], a[2], b_at, b[1], bias_at, out_at, out[1], depth)
            elif tall:
                _narrow(like, a_at, a[1], a[2], b_at, b[1], bias_at, out_at, out[1], depth)
            elif wide:
                _wide_row(like, a_at, a[1], a[2], b_at, b[1], bias_at, out_at, out[1], depth)
            else:
                _narrow_row(like, a_at, a[1], a[2], b_at, b[1], bias_at, out_at, out[1], depth)
        j += 2 * lanes if wide else lanes
