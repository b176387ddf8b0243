"""Gradient steps of many small networks at once, written out, so that ordinary autograd gives the exact second order.

Letters in this file: K networks (tasks), T samples, X inputs, Y outputs, L layers, C context.

All K inner loops advance together as batched matrix products; one step is the textbook backward pass as tensor
operations, which autograd differentiates once. Against nested `torch.func.grad` under `vmap` this spares one level of
autograd and its dispatch: same gradients (tests/agents/learning/test_inner_loop.py), a fraction of the time
(tests/benchmarks/maml.py).

Source: Finn et al. 2017, arXiv:1703.03400, algorithm 1 and section 2.2 (first order).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Networks:
    """K multilayer perceptrons with SiLU between their layers; the first layer also reads a context.

    Attributes:
        weights: one of L, (X, H) where the K networks share it, (K, X, H) where each has its own.
        biases: one of L, (H,) or (K, 1, H).
        context: (K, 1, C), an input that is the same for all samples of a network; ``None``: there is none.
        context_weights: (C, H), how the first layer reads it.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    context: Tensor | None = None
    context_weights: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InnerLoop:
    """How the inner loop goes.

    Attributes:
        steps: gradient steps.
        context_rate: learning rate of the context; 0: it is not adapted.
        layer_rates: learning rate of each layer; 0: it is not adapted. Rates may be tensors, to be learned themselves.
        first_order: true: the outer gradient ignores how inner gradients change with the parameters.
    """

    steps: int
    layer_rates: Sequence[Tensor | float]
    context_rate: Tensor | float = 0.0
    first_order: bool = False


