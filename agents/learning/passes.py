"""Forward and backward passes of actor and critic on one batch, compiled, into buffers that are reused.

Letters in this file: B batch, X inputs of the actor, I inputs of a layer or network, H hidden units, A actions.

The same networks as `agents.learning.networks`, which tests compare values and gradients with (by autograd, float64).
Every constant is made in the arrays' own type: a Python number would turn a loop of float32 into one of float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.learning.compiled import compiled, inlined
from agents.learning.networks import LOG_STD_MAX, LOG_STD_MIN, NORM_EPSILON
from agents.learning.tiles import aligned, multiply

Floats = NDArray[Any]
"""float32 or float64; all arrays of a call alike."""
Indices = NDArray[np.int64]


class Layers(NamedTuple):
    """Views of a network's flat parameters (or gradient): weights (I, H), biases (H,)."""

    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats
    w3: Floats
    b3: Floats


class CriticPass(NamedTuple):
    """Buffers of a critic on one batch.

    Attributes:
        z1: normalised pre-activations (B, H) of the first layer, ``z2`` of the second.
        a1: activations, ``a2`` likewise.
        r1: 1 / standard deviation of each row (B,), ``r2`` likewise.
        d1: gradient at the pre-activations before normalisation, ``d2`` likewise.
    """

    z1: Floats
    a1: Floats
    r1: Floats
    d1: Floats
    z2: Floats
    a2: Floats
    r2: Floats
    d2: Floats


class ActorPass(NamedTuple):
    """Buffers of the actor on one batch: activations, head (B, 2 A), their gradients, and the sampled action.

    Attributes:
        spread: exp(log standard deviation) · noise, (B, A).
        log_prob: (B,).
    """

    a1: Floats
    d1: Floats
    a2: Floats
    d2: Floats
    head: Floats
    d_head: Floats
    spread: Floats
    log_prob: Floats


class Common(NamedTuple):
    """What all passes share.

    Attributes:
        zeros: as wide as any layer.
        scratch: for products.
        few: (B, A) for gradients of some rows.
        all_rows: 0 … B − 1.
    """

    zeros: Floats
    scratch: Floats
    few: Floats
    all_rows: Indices


def layer_views(flat: Floats, inputs: int, first: int, second: int, outputs: int) -> Layers:
    """Return views of a flat parameter vector in the order of `networks.NetworkSizes`."""
    o1 = inputs * first
    o2 = o1 + first
    o3 = o2 + first * second
    o4 = o3 + second
    o5 = o4 + second * outputs
    return Layers(
        flat[:o1].reshape(inputs, first),
        flat[o1:o2],
        flat[o2:o3].reshape(first, second),
        flat[o3:o4],
        flat[o4:o5].reshape(second, outputs),
        flat[o5 : o5 + outputs],
    )


layers = compiled(layer_views)
"""The same for compiled code."""


def critic_pass(batch: int, first: int, second: int, dtype: np.dtype[Any]) -> CriticPass:
    """Return buffers."""
    one, two = (batch, first), (batch, second)
    z1, a1, d1 = (aligned(one, dtype) for _ in range(3))
    z2, a2, d2 = (aligned(two, dtype) for _ in range(3))
    r1, r2 = (aligned(batch, dtype) for _ in range(2))
    return CriticPass(z1=z1, a1=a1, r1=r1, d1=d1, z2=z2, a2=a2, r2=r2, d2=d2)


def actor_pass(batch: int, first: int, second: int, actions: int, dtype: np.dtype[Any]) -> ActorPass:
    """Return buffers."""
    a1, d1 = (aligned((batch, first), dtype) for _ in range(2))
    a2, d2 = (aligned((batch, second), dtype) for _ in range(2))
    head, d_head = (aligned((batch, 2 * actions), dtype) for _ in range(2))
    spread, log_prob = aligned((batch, actions), dtype), aligned(batch, dtype)
    return ActorPass(a1=a1, d1=d1, a2=a2, d2=d2, head=head, d_head=d_head, spread=spread, log_prob=log_prob)


# --- critic -----------------------------------------------------------------------------------------------------------


@compiled
def critic_forward(net: Layers, x: Floats, buffers: CriticPass, common: Common, q: Floats) -> None:
    """Write the critic's values of ``x`` (B, X + A) to ``q`` (B,)."""
    multiply(x, net.w1, net.b1, buffers.z1, common.scratch)
    _normalise(buffers.z1, buffers.r1, buffers.a1)
    multiply(buffers.a1, net.w2, net.b2, buffers.z2, common.scratch)
    _normalise(buffers.z2, buffers.r2, buffers.a2)
    last, bias = net.w3.reshape(-1), net.b3[0]
    for b in range(len(q)):
        total = bias
        for j in range(len(last)):
            total += buffers.a2[b, j] * last[j]
        q[b] = total


