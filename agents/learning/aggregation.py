"""Combining the gradients that all agents published: guards first, then one fixed order.

Letters: G gradients of one sender, K gradients in all, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.learning.normalizer import Float32Array
from swarm.messages import Arrays, Gradient

KINDS = ("prediction", "meta")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aggregate:
    """What came of the members' gradients.

    Attributes:
        arrays: ``prediction`` (K, P) and ``meta`` (K', P) where anybody sent them, float32, to be applied in turn.
        num_samples: samples behind all accepted gradients.
        skipped: ``owner:kind:reason`` of what a guard refused; it is left out, never replaced by zeros.
    """

    arrays: Arrays
    num_samples: int
    skipped: tuple[str, ...]


def refusal(gradient: object, parameters: int) -> str | None:
    """Return why a gradient (G, P) is not used: ``dtype``, ``shape`` or ``not-finite``; ``None``: it may be."""
    if not isinstance(gradient, np.ndarray) or gradient.dtype != np.float32:
        return "dtype"
    if gradient.ndim != 2 or gradient.shape[1] != parameters:
        return "shape"
    return None if np.isfinite(gradient).all() else "not-finite"


def cap_norm(gradient: Float32Array, max_norm: float) -> Float32Array:
    """Scale each row (P,) whose Euclidean norm exceeds ``max_norm`` down to it."""
    norms = np.sqrt(np.square(gradient, dtype=np.float64).sum(axis=1, keepdims=True))
    capped: Float32Array = (gradient * np.minimum(1.0, max_norm / np.maximum(norms, 1e-12))).astype(np.float32)
    return capped


def aggregate(
    gradients: Sequence[Gradient], max_norm: float, *, parameters: int | None = None, average: bool = True
) -> Aggregate:
    """Guard and combine the members' gradients in the order given.

    Args:
        max_norm: cap on the norm of each gradient, per sender.
        parameters: P; ``None``: the width that most senders (the first of equals) use.
        average: true: the g-th gradients of all members become one, weighted by their number of samples; false: all
            are kept, the first of each member, then the second of each, to be applied in turn.
    """
    arrays: dict[str, Float32Array] = {}
    skipped: list[str] = []
    samples: dict[str, int] = {}
    for kind in KINDS:
        sent = [(message, message.arrays[kind]) for message in gradients if kind in message.arrays]
        width = parameters if parameters is not None else _common_width([array for _, array in sent])
        accepted: list[tuple[int, Float32Array]] = []
        for message, array in sent:
            reason = refusal(array, width)
            if reason is not None:
                skipped.append(f"{message.owner}:{kind}:{reason}")
                continue
            accepted.append((message.num_samples, cap_norm(np.asarray(array, np.float32), max_norm)))
            samples[message.owner] = message.num_samples
        if accepted:
            arrays[kind] = _combine(accepted, average)
    return Aggregate(arrays=arrays, num_samples=sum(samples.values()), skipped=tuple(skipped))


def _common_width(arrays: Sequence[object]) -> int:
    widths = [array.shape[-1] for array in arrays if isinstance(array, np.ndarray) and array.ndim == 2]
    return max(dict.fromkeys(widths), key=widths.count, default=0)


def _combine(accepted: Sequence[tuple[int, Float32Array]], average: bool) -> Float32Array:
    rounds = max(len(array) for _, array in accepted)
    rows: list[Float32Array] = []
    for g in range(rounds):
        present = [(max(1, weight), array[g]) for weight, array in accepted if g < len(array)]
        if average:
            total = sum(weight for weight, _ in present)
            combined = np.zeros(present[0][1].shape, np.float64)
            for weight, row in present:
                combined += row * (weight / total)
            rows.append(combined.astype(np.float32))
        else:
            rows.extend(row for _, row in present)
    return np.stack(rows)
