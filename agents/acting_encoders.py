"""One step of each encoder in NumPy, for members side by side. Imports no torch.

Letters in this file: M members (or blocks of one member), E environments, I inputs, S numbers of an encoder's state,
D features, H hidden units.

The same layers as in `agents.learning.ssm`, `mlp_encoder` and `lstm_encoder`. Matrices are prepared once: those that
act on the same numbers are joined, and a sigmoid is taken as (1 + tanh(x / 2)) / 2, so that a step is few operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Weights = Mapping[str, Float32Array]
"""Arrays of M members by name, (M, …)."""


class ActingEncoder(Protocol):
    """A step of M encoders; ``state_size`` is S."""

    state_size: int

    def step(
        self, inputs: Float32Array, keep: NDArray[np.bool_], state: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """Return features (M, E, D) and next states (M, E, S).

        Args:
            inputs: (M, E, I).
            keep: (E, 1) or, of each block, (M, E, 1); false where an episode starts.
            state: (E, S), the same for all members, or (M, E, S).
        """
        ...


class _Readout:
    """tanh(y) · sigmoid(g) of [state, inputs]: both maps in one product; ``reads`` rows of state."""

    def __init__(self, w: Weights) -> None:
        output_w, skip_w, gate_w = w["output_w"], w["skip_w"], w["gate_w"]
        self.reads = output_w.shape[1]
        half = np.float32(0.5)
        upper = np.concatenate([output_w, half * gate_w], axis=2)
        lower = np.concatenate([skip_w, np.zeros_like(skip_w)], axis=2)
        self._w = np.concatenate([upper, lower], axis=1)
        self._b = np.concatenate([w["output_b"], half * w["gate_b"]], axis=1)[:, None]
        self._width = output_w.shape[2]

    def __call__(self, joint: Float32Array) -> Float32Array:
        """Return features (M, E, D) of [state, inputs] (M, E, S + I)."""
        both = joint @ self._w
        both += self._b
        np.tanh(both, out=both)
        gate = both[..., self._width :]
        gate += np.float32(1)
        gate *= np.float32(0.5)
        features: Float32Array = both[..., : self._width] * gate
        return features


class StateSpaceStep:
    """`agents.learning.ssm`."""

    def __init__(self, w: Weights) -> None:
        radius = np.exp(-np.exp(w["nu"]))
        angle = np.exp(w["theta"])
        real, imaginary = radius * np.cos(angle), radius * np.sin(angle)
        gamma = np.sqrt(1 - np.square(radius))
        self.state_size = 2 * radius.shape[1]
        self._own = np.concatenate([real, real], axis=1)[:, None]
        self._other = np.concatenate([-imaginary, imaginary], axis=1)[:, None]
        self._drive = w["input_w"] * np.concatenate([gamma, gamma], axis=1)[:, None]
        self._readout = _Readout(w)

    def step(
        self, inputs: Float32Array, keep: NDArray[np.bool_], state: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """See `ActingEncoder`."""
        size = self.state_size
        kept = np.where(keep, state, np.float32(0))
        swapped = np.concatenate([kept[..., size // 2 :], kept[..., : size // 2]], axis=-1)
        joint = np.empty((*inputs.shape[:2], size + inputs.shape[2]), np.float32)
        joint[..., size:] = inputs
        states = joint[..., :size]
        np.matmul(inputs, self._drive, out=states)
        states += self._own * kept
        states += self._other * swapped
        return self._readout(joint), states


class MemorylessStep:
    """`agents.learning.mlp_encoder`."""

    state_size = 0

    def __init__(self, w: Weights) -> None:
        self._w, self._b = w["hidden_w"], w["hidden_b"][:, None]
        self._readout = _Readout(w)

    def step(
        self, inputs: Float32Array, keep: NDArray[np.bool_], state: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """See `ActingEncoder`."""
        x = inputs @ self._w + self._b
        hidden = x * (np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x))
        joint = np.concatenate([hidden, inputs], axis=2)
        return self._readout(joint), np.zeros((*inputs.shape[:2], 0), np.float32)


class LstmStep:
    """`agents.learning.lstm_encoder`."""

    def __init__(self, w: Weights) -> None:
        self._hidden = w["output_w"].shape[1]
        self.state_size = 2 * self._hidden
        self._w, self._b = w["recurrent_w"], w["recurrent_b"][:, None]
        self._output_w, self._output_b = w["output_w"], w["output_b"][:, None]

    def step(
        self, inputs: Float32Array, keep: NDArray[np.bool_], state: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """See `ActingEncoder`."""
        hidden, half = self._hidden, np.float32(0.5)
        kept = np.where(keep, state, np.float32(0))
        joint = np.empty((*inputs.shape[:2], inputs.shape[2] + hidden), np.float32)
        joint[..., : inputs.shape[2]] = inputs
        joint[..., inputs.shape[2] :] = kept[..., :hidden]
        gates = joint @ self._w
        gates += self._b
        fresh = np.tanh(gates[..., 2 * hidden : 3 * hidden])
        squashed = half + half * np.tanh(half * gates)
        states = np.empty((*inputs.shape[:2], 2 * hidden), np.float32)
        cell = squashed[..., hidden : 2 * hidden] * kept[..., hidden:] + squashed[..., :hidden] * fresh
        states[..., hidden:] = cell
        states[..., :hidden] = squashed[..., 3 * hidden :] * np.tanh(cell)
        return np.tanh(states[..., :hidden] @ self._output_w + self._output_b), states


_READOUT: Final = ("output_w", "skip_w", "output_b", "gate_w", "gate_b")
_KINDS: Final = (
    (LstmStep, ("recurrent_w", "recurrent_b", "output_w", "output_b")),
    (MemorylessStep, ("hidden_w", "hidden_b", *_READOUT)),
    (StateSpaceStep, ("nu", "theta", "input_w", *_READOUT)),
)


def _kind(names: Mapping[str, object]) -> tuple[type[LstmStep | MemorylessStep | StateSpaceStep], tuple[str, ...]]:
    """Return the kind whose own array is among ``names``; the state-space layer where none is."""
    return next((kind for kind in _KINDS if kind[1][0] in names), _KINDS[-1])


def required_arrays(names: Mapping[str, object]) -> tuple[str, ...]:
    """Return the arrays that the encoder with the given arrays must have."""
    return _kind(names)[1]


def acting_encoder(w: Weights) -> ActingEncoder:
    """Return the step of the encoders with these arrays."""
    return _kind(w)[0](w)


def expected_rows(w: Mapping[str, Float32Array], inputs: int) -> dict[str, int]:
    """Return the number of rows that the arrays of one encoder with ``inputs`` inputs must have."""
    own = required_arrays(w)
    if own[0] == "recurrent_w":
        hidden = len(w["recurrent_b"]) // 4
        return {"recurrent_w": inputs + hidden, "output_w": hidden}
    hidden = 2 * len(w["nu"]) if own[0] == "nu" else len(w["hidden_b"])
    first = "input_w" if own[0] == "nu" else "hidden_w"
    return {first: inputs, "skip_w": inputs, "output_w": hidden, "gate_w": hidden}
