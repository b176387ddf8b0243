"""Forward and backward pass of the state-space layer, compiled: matrix products and recurrence block by block.

Letters in this file: T time steps, E sequences, R = T · E rows in the order of time, I inputs, S = 2 N state parts (N
real, then N imaginary), D features, J = S + I columns of states and inputs side by side.

A block of rows, several steps of all sequences or one step of some, goes through the drive, the recurrence and the
readout while it is in the cache; the recurrence runs along the states of a row, which fills the vector unit whatever
the episodes do. The two sigmoids stay with torch, which has vector instructions for them.
`agents.learning.ssm.layer_loop` says the same in plain PyTorch, for the tests.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.learning.compiled import compiled, compiled_and_kept
from agents.learning.tiles import multiply, scratch_size

Floats = NDArray[Any]
"""float32 or float64; all arrays of a call alike."""

BLOCK_ROWS: Final = 256


class Weights(NamedTuple):
    """Parameters of the layer as `agents.learning.ssm.shapes` names and orders them, or their gradients; contiguous."""

    nu: Floats
    theta: Floats
    input_w: Floats
    output_w: Floats
    skip_w: Floats
    output_b: Floats
    gate_w: Floats
    gate_b: Floats


class Matrices(NamedTuple):
    """What the layer multiplies with, or the gradients there.

    Attributes:
        decay: real, then imaginary parts of λ, (S,).
        drive: γ ⊙ B, (I, S).
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


class Workspace(NamedTuple):
    """What `backward` computes with.

    Attributes:
        to_states: (2 D, S); ``to_inputs``: (S + D, I): matrices on the way back.
        rows: gradients at states, then before the two sigmoids, of a block, (rows, S + 2 D).
        part: gradients at the matrices from one block.
    """

    to_states: Floats
    to_inputs: Floats
    zeros: Floats
    rows: Floats
    part: Matrices
    scratch: Floats


@compiled
def _matrices(w: Weights) -> Matrices:
    """Return the matrices that belong to ``w``."""
    kind = w.nu.dtype.type
    states, (num_inputs, split), width = len(w.nu), w.input_w.shape, len(w.output_b)
    decay, drive = np.empty(split, w.nu.dtype), np.empty((num_inputs, split), w.nu.dtype)
    for n in range(states):
        radius, phase = math.exp(-math.exp(w.nu[n])), math.exp(w.theta[n])
        decay[n], decay[states + n] = radius * math.cos(phase), radius * math.sin(phase)
        gamma = math.sqrt(kind(1) - radius * radius)
        for i in range(num_inputs):
            drive[i, n] = gamma * w.input_w[i, n]
            drive[i, states + n] = gamma * w.input_w[i, states + n]
    output, output_b = np.empty((split + num_inputs, width), w.nu.dtype), np.empty(width, w.nu.dtype)
    for d in range(width):
        output_b[d] = w.output_b[d] + w.output_b[d]
    for s in range(split):
        for d in range(width):
            output[s, d] = w.output_w[s, d] + w.output_w[s, d]
    for i in range(num_inputs):
        for d in range(width):
            output[split + i, d] = w.skip_w[i, d] + w.skip_w[i, d]
    return Matrices(decay, drive, output, output_b, w.gate_w, w.gate_b)


@compiled
def _through_matrices(w: Weights, m: Matrices, found: Matrices, gradients: Weights) -> None:
    """Write the gradients at the parameters, all but those of the gate, that belong to ``found`` at the matrices."""
    states, (num_inputs, split), width = len(w.nu), w.input_w.shape, len(w.output_b)
    for n in range(states):
        rate = math.exp(w.nu[n])
        square = math.exp(-(rate + rate))
        gamma = math.sqrt(w.nu.dtype.type(1) - square)
        d_gamma = w.nu.dtype.type(0)
        for i in range(num_inputs):
            d_gamma += found.drive[i, n] * w.input_w[i, n] + found.drive[i, states + n] * w.input_w[i, states + n]
            gradients.input_w[i, n] = gamma * found.drive[i, n]
            gradients.input_w[i, states + n] = gamma * found.drive[i, states + n]
        real, imaginary, d_real, d_imaginary = m.decay[n], m.decay[states + n], found.decay[n], found.decay[states + n]
        gradients.nu[n] = rate * (d_gamma * square / gamma - d_real * real - d_imaginary * imaginary)
        gradients.theta[n] = math.exp(w.theta[n]) * (d_imaginary * real - d_real * imaginary)
    for d in range(width):
        gradients.output_b[d] = found.output_b[d] + found.output_b[d]
    for s in range(split):
        for d in range(width):
            gradients.output_w[s, d] = found.output[s, d] + found.output[s, d]
    for i in range(num_inputs):
        for d in range(width):
            gradients.skip_w[i, d] = found.output[split + i, d] + found.output[split + i, d]


