"""Combining the gradients that all members published: guards first, then one fixed order.

Letters: G gradients of one sender, K gradients of the shared encoder after combining, E parameters of the encoder,
H parameters of one head, P = E + H.

Guards, in this order: shape (and dtype), finite, norm cap per sender, staleness. What a guard refuses is left out and
counted, never replaced by zeros. The encoder's part of what is left is combined over the members; each head's part is
its member's own. Where a rule makes something that is not finite, all that it was made of is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.config import WorldConfig
from agents.learning.normalizer import Float32Array
from agents.learning.robust import RULES
from swarm.messages import Arrays, Gradient

KINDS = ("prediction", "meta")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aggregate:
    """What came of the members' gradients.

    Attributes:
        arrays: ``<kind>/shared`` (K, E) float32, to be applied in turn, and ``<kind>/head-<i>`` (G, H) of the i-th
            sender, for each kind that anybody sent; ``refused`` (N,) int64, how many arrays of each
            sender were refused.
        num_samples: samples behind all accepted gradients.
        skipped: ``owner:kind:reason`` of what a guard refused.
    """

    arrays: Arrays
    num_samples: int
    skipped: tuple[str, ...]


def refusal(gradient: object, parameters: int) -> str | None:
    """Return why a gradient (G, P) is not used: ``dtype``, ``shape`` or ``not-finite``; ``None``: it may be."""
    if not isinstance(gradient, np.ndarray) or gradient.dtype != np.float32:
        return "dtype"
    if gradient.ndim != 2 or gradient.shape[1] != parameters or len(gradient) == 0:
        return "shape"
    return None if np.isfinite(gradient).all() else "not-finite"


def cap_norm(gradient: Float32Array, max_norm: float) -> Float32Array:
    """Scale each row (P,) whose Euclidean norm exceeds ``max_norm`` down to it."""
    norms = np.sqrt(np.square(gradient, dtype=np.float64).sum(axis=1, keepdims=True))
    capped: Float32Array = (gradient * np.minimum(1.0, max_norm / np.maximum(norms, 1e-12))).astype(np.float32)
    return capped


def aggregate(
    gradients: Sequence[Gradient], config: WorldConfig, *, version: int, shared: int, parameters: int
) -> Aggregate:
    """Guard and combine the members' gradients in the order given.

    Args:
        gradients: one message of each member of a group, in the order of their heads.
        version: round in which they are used; a gradient of another one is stale.
        shared: E.
        parameters: P.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    skipped: list[str] = []
    refused = np.zeros(len(gradients), np.int64)
    samples: dict[str, int] = {}
    for kind in KINDS:
        accepted: dict[int, Float32Array] = {}
        for index, message in enumerate(gradients):
            if kind not in message.arrays:
                continue
            found = _guarded(message, message.arrays[kind], config.max_gradient_norm, version, parameters)
            if isinstance(found, str):
                skipped.append(f"{message.owner}:{kind}:{found}")
                refused[index] += 1
                continue
            accepted[index] = found
        if not accepted:
            continue
        combined = _combine([(gradients[i].num_samples, found[:, :shared]) for i, found in accepted.items()], config)
        if not np.isfinite(combined).all():
            skipped.extend(f"{gradients[index].owner}:{kind}:combined" for index in accepted)
            refused[list(accepted)] += 1
            continue
        arrays[f"{kind}/shared"] = combined
        for index, found in accepted.items():
            arrays[f"{kind}/head-{index}"] = np.ascontiguousarray(found[:, shared:])
            samples[gradients[index].owner] = gradients[index].num_samples
    return Aggregate(arrays={**arrays, "refused": refused}, num_samples=sum(samples.values()), skipped=tuple(skipped))


def _guarded(message: Gradient, gradient: object, max_norm: float, version: int, parameters: int) -> Float32Array | str:
    """Return the gradient as it may be used, or why it may not."""
    reason = refusal(gradient, parameters)
    if reason is not None:
        return reason
    capped = cap_norm(np.asarray(gradient, np.float32), max_norm)
    return capped if message.version == version else "stale"


def _combine(accepted: Sequence[tuple[int, Float32Array]], config: WorldConfig) -> Float32Array:
    """Return the steps of the encoder: the g-th gradients of all senders as one, or each gradient a step of its own."""
    rows: list[Float32Array] = []
    for g in range(max(len(array) for _, array in accepted)):
        present = [(weight, array[g]) for weight, array in accepted if g < len(array)]
        if config.applied == "in_turn":
            rows.extend(row for _, row in present)
            continue
        weights = np.array([max(1, weight) for weight, _ in present], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever calls looks at what came of it
            combined = RULES[config.aggregation](np.stack([row for _, row in present]).astype(np.float64), weights)
            rows.append(combined.astype(np.float32))
    return np.stack(rows)
