"""One step of encoder and actor of several members, compiled: each in few passes over the rows of its own seats.

Letters in this file: M members, N encoders (one that all share, or one each), R rows, O observation, V visible part of
it, A action, I = V + A + 1 inputs of an encoder, S numbers of its state, D features, H hidden units, J columns of state
(or hidden units) and inputs side by side.

Whatever is computed for a row follows from that row and its member's weights alone, in one fixed order (products:
`agents.learning.tiles`), so that the bits of an action do not depend on how many rows there are, nor on who else acts.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.learning.compiled import compiled, compiled_and_kept
from agents.learning.tiles import VECTOR_BYTES, multiply, scratch_size

Float32Array = NDArray[np.float32]
Indices = NDArray[np.int64]
OBSERVATION_CLIP: Final = 10.0
LOG_STD_MIN: Final = -10.0
LOG_STD_MAX: Final = 2.0
LANES: Final = VECTOR_BYTES // 4
TANH_LIMIT: Final = np.float32(7.99881172180175781)
"""From here on the float32 next to tanh is 1."""


class Seats(NamedTuple):
    """Which rows are whose.

    Attributes:
        rows: (R,), those of the first member, then those of the second, and so on.
        bounds: (M + 1,), where in ``rows`` those of each member begin and end.
    """

    rows: Indices
    bounds: Indices


class Seen(NamedTuple):
    """What an encoder is given of each environment, as in `swarm.policy.PolicyInput`, for at least the seats' rows."""

    reset: NDArray[np.bool_]
    observation: Float32Array
    reward: Float32Array
    state: Float32Array


class Scaling(NamedTuple):
    """From observations to visible parts.

    Attributes:
        mean: (N, O); ``factor`` likewise.
        reward_factor: (N, 1).
        projection: (N, O, V), or without columns where the visible part is the whole observation.
        projection_b: (N, V).
    """

    mean: Float32Array
    factor: Float32Array
    reward_factor: Float32Array
    projection: Float32Array
    projection_b: Float32Array


class StateSpace(NamedTuple):
    """What `agents.learning.ssm` multiplies with.

    Attributes:
        decay: real, then imaginary parts of λ, (N, S).
        drive: γ ⊙ B, (N, I, S).
        output: [output_w; skip_w], (N, J, D), and its bias (N, D).
        gate: (N, S, D), and its bias (N, D).
    """

    decay: Float32Array
    drive: Float32Array
    output: Float32Array
    output_b: Float32Array
    gate: Float32Array
    gate_b: Float32Array


class Memoryless(NamedTuple):
    """What `agents.learning.mlp_encoder` multiplies with: (N, I, H), then as in `StateSpace`, H in the place of S."""

    hidden: Float32Array
    hidden_b: Float32Array
    output: Float32Array
    output_b: Float32Array
    gate: Float32Array
    gate_b: Float32Array


class Lstm(NamedTuple):
    """What `agents.learning.lstm_encoder` multiplies with: (N, I + H, 4 H), (N, H, D), and their biases."""

    recurrent: Float32Array
    recurrent_b: Float32Array
    output: Float32Array
    output_b: Float32Array


class Actor(NamedTuple):
    """Layers (M, inputs, outputs) with their biases, and the adapters' gain and bias (M, A).

    The last layer may have more than its 2 A columns, for the sake of whole vectors.
    """

    w1: Float32Array
    b1: Float32Array
    w2: Float32Array
    b2: Float32Array
    w3: Float32Array
    b3: Float32Array
    gain: Float32Array
    bias: Float32Array


@compiled
def tanh(x: np.float32) -> np.float32:
    """Return tanh of a float32 (NaN: NaN) with nothing that keeps a loop from using vectors.

    Its error is at most 3e-7, or 5e-7 on a processor that does not fuse multiplication and addition.

    Source: Eigen, MathFunctionsImpl.h, ``ptanh_float``: x p(x²) / q(x²), with x clamped.
    """
    f = np.float32
    x = -TANH_LIMIT if x < -TANH_LIMIT else x
    x = TANH_LIMIT if x > TANH_LIMIT else x
    y = x * x
    p = f(-2.76076847742355e-16)
    p = p * y + f(2.00018790482477e-13)
    p = p * y + f(-8.60467152213735e-11)
    p = p * y + f(5.12229709037114e-08)
    p = p * y + f(1.48572235717979e-05)
    p = p * y + f(6.37261928875436e-04)
    p = p * y + f(4.89352455891786e-03)
    q = f(1.19825839466702e-06)
    q = q * y + f(1.18534705686654e-04)
    q = q * y + f(2.26843463243900e-03)
    q = q * y + f(4.89352518554385e-03)
    return x * p / q