@compiled
def critic_gradient(net: Layers, x: Floats, dq: Floats, buffers: CriticPass, common: Common, gradient: Layers) -> None:
    """Write the gradient of Σ dq · q with respect to all weights, for the batch of the last `critic_forward`."""
    _critic_backward(net, dq, common.all_rows, buffers, common)
    last, zero = gradient.w3.reshape(-1), dq.dtype.type(0)
    for j in range(len(last)):
        last[j] = zero
    total = zero
    for b in range(len(dq)):
        total += dq[b]
        for j in range(len(last)):
            last[j] += dq[b] * buffers.a2[b, j]
    gradient.b3[0] = total
    multiply(buffers.a1.T, buffers.d2, common.zeros, gradient.w2, common.scratch)
    multiply(x.T, buffers.d1, common.zeros, gradient.w1, common.scratch)
    _sum_rows(buffers.d2, gradient.b2)
    _sum_rows(buffers.d1, gradient.b1)


@compiled
def critic_action_gradient(
    net: Layers, dq: Floats, rows: Indices, buffers: CriticPass, common: Common, d_action: Floats
) -> None:
    """Write the gradient of Σ dq · q at the actions to the given rows of ``d_action`` (B, A), others stay.

    Args:
        dq: (n,) of the batch rows ``rows`` (n,) of the last `critic_forward`.
    """
    num_rows, actions = len(rows), d_action.shape[1]
    if num_rows == 0:
        return
    _critic_backward(net, dq, rows, buffers, common)
    found = common.few[:num_rows, :actions]
    multiply(buffers.d1[:num_rows], net.w1[len(net.w1) - actions :].T, common.zeros, found, common.scratch)
    for i in range(num_rows):
        for j in range(actions):
            d_action[rows[i], j] = found[i, j]


@compiled
def _critic_backward(net: Layers, dq: Floats, rows: Indices, buffers: CriticPass, common: Common) -> None:
    """Write gradients at the pre-activations to the first rows of ``d1`` and ``d2``, for some rows of the batch."""
    last = net.w3.reshape(-1)
    d1, d2 = buffers.d1[: len(rows)], buffers.d2[: len(rows)]
    for i in range(len(rows)):
        for j in range(len(last)):
            d2[i, j] = dq[i] * last[j]
    _denormalise(d2, rows, buffers.z2, buffers.r2)
    multiply(d2, net.w2.T, common.zeros, d1, common.scratch)
    _denormalise(d1, rows, buffers.z1, buffers.r1)


@compiled
def _normalise(z: Floats, reciprocal: Floats, a: Floats) -> None:
    """LayerNorm without affine part, in place, and its positive part; NaN stays NaN."""
    one = z.dtype.type(1)
    share, epsilon, zero = one / z.dtype.type(z.shape[1]), z.dtype.type(NORM_EPSILON), z.dtype.type(0)
    for b in range(z.shape[0]):
        total = zero
        for j in range(z.shape[1]):
            total += z[b, j]
        mean = total * share
        squares = zero
        for j in range(z.shape[1]):
            centred = z[b, j] - mean
            z[b, j] = centred
            squares += centred * centred
        scale = one / math.sqrt(squares * share + epsilon)
        reciprocal[b] = scale
        for j in range(z.shape[1]):
            normal = z[b, j] * scale
            z[b, j] = normal
            a[b, j] = zero if normal < zero else normal


@compiled
def _denormalise(d: Floats, rows: Indices, z: Floats, reciprocal: Floats) -> None:
    """Turn the gradient at the activations ``rows`` into that at the pre-activations, in place."""
    zero = z.dtype.type(0)
    share = z.dtype.type(1) / z.dtype.type(z.shape[1])
    for i in range(len(rows)):
        b = rows[i]
        along_one, along_z = zero, zero
        for j in range(z.shape[1]):
            passed = d[i, j] if z[b, j] > zero else zero
            d[i, j] = passed
            along_one += passed
            along_z += passed * z[b, j]
        along_one *= share
        along_z *= share
        for j in range(z.shape[1]):
            d[i, j] = (d[i, j] - along_one - z[b, j] * along_z) * reciprocal[b]


@compiled
def _sum_rows(d: Floats, total: Floats) -> None:
    for j in range(d.shape[1]):
        total[j] = 0
    for b in range(d.shape[0]):
        for j in range(d.shape[1]):
            total[j] += d[b, j]


# --- actor ------------------------------------------------------------------------------------------------------------


@compiled
def actor_forward(net: Layers, x: Floats, buffers: ActorPass, common: Common) -> None:
    """Write mean and log standard deviation before its clamp, (B, 2 A), to ``buffers.head``."""
    multiply(x, net.w1, net.b1, buffers.a1, common.scratch)
    _keep_positive(buffers.a1)
    multiply(buffers.a1, net.w2, net.b2, buffers.a2, common.scratch)
    _keep_positive(buffers.a2)
    multiply(buffers.a2, net.w3, net.b3, buffers.head, common.scratch)


