"""Forward and backward pass of the state-space layer, compiled: matrix products and recurrence block by block.

Letters in this file: T time steps, E sequences, R = T · E rows in the order of time, I inputs, S = 2 N state parts (N
real, then N imaginary), D features, J = S + I columns of states and inputs side by side.

A block of rows, several steps of all sequences or one step of some, goes through the drive, the recurrence and the
readout while it is in the cache; the recurrence runs along the states of a row, which fills the vector unit whatever
the episodes do. The two sigmoids stay with torch, which has vector instructions for them.
`agents.learning.ssm.layer_loop` says the same in plain PyTorch, for the tests.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.learning.compiled import compiled, compiled_and_kept
from agents.learning.tiles import multiply, scratch_size

Floats = NDArray[Any]
"""float32 or float64; all arrays of a call alike."""

BLOCK_ROWS: Final = 256


class Matrices(NamedTuple):
    """What the layer multiplies with; contiguous.

    Attributes:
        decay: real, then imaginary parts of λ, (S,).
        drive: (I, S).
        output: twice [output_w; skip_w], (J, D): tanh(y) is taken as 2 sigmoid(2y) − 1.
        output_b: twice the bias, (D,).
        gate: (S, D).
        gate_b: (D,).
    """

    decay: Floats
    drive: Floats
    output: Floats
    output_b: Floats
    gate: Floats
    gate_b: Floats


class Gradients(NamedTuple):
    """Where `backward` adds up: gradients at the arrays of `Matrices`, and at the inputs (R, I), or (0, I) for none."""

    decay: Floats
    drive: Floats
    output: Floats
    output_b: Floats
    gate: Floats
    gate_b: Floats
    inputs: Floats


@compiled_and_kept
def forward(
    inputs: Floats, keep: NDArray[np.bool_], state: Floats, m: Matrices, joint: Floats, before: Floats, scratch: Floats
) -> None:
    """Write states and inputs (R, J) to ``joint`` and what the sigmoids are taken of (2, R, D) to ``before``.

    Args:
        inputs: (R, I).
        keep: (T, E), false where an episode starts.
        state: carried in, (E, S).
        scratch: (`workspace`,).
    """
    num_steps, num_sequences = keep.shape
    split = state.shape[1]
    zeros = np.zeros_like(m.decay)
    carry = state.copy()
    size, many = max(1, BLOCK_ROWS // num_sequences), min(BLOCK_ROWS, num_sequences)
    for start in range(0, num_steps, size):
        end = min(num_steps, start + size)
        for first in range(0, num_sequences, many):
            last = min(num_sequences, first + many)
            rows = slice(start * num_sequences + first, (end - 1) * num_sequences + last)
            block = joint[rows]
            block[:, split:] = inputs[rows]
            multiply(inputs[rows], m.drive, zeros, block[:, :split], scratch)
            _advance(keep[start:end, first:last], m.decay, block, carry[first:last])
            multiply(block, m.output, m.output_b, before[0, rows], scratch)
            multiply(block[:, :split], m.gate, m.gate_b, before[1, rows], scratch)


@compiled
def _advance(keep: NDArray[np.bool_], decay: Floats, rows: Floats, carry: Floats) -> None:
    """Turn driven inputs into states, x[t] = keep[t] λ x[t−1] + u[t], and leave the last ones in ``carry`` (E, S)."""
    num_steps, num_sequences = keep.shape
    half = len(decay) // 2
    for t in range(num_steps):
        for e in range(num_sequences):
            row, last = rows[t * num_sequences + e], carry[e]
            if keep[t, e]:
                for n in range(half):
                    real = row[n] + decay[n] * last[n] - decay[half + n] * last[half + n]
                    imaginary = row[half + n] + decay[n] * last[half + n] + decay[half + n] * last[n]
                    row[n] = last[n] = real
                    row[half + n] = last[half + n] = imaginary
            else:
                for s in range(2 * half):
                    last[s] = row[s]


@compiled_and_kept
def backward(
    upper: Floats,
    keep: NDArray[np.bool_],
    state: Floats,
    m: Matrices,
    joint: Floats,
    sigmoids: Floats,
    gradients: Gradients,
    scratch: Floats,
) -> None:
    """Add the gradients that belong to ``upper``, that of the features (R, D).

    Args:
        keep: (T, E), false where an episode starts.
        state: carried in, (E, S).
        joint: from `forward`; ``sigmoids``: (2, R, D) of its ``before``.
        scratch: (`workspace`,).
    """
    num_steps, num_sequences = keep.shape
    split, width = m.gate.shape
    size, many = max(1, BLOCK_ROWS // num_sequences), min(BLOCK_ROWS, num_sequences)
    to_states = np.concatenate((m.output[:split].T, m.gate.T))
    to_inputs = np.concatenate((m.drive.T, m.output[split:].T))
    zeros = np.zeros(max(split, width, m.drive.shape[0]), upper.dtype)
    work = np.empty((size * many, split + 2 * width), upper.dtype)
    part_output, part_gate, part_drive = np.empty_like(m.output), np.empty_like(m.gate), np.empty_like(m.drive)
    carry = np.zeros_like(state)
    following = np.zeros(num_sequences, np.bool_)
    for start in range((num_steps - 1) // size * size, -1, -size):
        end = min(num_steps, start + size)
        for first in range(0, num_sequences, many):
            last = min(num_sequences, first + many)
            rows = slice(start * num_sequences + first, (end - 1) * num_sequences + last)
            block, now = joint[rows], work[: rows.stop - rows.start]
            inner = now[:, split:]
            _through_gates(
                upper[rows], sigmoids[0, rows], sigmoids[1, rows], inner, gradients.output_b, gradients.gate_b
            )
            multiply(inner, to_states, zeros[:split], now[:, :split], scratch)
            before = (start - 1) * num_sequences
            previous = state[first:last] if start == 0 else joint[before + first : before + last, :split]
            kept, after = keep[start:end, first:last], following[first:last]
            _retreat(kept, after, m.decay, block, previous, now, carry[first:last], gradients.decay)
            after[:] = kept[0]
            multiply(block.T, inner[:, :width], zeros[:width], part_output, scratch)
            multiply(block[:, :split].T, inner[:, width:], zeros[:width], part_gate, scratch)
            multiply(block[:, split:].T, now[:, :split], zeros[:split], part_drive, scratch)
            _add(part_output, gradients.output)
            _add(part_gate, gradients.gate)
            _add(part_drive, gradients.drive)
            if len(gradients.inputs):
                inputs = zeros[: m.drive.shape[0]]
                multiply(now[:, : split + width], to_inputs, inputs, gradients.inputs[rows], scratch)


@compiled
def _through_gates(
    upper: Floats, output: Floats, gate: Floats, inner: Floats, output_b: Floats, gate_b: Floats
) -> None:
    """Write gradients before the sigmoids, (rows, 2 D), and add their sums: features are gate · (2 output − 1)."""
    width = upper.shape[1]
    one, two = upper.dtype.type(1), upper.dtype.type(2)
    for r in range(upper.shape[0]):
        g, o, s, row = upper[r], output[r], gate[r], inner[r]
        for d in range(width):
            passed = g[d] * s[d]
            row[d] = two * passed * o[d] * (one - o[d])
            row[width + d] = passed * (two * o[d] - one) * (one - s[d])
        for d in range(width):
            output_b[d] += row[d]
            gate_b[d] += row[width + d]


@compiled
def _retreat(
    keep: NDArray[np.bool_],
    following: NDArray[np.bool_],
    decay: Floats,
    states: Floats,
    previous: Floats,
    adjoint: Floats,
    carry: Floats,
    d_decay: Floats,
) -> None:
    """Turn direct gradients of the states into full ones, g[t] += keep[t+1] λ* g[t+1], and add Σ keep[t] g[t] x*[t−1].

    Args:
        following: (E,), ``keep`` of the step after the last one.
        previous: (E, S), states before the first step.
        carry: (E, S), g of the step after the last one; becomes that of the first.
    """
    num_steps, num_sequences = keep.shape
    half = len(decay) // 2
    for t in range(num_steps - 1, -1, -1):
        for e in range(num_sequences):
            row, after = adjoint[t * num_sequences + e], carry[e]
            if keep[t + 1, e] if t + 1 < num_steps else following[e]:
                for n in range(half):
                    real = row[n] + decay[n] * after[n] + decay[half + n] * after[half + n]
                    imaginary = row[half + n] + decay[n] * after[half + n] - decay[half + n] * after[n]
                    row[n] = after[n] = real
                    row[half + n] = after[half + n] = imaginary
            else:
                for s in range(2 * half):
                    after[s] = row[s]
            if keep[t, e]:
                x = states[(t - 1) * num_sequences + e] if t else previous[e]
                for n in range(half):
                    d_decay[n] += after[n] * x[n] + after[half + n] * x[half + n]
                    d_decay[half + n] += after[half + n] * x[n] - after[n] * x[half + n]


@compiled
def _add(part: Floats, total: Floats) -> None:
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] += part[i, j]


def workspace(inputs: int, states: int, features: int) -> int:
    """Return how many elements of scratch `forward` and `backward` need for these sizes."""
    rows = BLOCK_ROWS
    joint = 2 * states + inputs
    products = (
        (rows, inputs, 2 * states),
        (rows, joint, features),
        (rows, 2 * features, 2 * states),
        (rows, 2 * states + features, inputs),
        (joint, rows, features),
        (inputs, rows, 2 * states),
    )
    return max(scratch_size(*product) for product in products)