@compiled
def _sigmoid(x: np.float32) -> np.float32:
    half = np.float32(0.5)
    return half + half * tanh(half * x)


@compiled
def _clamp(x: np.float32, limit: np.float32) -> np.float32:
    """Return x within [−limit, limit]; NaN stays NaN."""
    x = -limit if x < -limit else x
    return limit if x > limit else x


_scratch_size = compiled(scratch_size)


@compiled
def _product(a: Float32Array, b: Float32Array, bias: Float32Array, out: Float32Array) -> None:
    """Write ``a @ b + bias`` to ``out``."""
    is_narrow = out.shape[1] < LANES  # else nothing is copied
    size = _scratch_size(a.shape[0], a.shape[1], out.shape[1]) if is_narrow else 0
    multiply(a, b, bias, out, np.empty(size, np.float32))


@compiled
def _range(seats: Seats, index: int, number: int) -> tuple[int, int]:
    """Return where in the seats' rows those of one of ``number`` encoders begin and end."""
    if number == 1:
        return 0, len(seats.rows)
    return seats.bounds[index], seats.bounds[index + 1]


@compiled
def _write_inputs(
    scaling: Scaling, index: int, seen: Seen, rows: Indices, num_states: int, inputs: Float32Array, out: Float32Array
) -> None:
    """Write the visible part, the previous action and the previous reward to ``inputs`` (R, I).

    Args:
        num_states: S; the previous action stands behind these in the policy state.
        out: (R, V + D), gets the visible part, too.
    """
    clip, zero = np.float32(OBSERVATION_CLIP), np.float32(0)
    mean, factor, paid = scaling.mean[index], scaling.factor[index], scaling.reward_factor[index, 0]
    num_visible, num_actions = scaling.projection.shape[2], seen.state.shape[1] - num_states
    is_projected = num_visible > 0
    scaled = np.empty((len(rows), len(mean)), np.float32) if is_projected else inputs[:, : len(mean)]
    for i in range(len(rows)):
        observation, row = seen.observation[rows[i]], scaled[i]
        for k in range(len(mean)):
            row[k] = _clamp((observation[k] - mean[k]) * factor[k], clip)
    if is_projected:
        _product(scaled, scaling.projection[index], scaling.projection_b[index], inputs[:, :num_visible])
    else:
        num_visible = len(mean)
    for i in range(len(rows)):
        r, row = rows[i], inputs[i]
        for k in range(num_visible):
            out[i, k] = row[k]
        keep = not seen.reset[r]
        for k in range(num_actions):
            row[num_visible + k] = seen.state[r, num_states + k] if keep else zero
        row[num_visible + num_actions] = _clamp(seen.reward[r] * paid, clip) if keep else zero


@compiled
def _write_features(
    joint: Float32Array,
    output: Float32Array,
    output_b: Float32Array,
    gate: Float32Array,
    gate_b: Float32Array,
    features: Float32Array,
) -> None:
    """Write tanh(y) · sigmoid(g) to ``features`` (R, D), y of all columns of ``joint`` (R, J), g of the first ones."""
    gates = np.empty((len(joint), len(gate_b)), np.float32)
    outputs = np.empty_like(gates)
    _product(joint, output, output_b, outputs)
    _product(joint[:, : len(gate)], gate, gate_b, gates)
    for i in range(len(joint)):
        y, g, row = outputs[i], gates[i], features[i]
        for d in range(len(g)):
            row[d] = tanh(y[d]) * _sigmoid(g[d])


@compiled_and_kept
def encode_state_space(
    w: StateSpace, scaling: Scaling, seen: Seen, seats: Seats, out: Float32Array, state: Float32Array
) -> None:
    """Write visible parts and features to ``out`` (R, V + D) in the seats' order, encoder states to rows of ``state``.

    Args:
        state: (rows of ``seen``, S + A), not that of ``seen``; the actions' place is left.
    """
    number, split = w.decay.shape
    half, num_inputs = split // 2, w.drive.shape[1]
    zeros = np.zeros(split, np.float32)
    num_visible = out.shape[1] - w.output_b.shape[1]
    for n in range(number):
        first, last = _range(seats, n, number)
        rows, target, decay = seats.rows[first:last], out[first:last], w.decay[n]
        joint = np.empty((len(rows), split + num_inputs), np.float32)
        _write_inputs(scaling, n, seen, rows, split, joint[:, split:], target)
        _product(joint[:, split:], w.drive[n], zeros, joint[:, :split])
        for i in range(len(rows)):
            row, before, after = joint[i], seen.state[rows[i]], state[rows[i]]
            if not seen.reset[rows[i]]:
                for k in range(half):
                    row[k] += decay[k] * before[k] - decay[half + k] * before[half + k]
                    row[half + k] += decay[k] * before[half + k] + decay[half + k] * before[k]
            for k in range(split):
                after[k] = row[k]
        _write_features(joint, w.output[n], w.output_b[n], w.gate[n], w.gate_b[n], target[:, num_visible:])


