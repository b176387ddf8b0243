"""Timing for benchmarks: candidates take turns, so that a noisy machine is noisy for all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, budget_s: float, min_repeats: int = 5
) -> dict[str, float]:
    """Return the median seconds of one call of each candidate, called in turn until ``budget_s`` is spent.

    Each is called once before anything is measured: caches, compilation and allocation do not count.

    Args:
        candidates: name → what is measured.
        budget_s: seconds for all of them together; at least ``min_repeats`` turns are made.
    """
    for call in candidates.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + budget_s
    turns = 0
    while turns < min_repeats or time.perf_counter() < end:
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
        turns += 1
    return {name: statistics.median(values) for name, values in samples.items()}
