"""Encoders for acting, members side by side: matrices prepared once, then a compiled step. Imports no torch.

Letters in this file: N encoders, R rows, V visible part of an observation, D features, H hidden units.

The same layers as in `agents.learning.ssm`, `mlp_encoder` and `lstm_encoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.acting_kernel import (
    Lstm,
    Memoryless,
    Scaling,
    StateSpace,
    encode_lstm,
    encode_memoryless,
    encode_state_space,
)
from agents.learning.tiles import aligned_copy

Float32Array = NDArray[np.float32]
Weights = Mapping[str, Float32Array]
"""Arrays of N encoders by name, (N, …)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActingEncoder:
    """N encoders with the scales of what they see.

    Attributes:
        matrices: as ``step`` takes them.
        step: one of the ``encode_…`` of `agents.acting_kernel`.
        state_size: numbers of an encoder's state.
        widths: (V, D).
    """

    matrices: StateSpace | Memoryless | Lstm
    scaling: Scaling
    step: Callable[..., None]
    state_size: int
    widths: tuple[int, int]


def acting_encoder(w: Weights, scales: Weights) -> ActingEncoder:
    """Return the encoders with these arrays, and with ``mean``, ``factor`` and ``reward_factor`` of `Normalizer`."""
    mean = scales["mean"]
    none = np.zeros((*mean.shape, 0), np.float32)
    scaling = Scaling(
        mean=mean,
        factor=scales["factor"],
        reward_factor=scales["reward_factor"],
        projection=w.get("proj_w", none),
        projection_b=w.get("proj_b", none[:, 0]),
    )
    matrices, step, state_size = _prepared(w)
    num_visible = scaling.projection.shape[2] or mean.shape[1]
    return ActingEncoder(
        matrices=matrices,
        scaling=scaling._replace(**{name: aligned_copy(value) for name, value in scaling._asdict().items()}),
        step=step,
        state_size=state_size,
        widths=(num_visible, w["output_b"].shape[1]),
    )


def _prepared(w: Weights) -> tuple[StateSpace | Memoryless | Lstm, Callable[..., None], int]:
    """Return what a step multiplies with, the step, and the size of its state."""
    kind = required_arrays(w)
    if kind is _LSTM:
        return Lstm(*(aligned_copy(w[name]) for name in kind)), encode_lstm, 2 * w["output_w"].shape[1]
    output = aligned_copy(np.concatenate([w["output_w"], w["skip_w"]], axis=1))
    output_b, gate, gate_b = (aligned_copy(w[name]) for name in ("output_b", "gate_w", "gate_b"))
    if kind is _MEMORYLESS:
        hidden, hidden_b = aligned_copy(w["hidden_w"]), aligned_copy(w["hidden_b"])
        return Memoryless(hidden, hidden_b, output, output_b, gate, gate_b), encode_memoryless, 0
    radius, angle = np.exp(-np.exp(w["nu"])), np.exp(w["theta"])
    gamma = np.sqrt(1 - np.square(radius))
    decay = aligned_copy(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1))
    drive = aligned_copy(w["input_w"] * np.concatenate([gamma, gamma], axis=1)[:, None])
    return StateSpace(decay, drive, output, output_b, gate, gate_b), encode_state_space, decay.shape[1]


_READOUT: Final = ("output_w", "skip_w", "output_b", "gate_w", "gate_b")
_LSTM: Final = ("recurrent_w", "recurrent_b", "output_w", "output_b")
_MEMORYLESS: Final = ("hidden_w", "hidden_b", *_READOUT)
_STATE_SPACE: Final = ("nu", "theta", "input_w", *_READOUT)


def required_arrays(names: Mapping[str, object]) -> tuple[str, ...]:
    """Return the arrays that the encoder with the given arrays must have."""
    return next((arrays for arrays in (_LSTM, _MEMORYLESS) if arrays[0] in names), _STATE_SPACE)


def expected_shapes(w: Mapping[str, Float32Array], inputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the arrays of one encoder with ``inputs`` inputs must have."""
    own, features = required_arrays(w), w["output_b"].size
    if own is _LSTM:
        hidden = w["recurrent_b"].size // 4
        recurrent = {"recurrent_w": (inputs + hidden, 4 * hidden), "recurrent_b": (4 * hidden,)}
        return {**recurrent, "output_w": (hidden, features), "output_b": (features,)}
    hidden = w["hidden_b"].size if own is _MEMORYLESS else 2 * w["nu"].size
    first: dict[str, tuple[int, ...]] = {"hidden_w": (inputs, hidden), "hidden_b": (hidden,)}
    if own is _STATE_SPACE:
        first = {"nu": (hidden // 2,), "theta": (hidden // 2,), "input_w": (inputs, hidden)}
    to_features = {"output_w": (hidden, features), "skip_w": (inputs, features), "gate_w": (hidden, features)}
    return {**first, **to_features, "output_b": (features,), "gate_b": (features,)}