@compiled_and_kept
def encode_memoryless(
    w: Memoryless, scaling: Scaling, seen: Seen, seats: Seats, out: Float32Array, state: Float32Array
) -> None:
    """See `encode_state_space`; there is no encoder state."""
    number, num_inputs, width = w.hidden.shape
    num_visible = out.shape[1] - w.output_b.shape[1]
    for n in range(number):
        first, last = _range(seats, n, number)
        rows, target = seats.rows[first:last], out[first:last]
        joint = np.empty((len(rows), width + num_inputs), np.float32)
        _write_inputs(scaling, n, seen, rows, 0, joint[:, width:], target)
        _product(joint[:, width:], w.hidden[n], w.hidden_b[n], joint[:, :width])
        for i in range(len(rows)):
            row = joint[i]
            for k in range(width):
                row[k] *= _sigmoid(row[k])
        _write_features(joint, w.output[n], w.output_b[n], w.gate[n], w.gate_b[n], target[:, num_visible:])


@compiled_and_kept
def encode_lstm(w: Lstm, scaling: Scaling, seen: Seen, seats: Seats, out: Float32Array, state: Float32Array) -> None:
    """See `encode_state_space`; an encoder state is output, then cell."""
    number, width = w.output.shape[:2]
    num_inputs = w.recurrent.shape[1] - width
    num_visible = out.shape[1] - w.output_b.shape[1]
    for n in range(number):
        first, last = _range(seats, n, number)
        rows, target = seats.rows[first:last], out[first:last]
        joint = np.empty((len(rows), num_inputs + width), np.float32)
        gates = np.empty((len(rows), 4 * width), np.float32)
        hidden = np.empty((len(rows), width), np.float32)
        _write_inputs(scaling, n, seen, rows, 2 * width, joint[:, :num_inputs], target)
        for i in range(len(rows)):
            for k in range(width):
                joint[i, num_inputs + k] = np.float32(0) if seen.reset[rows[i]] else seen.state[rows[i], k]
        _product(joint, w.recurrent[n], w.recurrent_b[n], gates)
        for i in range(len(rows)):
            row, before, after, output = gates[i], seen.state[rows[i]], state[rows[i]], hidden[i]
            keep = not seen.reset[rows[i]]
            for k in range(width):
                fresh = _sigmoid(row[k]) * tanh(row[2 * width + k])
                cell = fresh + _sigmoid(row[width + k]) * before[width + k] if keep else fresh
                output[k] = _sigmoid(row[3 * width + k]) * tanh(cell)
                after[k], after[width + k] = output[k], cell
        features = target[:, num_visible:]
        _product(hidden, w.output[n], w.output_b[n], features)
        for i in range(len(rows)):
            row = features[i]
            for d in range(len(row)):
                row[d] = tanh(row[d])


@compiled
def _keep_positive(values: Float32Array) -> None:
    zero = np.float32(0)
    for i in range(len(values)):
        row = values[i]
        for j in range(len(row)):
            row[j] = zero if row[j] < zero else row[j]


@compiled_and_kept
def choose(w: Actor, seen: Float32Array, noise: Float32Array, seats: Seats, action: Float32Array) -> None:
    """Write tanh(gain · mean + bias + exp(log standard deviation) · noise) to the seats' rows of ``action``.

    Args:
        seen: (R, V + D) in the seats' order.
        noise: (at least the seats' rows, A), as ``action``.
    """
    lowest, highest = np.float32(LOG_STD_MIN), np.float32(LOG_STD_MAX)
    num_actions = action.shape[1]
    for m in range(len(w.w1)):
        first, last = seats.bounds[m], seats.bounds[m + 1]
        one = np.empty((last - first, w.w1.shape[2]), np.float32)
        two = np.empty((last - first, w.w2.shape[2]), np.float32)
        head = np.empty((last - first, w.w3.shape[2]), np.float32)
        _product(seen[first:last], w.w1[m], w.b1[m], one)
        _keep_positive(one)
        _product(one, w.w2[m], w.b2[m], two)
        _keep_positive(two)
        _product(two, w.w3[m], w.b3[m], head)
        gain, bias = w.gain[m], w.bias[m]
        for i in range(last - first):
            row, drawn, target = head[i], noise[seats.rows[first + i]], action[seats.rows[first + i]]
            for k in range(num_actions):
                raw = row[num_actions + k]
                log_std = lowest if raw < lowest else highest if raw > highest else raw
                target[k] = row[k] * gain[k] + bias[k] + math.exp(log_std) * drawn[k]
            for k in range(num_actions):
                target[k] = tanh(target[k])