def linear(inputs_KTX: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return inputs · weight + bias for shared (X, H) or separate (K, X, H) weights; shape (K, T, H)."""
    if weight.dim() == 3 and bias.dim() == 3:
        return torch.baddbmm(bias, inputs_KTX, weight)
    return inputs_KTX @ weight + bias


def silu_with_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return SiLU(z) and its derivative."""
    s = torch.sigmoid(z)
    h = z * s
    return h, s + h * (1 - s)


def predict(networks: Networks, inputs_KTX: Tensor) -> Tensor:
    """Return the outputs (K, T, Y)."""
    z = linear(inputs_KTX, networks.weights[0], networks.biases[0])
    if networks.context is not None and networks.context_weights is not None:
        z = z + networks.context @ networks.context_weights
    for weight, bias in zip(networks.weights[1:], networks.biases[1:], strict=True):
        z = linear(torch.nn.functional.silu(z), weight, bias)
    return z


def squared_error(outputs_KTY: Tensor, target_KTY: Tensor, mask_Y: Tensor) -> Tensor:
    """Return each network's squared error per sample and counted output, (K,)."""
    error = (outputs_KTY - target_KTY) * mask_Y
    return error.square().sum((1, 2)) / (error.shape[1] * mask_Y.sum().clamp_min(1))


def adapt(networks: Networks, inputs_KTX: Tensor, target_KTY: Tensor, mask_Y: Tensor, loop: InnerLoop) -> Networks:
    """Return the networks after the inner loop on their own samples; differentiable once, to the second order.

    The first layer's inputs never change, so its steps δ are kept as what they add to its sums, (1 + X Xᵀ) δ: with few
    samples that is much less work than new weights at each step, which follow once, at the end.

    Args:
        mask_Y: 1 for outputs that count, 0 for those that do not.
    """
    adapted, num_tasks = [_adapts(rate) for rate in loop.layer_rates], len(inputs_KTX)
    upper = [on and index > 0 for index, on in enumerate(adapted)]
    now = Networks(
        weights=tuple(_own(w, num_tasks) if on else w for w, on in zip(networks.weights, upper, strict=True)),
        biases=tuple(_own(b[None], num_tasks) if on else b for b, on in zip(networks.biases, upper, strict=True)),
        context=networks.context,
        context_weights=networks.context_weights,
    )
    sums = linear(inputs_KTX, networks.weights[0], networks.biases[0])
    gram = 1 + inputs_KTX @ inputs_KTX.mT if adapted[0] else None
    factor = (2.0 / (inputs_KTX.shape[1] * mask_Y.sum().clamp_min(1))) * mask_Y
    moved: Tensor | None = None
    for _ in range(loop.steps):
        first = sums if moved is None or gram is None else torch.baddbmm(sums, gram, moved)
        now, step = _step(now, first, target_KTY, factor, loop)
        moved = step if moved is None or step is None else moved + step
    if moved is None:
        return now
    seen = inputs_KTX.detach() if loop.first_order else inputs_KTX
    return Networks(
        weights=(networks.weights[0] + seen.mT @ moved, *now.weights[1:]),
        biases=(networks.biases[0] + moved.sum(1, keepdim=True), *now.biases[1:]),
        context=now.context,
        context_weights=now.context_weights,
    )


def _adapts(rate: Tensor | float) -> bool:
    return isinstance(rate, Tensor) or rate != 0.0


def _own(shared: Tensor, num_tasks: int) -> Tensor:
    return shared.expand(num_tasks, *shared.shape)


def _step(
    networks: Networks, sums_KTH: Tensor, target_KTY: Tensor, factor_Y: Tensor, loop: InnerLoop
) -> tuple[Networks, Tensor | None]:
    """Return the networks after one gradient step, their first layer excepted, and the first layer's step (K, T, H).

    The latter is ``None`` where the first layer is not adapted.

    Args:
        sums_KTH: what the first layer makes of the inputs, without the context.
        factor_Y: derivative of the loss with respect to an output, per unit of its error.
    """
    last = len(networks.weights) - 1
    with torch.no_grad() if loop.first_order else nullcontext():
        z = sums_KTH
        if networks.context is not None and networks.context_weights is not None:
            z = z + networks.context @ networks.context_weights
        entered, slopes = {}, {}
        for index in range(1, last + 1):
            entered[index], slopes[index - 1] = silu_with_slope(z)
            z = linear(entered[index], networks.weights[index], networks.biases[index])
        deltas = {last: (z - target_KTY) * factor_Y}
        for index in range(last, _lowest(loop), -1):
            deltas[index - 1] = (deltas[index] @ networks.weights[index].mT) * slopes[index - 1]
        by_context = None
        if networks.context_weights is not None and _adapts(loop.context_rate):
            by_context = deltas[0].sum(1, keepdim=True) @ networks.context_weights.mT
    first = deltas[0] * -loop.layer_rates[0] if _adapts(loop.layer_rates[0]) else None
    return _moved(networks, entered, deltas, by_context, loop), first


def _lowest(loop: InnerLoop) -> int:
    """Return the lowest layer to which the backward pass must go."""
    if _adapts(loop.context_rate):
        return 0
    return next((index for index, rate in enumerate(loop.layer_rates) if _adapts(rate)), len(loop.layer_rates) - 1)


def _moved(
    networks: Networks,
    entered: Mapping[int, Tensor],
    deltas: Mapping[int, Tensor],
    by_context: Tensor | None,
    loop: InnerLoop,
) -> Networks:
    """Return the networks one step against their gradients, their first layer excepted.

    Args:
        entered: what entered each layer above the first, (K, T, X).
        deltas: derivatives of the loss by the sums of a layer, (K, T, H).
        by_context: derivative of the loss by the context, (K, 1, C).
    """
    weights, biases, context = list(networks.weights), list(networks.biases), networks.context
    for index, rate in enumerate(loop.layer_rates):
        if index == 0 or not _adapts(rate):
            continue
        step = deltas[index] * -rate
        weights[index] = torch.baddbmm(weights[index], entered[index].mT, step)
        biases[index] = biases[index] + step.sum(1, keepdim=True)
    if context is not None and by_context is not None:
        context = context - loop.context_rate * by_context
    return Networks(
        weights=tuple(weights), biases=tuple(biases), context=context, context_weights=networks.context_weights
    )