@compiled_and_kept
def forward(
    w: Weights, inputs: Floats, keep: NDArray[np.bool_], state: Floats, joint: Floats, before: Floats, scratch: Floats
) -> None:
    """Write states and inputs (R, J) to ``joint`` and what the sigmoids are taken of (2, R, D) to ``before``.

    Args:
        inputs: (R, I).
        keep: (T, E), false where an episode starts.
        state: carried in, (E, S).
        scratch: (`scratch_elements`,).
    """
    m = _matrices(w)
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
    w: Weights,
    upper: Floats,
    keep: NDArray[np.bool_],
    state: Floats,
    joint: Floats,
    sigmoids: Floats,
    d_states: Floats,
    gradients: Weights,
    d_inputs: Floats,
    d_state: Floats,
    scratch: Floats,
) -> None:
    """Write the gradients that belong to ``upper``, that of the features (R, D), and to ``d_states``.

    Args:
        keep: (T, E), false where an episode starts.
        state: carried in, (E, S).
        joint: from `forward`; ``sigmoids``: (2, R, D) of its ``before``.
        d_states: (R, S) gradient of the states as what the caller goes on with, or (0, S) where nothing follows.
        d_inputs: (R, I) for the gradient at the inputs, or (0, I) where nobody wants it.
        d_state: (E, S) for the gradient at the state carried in, or (0, S) likewise.
        scratch: (`scratch_elements`,).
    """
    num_steps, num_sequences = keep.shape
    split, width = w.gate_w.shape
    size, many = max(1, BLOCK_ROWS // num_sequences), min(BLOCK_ROWS, num_sequences)
    m = _matrices(w)
    found, space = _start(m, gradients, size * many, scratch)
    carry, following = np.zeros_like(state), np.zeros(num_sequences, np.bool_)
    for start in range((num_steps - 1) // size * size, -1, -size):
        end = min(num_steps, start + size)
        for first in range(0, num_sequences, many):
            last = min(num_sequences, first + many)
            rows = slice(start * num_sequences + first, (end - 1) * num_sequences + last)
            now = space.rows[: rows.stop - rows.start]
            _through_gates(upper[rows], sigmoids[0, rows], sigmoids[1, rows], now[:, split:], found)
            multiply(now[:, split:], space.to_states, space.zeros[:split], now[:, :split], scratch)
            if len(d_states):
                _add(d_states[rows], now[:, :split])
            before = (start - 1) * num_sequences
            previous = state[first:last] if start == 0 else joint[before + first : before + last, :split]
            kept, after = keep[start:end, first:last], following[first:last]
            _retreat(kept, after, m.decay, joint[rows], previous, now, carry[first:last], found.decay)
            after[:] = kept[0]
            _add_products(joint[rows], now, space, found)
            if len(d_inputs):
                zeros = space.zeros[: d_inputs.shape[1]]
                multiply(now[:, : split + width], space.to_inputs, zeros, d_inputs[rows], scratch)
    if len(d_state):
        _carry_out(keep[0], m.decay, carry, d_state)
    _through_matrices(w, m, found, gradients)


@compiled
def _start(m: Matrices, gradients: Weights, rows: int, scratch: Floats) -> tuple[Matrices, Workspace]:
    """Return zeros for the gradients at the matrices (the gate's are those at the parameters), and the workspace."""
    split, width = m.gate.shape
    gradients.gate_w[:] = 0
    gradients.gate_b[:] = 0
    found = Matrices(
        np.zeros_like(m.decay),
        np.zeros_like(m.drive),
        np.zeros_like(m.output),
        np.zeros_like(m.output_b),
        gradients.gate_w,
        gradients.gate_b,
    )
    part = Matrices(
        found.decay,
        np.empty_like(m.drive),
        np.empty_like(m.output),
        found.output_b,
        np.empty_like(m.gate),
        found.gate_b,
    )
    space = Workspace(
        np.concatenate((m.output[:split].T, m.gate.T)),
        np.concatenate((m.drive.T, m.output[split:].T)),
        np.zeros(max(split, width, len(m.drive)), m.decay.dtype),
        np.empty((rows, split + 2 * width), m.decay.dtype),
        part,
        scratch,
    )
    return found, space


@compiled
def _add_products(block: Floats, now: Floats, space: Workspace, found: Matrices) -> None:
    """Add the gradients at the matrices from a block of states and inputs (rows, J) and the gradients there."""
    split, width = found.gate.shape
    part, zeros = space.part, space.zeros
    multiply(block.T, now[:, split : split + width], zeros[:width], part.output, space.scratch)
    multiply(block[:, :split].T, now[:, split + width :], zeros[:width], part.gate, space.scratch)
    multiply(block[:, split:].T, now[:, :split], zeros[:split], part.drive, space.scratch)
    _add(part.output, found.output)
    _add(part.gate, found.gate)
    _add(part.drive, found.drive)


@compiled
def _through_gates(upper: Floats, output: Floats, gate: Floats, inner: Floats, found: Matrices) -> None:
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
            found.output_b[d] += row[d]
            found.gate_b[d] += row[width + d]


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
def _carry_out(keep: NDArray[np.bool_], decay: Floats, first: Floats, d_state: Floats) -> None:
    """Write the gradient at the state carried in, keep λ* g, from the full one ``first`` (E, S) at the first step."""
    half = len(decay) // 2
    for e in range(len(keep)):
        row, after = d_state[e], first[e]
        if keep[e]:
            for n in range(half):
                row[n] = decay[n] * after[n] + decay[half + n] * after[half + n]
                row[half + n] = decay[n] * after[half + n] - decay[half + n] * after[n]
        else:
            row[:] = 0


@compiled
def _add(part: Floats, total: Floats) -> None:
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] += part[i, j]


def scratch_elements(inputs: int, states: int, features: int) -> int:
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
