"""Dynamics heads of the world model next to the physics: predicting and adapting in NumPy. No torch.

Letters in this file: E environments, N candidates, W transitions kept, X inputs of a head (features, visible part,
action), Y its outputs (O + 1), C context, H hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.acting_kernel import Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookahead:
    """How a member looks ahead; the options of the policy.

    Attributes:
        discount: of the successor's value.
        reward_scale: factor on rewards inside the critics.
        reach: how far a candidate is from the actor's action, along one axis.
        window: transitions that the head adapts to at each step; 0: it does not adapt.
        steps: gradient steps of the inner loop; the rates are those of the context, the first and the last layer.
    """

    discount: float
    reward_scale: float
    reach: float
    window: int = 0
    steps: int = 0
    context_rate: float = 0.0
    first_rate: float = 0.0
    last_rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heads:
    """Dynamics heads: one for all environments, or one each where an array has a leading axis E.

    Attributes:
        w1: (X, H), then (C, H) for the context ``c`` (E, 1, C).
    """

    w1: Float32Array
    wc: Float32Array
    b1: Float32Array
    w2: Float32Array
    b2: Float32Array
    c: Float32Array

    def predict(self, known_ENX: Float32Array) -> Float32Array:
        """Return normalised changes and rewards (E, N, Y)."""
        z = known_ENX @ self.w1 + self.b1 + self.c @ self.wc
        outputs: Float32Array = (z * _sigmoid(z)) @ self.w2 + self.b2
        return outputs


def adapt_heads(
    heads: Heads, known_EWX: Float32Array, target_EWY: Float32Array, counts_EW: Float32Array, mask_Y: Float32Array,
    how: Lookahead,
) -> Heads:  # fmt: skip
    """Return the heads after the inner loop on each environment's own transitions.

    Args:
        counts_EW: 1 for transitions that count, 0 for empty places.
        mask_Y: 1 for outputs that vary.

    Source: `agents.learning.inner_loop.adapt`, with which tests compare it.
    """
    rows = np.maximum(counts_EW.sum(axis=1), 1)[:, None, None]
    factor: Float32Array = (2 / (rows * max(float(mask_Y.sum()), 1)) * mask_Y * counts_EW[..., None]).astype(np.float32)
    w1, b1, w2, b2, c = heads.w1, heads.b1, heads.w2, heads.b2, heads.c
    for _ in range(how.steps):
        z = known_EWX @ w1 + b1 + c @ heads.wc
        s = _sigmoid(z)
        hidden = z * s
        last = (hidden @ w2 + b2 - target_EWY) * factor
        first = (last @ w2.swapaxes(-1, -2)) * (s + hidden * (1 - s))
        total = first.sum(axis=1, keepdims=True)
        if how.last_rate:
            w2 = _moved(w2, how.last_rate, hidden.swapaxes(-1, -2) @ last)
            b2 = _moved(b2, how.last_rate, last.sum(axis=1, keepdims=True))
        if how.first_rate:
            w1 = _moved(w1, how.first_rate, known_EWX.swapaxes(-1, -2) @ first)
            b1 = _moved(b1, how.first_rate, total)
        c = _moved(c, how.context_rate, total @ heads.wc.T)
    return Heads(w1=w1, wc=heads.wc, b1=b1, w2=w2, b2=b2, c=c)


def _moved(value: Float32Array, rate: float, gradient: NDArray[np.floating]) -> Float32Array:
    return (value - np.float32(rate) * gradient).astype(np.float32, copy=False)


def _sigmoid(z: Float32Array) -> Float32Array:
    return (1 / (1 + np.exp(-np.clip(z, -60, 60)))).astype(np.float32, copy=False)