@compiled
def actor_sample(net: Layers, x: Floats, noise: Floats, buffers: ActorPass, common: Common, action: Floats) -> None:
    """Write tanh-squashed actions (B, A) to ``action`` and their log density to ``buffers.log_prob``.

    With u = mean + std · noise and e = exp(−2 |u|): |tanh u| = (1 − e) / (1 + e), and log(1 − tanh² u) is
    2 (log 2 − |u| − log(1 + e)), which cannot overflow; one logarithm of the product over actions serves all.
    Source: arXiv:1812.05905, appendix C.
    """
    actor_forward(net, x, buffers, common)
    t = action.dtype.type
    zero, one, two, half = t(0), t(1), t(2), t(0.5)
    lowest, highest = t(LOG_STD_MIN), t(LOG_STD_MAX)
    log_two, half_log_two_pi = t(math.log(2.0)), t(0.5 * math.log(2.0 * math.pi))
    actions = action.shape[1]
    for b in range(action.shape[0]):
        total, product = zero, 1.0
        for j in range(actions):
            raw = buffers.head[b, actions + j]
            log_std = lowest if raw < lowest else highest if raw > highest else raw
            spread = math.exp(log_std) * noise[b, j]
            buffers.spread[b, j] = spread
            u = buffers.head[b, j] + spread
            size = abs(u)
            e = math.exp(-two * size)
            squashed = (one - e) / (one + e)
            action[b, j] = -squashed if u < zero else squashed
            total -= half * noise[b, j] * noise[b, j] + log_std + half_log_two_pi
            total -= two * (log_two - size)
            product *= one + e
        buffers.log_prob[b] = total + two * t(math.log(product))


@inlined
def actor_head_gradient(action: Floats, d_action: Floats, d_log_prob: float, buffers: ActorPass) -> None:
    """Write the gradient of Σ (d_action · a + d_log_prob · log π(a)) at the head, for the last `actor_sample`.

    ∂ log π / ∂u through the squashing is 2 a, ∂ log π / ∂ log_std is −1, and u = mean + exp(log_std) · noise. Where the
    clamp holds the log standard deviation, no gradient passes.
    """
    t = action.dtype.type
    zero, one, two, weight = t(0), t(1), t(2), t(d_log_prob)
    lowest, highest = t(LOG_STD_MIN), t(LOG_STD_MAX)
    actions = action.shape[1]
    for b in range(action.shape[0]):
        for j in range(actions):
            a = action[b, j]
            d_mean = d_action[b, j] * (one - a * a) + two * weight * a
            raw = buffers.head[b, actions + j]
            buffers.d_head[b, j] = d_mean
            buffers.d_head[b, actions + j] = (
                d_mean * buffers.spread[b, j] - weight if lowest <= raw <= highest else zero
            )


@compiled
def add_pull(buffers: ActorPass, aim: Floats, weights: Floats) -> None:
    """Add the gradient of Σ_b weights[b] · ½ ‖tanh(mean[b]) − aim[b]‖² at the means to ``buffers.d_head``.

    Args:
        aim: (B, A) actions in [−1, 1] that the deterministic action should come closer to.
    """
    one = aim.dtype.type(1)
    for b in range(aim.shape[0]):
        for j in range(aim.shape[1]):
            action = math.tanh(buffers.head[b, j])
            buffers.d_head[b, j] += weights[b] * (action - aim[b, j]) * (one - action * action)


@inlined
def actor_gradient(net: Layers, x: Floats, buffers: ActorPass, common: Common, gradient: Layers) -> None:
    """Write the gradient at all weights that belongs to ``buffers.d_head``."""
    multiply(buffers.a2.T, buffers.d_head, common.zeros, gradient.w3, common.scratch)
    _sum_rows(buffers.d_head, gradient.b3)
    multiply(buffers.d_head, net.w3.T, common.zeros, buffers.d2, common.scratch)
    _pass_positive(buffers.d2, buffers.a2)
    multiply(buffers.a1.T, buffers.d2, common.zeros, gradient.w2, common.scratch)
    _sum_rows(buffers.d2, gradient.b2)
    multiply(buffers.d2, net.w2.T, common.zeros, buffers.d1, common.scratch)
    _pass_positive(buffers.d1, buffers.a1)
    multiply(x.T, buffers.d1, common.zeros, gradient.w1, common.scratch)
    _sum_rows(buffers.d1, gradient.b1)


@compiled
def _keep_positive(a: Floats) -> None:
    zero = a.dtype.type(0)
    for b in range(a.shape[0]):
        for j in range(a.shape[1]):
            a[b, j] = zero if a[b, j] < zero else a[b, j]


@compiled
def _pass_positive(d: Floats, a: Floats) -> None:
    zero = a.dtype.type(0)
    for b in range(a.shape[0]):
        for j in range(a.shape[1]):
            d[b, j] = d[b, j] if a[b, j] > zero else zero
