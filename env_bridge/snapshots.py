"""Snapshots of several vector environments put together, as if they were one.

Letters: E environments, D age of an observation in steps, O observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from env_bridge.generators import GENERATOR_WORDS

Snapshot = Mapping[str, NDArray[np.generic]]
SENSOR: Final = "sensor."
HISTORY: Final = "sensor.history"


def join_snapshots(parts: Sequence[Snapshot]) -> dict[str, NDArray[np.generic]]:
    """Return one snapshot of the environments of all parts, in order.

    Sensors remember as far back as the oldest observation that one of their environments sees, and nothing where none
    is late or noisy; what a part does not remember is filled with what means so.
    """
    remembering = [part for part in parts if HISTORY in part]
    if remembering:
        pattern = max(remembering, key=lambda part: part[HISTORY].shape[1])
        parts = [_with_sensors(part, pattern) for part in parts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_sensors(part: Snapshot, pattern: Snapshot) -> dict[str, NDArray[np.generic]]:
    """A snapshot whose sensor arrays (E, D, O) are as deep as those of ``pattern``."""
    whole = dict(part)
    depth, rest = pattern[HISTORY].shape[1], pattern[HISTORY].shape[2:]
    count = len(next(iter(part.values())))
    if HISTORY not in part:
        dtype = pattern[HISTORY].dtype
        whole["sensor.delay"] = np.full(count, -1, dtype=np.int64)  # nothing known
        whole["sensor.seen"] = np.zeros((count, *rest), dtype=dtype)
        whole["sensor.generator"] = np.zeros((count, GENERATOR_WORDS), dtype=np.uint64)
        whole[HISTORY] = np.zeros((count, depth, *rest), dtype=dtype)
        return whole
    missing = depth - part[HISTORY].shape[1]
    older = np.zeros((count, missing, *rest), dtype=part[HISTORY].dtype)
    whole[HISTORY] = np.concatenate([part[HISTORY], older], axis=1)
    return whole
