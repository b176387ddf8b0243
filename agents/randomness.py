"""Random streams by name: what is drawn depends on the run's seed, the round and the contract, never on who draws."""

from __future__ import annotations

import hashlib

import numpy as np


def stream_key(seed: int, *labels: int | str) -> int:
    """Return a 62-bit key for the stream that ``labels`` name, e.g. ``stream_key(seed, round, "learn", member)``."""
    text = "/".join(str(label) for label in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def generator(seed: int, *labels: int | str) -> np.random.Generator:
    """Return a Philox generator on that stream."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, *labels)))
