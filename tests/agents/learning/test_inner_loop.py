from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.learning.inner_loop import InnerLoop, Networks, adapt, predict, squared_error

TASKS, SAMPLES, INPUTS, OUTPUTS, HIDDEN, CONTEXT = 3, 5, 4, 2, 6, 2
RATE = 0.3
Layers = list[Tensor]


def made_layers(seed: int = 0) -> Layers:
    """Weights and biases of three layers, the initial context and how the first layer reads it; float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN, OUTPUTS), (OUTPUTS,), (CONTEXT,)]
    shapes.append((CONTEXT, HIDDEN))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.5).requires_grad_() for shape in shapes]


def made_tasks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = (INPUTS, OUTPUTS, INPUTS, OUTPUTS)
    x, y, xq, yq = (torch.randn(TASKS, SAMPLES, n, generator=generator, dtype=torch.float64) for n in sizes)
    return x, y, xq, yq


MASK = torch.tensor([1.0, 0.0], dtype=torch.float64)


def networks_of(layers: Layers) -> Networks:
    w1, b1, w2, b2, w3, b3, c, wc = layers
    return Networks(weights=(w1, w2, w3), biases=(b1, b2, b3), context=c.expand(TASKS, 1, -1), context_weights=wc)


def task_loss(layers: Layers, x: Tensor, y: Tensor) -> Tensor:
    """One task's loss in the plain way, for reference."""
    w1, b1, w2, b2, w3, b3, c, wc = layers
    hidden = torch.nn.functional.silu(x @ w1 + c @ wc + b1)
    hidden = torch.nn.functional.silu(hidden @ w2 + b2)
    return ((hidden @ w3 + b3 - y) * MASK).square().sum() / (len(x) * MASK.sum())


ADAPTED = {
    "context": ((0.0, 0.0, 0.0), RATE, [6]),
    "head": ((0.0, 0.0, RATE), 0.0, [4, 5]),
    "both": ((0.0, 0.0, RATE), RATE, [4, 5, 6]),
    "all": ((RATE, RATE, RATE), RATE, [0, 1, 2, 3, 4, 5, 6]),
}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("adapted", ADAPTED)
def test_outer_gradients_equal_an_explicit_loop_over_tasks(adapted: str, first_order: bool) -> None:
    layer_rates, context_rate, moving = ADAPTED[adapted]
    layers, (x, y, xq, yq) = made_layers(), made_tasks()
    seen = [x.requires_grad_(), xq.requires_grad_()]  # an encoder's features
    loop = InnerLoop(steps=3, layer_rates=layer_rates, context_rate=context_rate, first_order=first_order)
    moved = adapt(networks_of(layers), x, y, MASK, loop)
    of_all = [*layers, *(seen[1:] if first_order else seen)]
    mine = torch.autograd.grad(squared_error(predict(moved, xq), yq, MASK).sum(), of_all)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(TASKS):
        now = list(layers)
        for _ in range(3):
            gradients = torch.autograd.grad(
                task_loss(now, x[k], y[k]), [now[i] for i in moving], create_graph=not first_order
            )
            for i, gradient in zip(moving, gradients, strict=True):
                now[i] = now[i] - RATE * gradient
        total = total + task_loss(now, xq[k], yq[k])
    expected = torch.autograd.grad(total, of_all)
    for one, two in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    if first_order:
        moved = adapt(networks_of(layers), x, y, MASK, loop)
        loss = squared_error(predict(moved, xq), yq, MASK).sum()
        (by_support,) = torch.autograd.grad(loss, [x], allow_unused=True)
        assert by_support is None or not by_support.any(), "inner gradients are constants"


def test_outer_gradients_equal_nested_functional_gradients_under_vmap() -> None:
    layers, (x, y, xq, yq) = made_layers(), made_tasks()
    loop = InnerLoop(steps=5, layer_rates=(RATE,) * 3, context_rate=RATE)
    mine = torch.autograd.grad(
        squared_error(predict(adapt(networks_of(layers), x, y, MASK, loop), xq), yq, MASK).sum(), layers
    )

    def one_task(x: Tensor, y: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        now = list(layers)
        for _ in range(5):
            gradients = torch.func.grad(lambda now: task_loss([*now, layers[7]], x, y))(now[:7])
            now = [*(a - RATE * b for a, b in zip(now[:7], gradients, strict=True)), layers[7]]
        return task_loss(now, xq, yq)

    expected = torch.autograd.grad(torch.func.vmap(one_task)(x, y, xq, yq).sum(), layers)
    for one, two in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_second_order_and_learned_rates_equal_finite_differences() -> None:
    layers, (x, y, xq, yq) = made_layers(), made_tasks()
    rates = torch.tensor([0.2, 0.1], dtype=torch.float64, requires_grad=True)

    def outer(rates: Tensor, *layers: Tensor) -> Tensor:
        loop = InnerLoop(steps=2, layer_rates=(0.0, rates[1], rates[1]), context_rate=rates[0])
        return squared_error(predict(adapt(networks_of(list(layers)), x, y, MASK, loop), xq), yq, MASK)

    assert torch.autograd.gradcheck(outer, (rates, *layers), fast_mode=True)


def test_what_is_not_adapted_stays_shared_and_no_step_changes_nothing() -> None:
    layers, (x, y, xq, _) = made_layers(), made_tasks()
    before = networks_of(layers)
    moved = adapt(before, x, y, MASK, InnerLoop(steps=2, layer_rates=(0.0, 0.0, RATE)))
    assert moved.weights[0] is before.weights[0]
    assert moved.weights[2].shape == (TASKS, HIDDEN, OUTPUTS)
    unmoved = adapt(before, x, y, MASK, InnerLoop(steps=0, layer_rates=(RATE,) * 3, context_rate=RATE))
    torch.testing.assert_close(predict(unmoved, xq), predict(before, xq))
