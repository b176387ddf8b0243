"""MAML on the context-conditioned dynamics: the inner loop moves the context and the head's last layer.

Letters in this file: M meta-gradients, K tasks of one meta-gradient, T time steps, P parameters.

The inner loop sees the support window of a task, the outer loss is taken on the window that follows it, second order
through `torch.func.grad` with all tasks in one `vmap`; the encoder is not adapted but receives the outer gradient.

Source: Finn et al. 2017, arXiv:1703.03400 (MAML); Nagabandi et al. 2019, arXiv:1803.11347 (GrBAL: support and query are
consecutive stretches of one trajectory); Zintgraf et al. 2019, arXiv:1810.03642 (CAVIA: a context as the adapted part).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agents.config import WorldConfig
from agents.learning.normalizer import Float32Array, Scales
from agents.learning.windows import Windows
from agents.learning.world_model import Prepared, WorldSizes, WorldState, head_hidden, head_loss, prepare

Fast = tuple[Tensor, Tensor, Tensor]
Head = dict[str, Tensor]


def task_loss(head: Head, fast: Fast, known: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the loss of one task with adapted (context, w2, b2); ``known`` (T, …), ``target`` (T, O+1)."""
    context, w2, b2 = fast
    return head_loss(head_hidden(head, known, context), w2, b2, target, mask)


def adapt(head: Head, known: Tensor, target: Tensor, mask: Tensor, steps: int, learning_rate: float) -> Fast:
    """Return (context, w2, b2) after ``steps`` gradient steps on one task's support window; differentiable twice."""
    fast: Fast = (head["c0"], head["w2"], head["b2"])
    gradient: Callable[[Fast], Fast] = torch.func.grad(lambda now: task_loss(head, now, known, target, mask))
    for _ in range(steps):
        context, w2, b2 = (value - learning_rate * g for value, g in zip(fast, gradient(fast), strict=True))
        fast = (context, w2, b2)
    return fast


def outer_losses(head: Head, support: Prepared, query: Prepared, steps: int, learning_rate: float) -> Tensor:
    """Return the query loss (K,) of each task after adaptation to its support window."""

    def one_task(s_known: Tensor, s_target: Tensor, q_known: Tensor, q_target: Tensor) -> Tensor:
        fast = adapt(head, s_known, s_target, support.mask, steps, learning_rate)
        return task_loss(head, fast, q_known, q_target, query.mask)

    losses: Tensor = torch.func.vmap(one_task, in_dims=1)(support.known, support.target, query.known, query.target)
    return losses


def meta_loss(
    sizes: WorldSizes, theta: Tensor, support: Windows, query: Windows, scales: Scales, config: WorldConfig
) -> Tensor:
    """Return the mean outer loss over tasks, differentiable with respect to ``theta`` (P,)."""
    encoder, head = sizes.views(theta)
    seen, asked = (prepare(sizes, encoder, windows, scales) for windows in (support, query))
    return outer_losses(head, seen, asked, config.inner_steps, config.inner_learning_rate).mean()


def meta_gradients(
    world: WorldState,
    support: Windows,
    query: Windows,
    scales: Scales,
    config: WorldConfig,
    num_gradients: int = 1,
) -> Float32Array:
    """Return ``num_gradients`` second-order MAML gradients (M, P), each over an equal part of the tasks."""
    size = support.num_windows // num_gradients
    gradients = []
    for g in range(num_gradients):
        part = slice(g * size, (g + 1) * size)
        theta = world.theta.clone().requires_grad_()
        loss = meta_loss(world.sizes, theta, support.select(part), query.select(part), scales, config)
        gradients.append(torch.autograd.grad(loss, theta)[0])
    return torch.stack(gradients).numpy()


def adapted_loss(
    world: WorldState, support: Windows, query: Windows, scales: Scales, config: WorldConfig
) -> tuple[float, float]:
    """Return the mean loss on the query windows before and after the inner loop on their support windows."""
    encoder, head = world.sizes.views(world.theta)
    with torch.no_grad():
        seen, asked = (prepare(world.sizes, encoder, windows, scales) for windows in (support, query))
        before = outer_losses(head, seen, asked, 0, config.inner_learning_rate).mean()
        after = outer_losses(head, seen, asked, config.inner_steps, config.inner_learning_rate).mean()
    return float(before), float(after)
