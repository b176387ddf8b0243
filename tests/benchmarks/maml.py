"""Second-order MAML outer step, 10 tasks × 5 inner steps: batched and written out, against torchopt and torch.func.

All candidates get the same problem: a regression network of two hidden layers of 64 SiLU units (18 inputs, 18 outputs,
16 support and 16 query samples a task), all of whose parameters adapt, and return the gradient of the mean query loss
with respect to the initial parameters. That these gradients are equal is checked before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import interleave
from torch import Tensor, nn

from agents.learning.inner_loop import InnerLoop, Networks, adapt, predict, squared_error

TASKS, INNER_STEPS, SAMPLES, SIZE, HIDDEN = 10, 5, 16, 18, 64
RATE = 0.05
TOLERANCE = 1e-4
BUDGET_S = 12.0
Data = tuple[Tensor, Tensor, Tensor, Tensor]
Candidate = Callable[[], Sequence[Tensor]]


def measure(threads: int) -> dict[str, Any]:
    """Return milliseconds of one outer step of each candidate, and how often ours fits into theirs."""
    torch.set_num_threads(threads)
    parameters, data = made_problem()
    candidates: dict[str, Candidate] = {
        "ours": lambda: ours(parameters, data),
        "ours_first_order": lambda: ours(parameters, data, first_order=True),
        "torch_func_vmap": lambda: functional(parameters, data),
        "autograd_loop": lambda: plain_loop(parameters, data),
    }
    peer = torchopt_candidate(parameters, data)
    if peer is not None:
        candidates["torchopt"] = peer
    errors = {
        name: largest_error(candidates["ours"](), call())
        for name, call in candidates.items()
        if name not in ("ours", "ours_first_order")
    }
    for name, error in errors.items():
        if not error < TOLERANCE:
            raise AssertionError(f"gradients of {name} and ours differ by {error:.1e} of the largest, not equal work")
    seconds = interleave(candidates, budget_s=BUDGET_S)
    milliseconds = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    return {
        "measurements": {**milliseconds, **{f"gradient_error_{name}": error for name, error in errors.items()}},
        "ratios": {
            "vs_torchopt": seconds["torchopt"] / seconds["ours"] if peer is not None else None,
            "vs_torch_func": seconds["torch_func_vmap"] / seconds["ours"],
        },
    }


def made_problem() -> tuple[list[Tensor], Data]:
    """Return weights (in, out) and biases layer by layer, and support and query samples (K, T, 18)."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for inputs, outputs in ((SIZE, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, SIZE)):
        parameters.append(torch.randn(inputs, outputs, generator=generator) / inputs**0.5)
        parameters.append(torch.zeros(outputs))
    x, y, xq, yq = (torch.randn(TASKS, SAMPLES, SIZE, generator=generator) for _ in range(4))
    return parameters, (x, y, xq, yq)


def leaves(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return copies to differentiate by."""
    return [value.clone().requires_grad_() for value in parameters]


def ours(parameters: Sequence[Tensor], data: Data, *, first_order: bool = False) -> Sequence[Tensor]:
    """All tasks together, inner gradients written out."""
    start, (x, y, xq, yq), mask = leaves(parameters), data, torch.ones(SIZE)
    networks = Networks(weights=tuple(start[0::2]), biases=tuple(start[1::2]))
    loop = InnerLoop(steps=INNER_STEPS, layer_rates=(RATE,) * 3, first_order=first_order)
    loss = squared_error(predict(adapt(networks, x, y, mask, loop), xq), yq, mask).mean()
    return torch.autograd.grad(loss, start)


def task_loss(now: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of one task."""
    hidden = nn.functional.silu(x @ now[0] + now[1])
    hidden = nn.functional.silu(hidden @ now[2] + now[3])
    return (hidden @ now[4] + now[5] - y).square().mean()


def functional(parameters: Sequence[Tensor], data: Data) -> Sequence[Tensor]:
    """Nested ``torch.func.grad`` under one ``vmap`` over tasks."""
    start = leaves(parameters)
    gradient = torch.func.grad(task_loss)

    def one_task(x: Tensor, y: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        now: Sequence[Tensor] = start
        for _ in range(INNER_STEPS):
            now = [value - RATE * g for value, g in zip(now, gradient(now, x, y), strict=True)]
        return task_loss(now, xq, yq)

    return torch.autograd.grad(torch.func.vmap(one_task)(*data).mean(), start)


def plain_loop(parameters: Sequence[Tensor], data: Data) -> Sequence[Tensor]:
    """``torch.autograd.grad(create_graph=True)``, task after task."""
    start, total = leaves(parameters), torch.zeros(())
    for x, y, xq, yq in zip(*data, strict=True):
        now: Sequence[Tensor] = start
        for _ in range(INNER_STEPS):
            gradients = torch.autograd.grad(task_loss(now, x, y), now, create_graph=True)
            now = [value - RATE * g for value, g in zip(now, gradients, strict=True)]
        total = total + task_loss(now, xq, yq)
    return torch.autograd.grad(total / TASKS, start)


def torchopt_candidate(parameters: Sequence[Tensor], data: Data) -> Candidate | None:
    """Torchopt's ``MetaSGD`` in a loop over tasks, as its tutorials do; ``None`` where it is not installed."""
    try:
        import torchopt
    except ImportError:
        sys.stderr.write("torchopt is not installed, its ratio is null: pip install -e '.[bench]'\n")
        return None
    net = nn.Sequential(
        nn.Linear(SIZE, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, SIZE)
    )
    with torch.no_grad():
        for mine, value in zip(net.parameters(), parameters, strict=True):
            mine.copy_(value.mT if value.dim() == 2 else value)

    def step() -> Sequence[Tensor]:
        start, total = list(net.parameters()), torch.zeros(())
        optimiser = torchopt.MetaSGD(net, lr=RATE)
        net_state = torchopt.extract_state_dict(net, by="reference")
        optimiser_state = torchopt.extract_state_dict(optimiser, by="reference")
        for x, y, xq, yq in zip(*data, strict=True):
            for _ in range(INNER_STEPS):
                optimiser.step((net(x) - y).square().mean())
            total = total + (net(xq) - yq).square().mean()
            torchopt.recover_state_dict(net, net_state)
            torchopt.recover_state_dict(optimiser, optimiser_state)
        found = torch.autograd.grad(total / TASKS, start)
        return [value.mT if value.dim() == 2 else value for value in found]

    return step


def largest_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest entry of the same array."""
    return max(float((mine - other).abs().max() / other.abs().max()) for mine, other in zip(ours, theirs, strict=True))
