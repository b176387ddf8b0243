"""Random generators of environments as plain arrays, for snapshots."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

GENERATOR_WORDS: Final = 6
"""128-bit state, 128-bit increment, and numpy's buffered half word with its flag."""
_WORD: Final = 1 << 64


def pack_generator(generator: np.random.Generator) -> NDArray[np.uint64]:
    """The whole state of a generator over PCG64, (`GENERATOR_WORDS`,)."""
    state = generator.bit_generator.state
    inner = state["state"]
    words = (*divmod(inner["state"], _WORD), *divmod(inner["inc"], _WORD), state["has_uint32"], state["uinteger"])
    return np.array([int(word) for word in words], dtype=np.uint64)


def unpack_generator(words: NDArray[np.generic]) -> np.random.Generator:
    """The generator that `pack_generator` packed."""
    high, low, inc_high, inc_low, has_half, half = (int(word) for word in words)
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high * _WORD + low, "inc": inc_high * _WORD + inc_low},
        "has_uint32": has_half,
        "uinteger": half,
    }
    return generator
