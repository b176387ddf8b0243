"""MAML on the context-conditioned dynamics: an inner loop on a support window, an outer loss on the window after it.

Letters in this file: M meta-gradients, K tasks of one meta-gradient, T time steps, P parameters of the encoder and
one head.

What the inner loop moves is a choice: the context (CAVIA), the last layer (ANIL), both, context and all layers, or the
last layer by ridge regression (`agents.learning.closed_form`). The encoder is not adapted but receives the outer
gradient. All tasks advance together (`agents.learning.inner_loop`).

Source: Finn et al. 2017, arXiv:1703.03400 (MAML); Nagabandi et al. 2019, arXiv:1803.11347 (GrBAL: support and query are
consecutive stretches of one trajectory); Zintgraf et al. 2019, arXiv:1810.03642 (CAVIA: a context as the adapted part);
Raghu et al. 2020, arXiv:1909.09157 (ANIL: the last layer); Li et al. 2017, arXiv:1707.09835 (Meta-SGD: learned inner
rates; here one for the context and one for the layers, not one for each weight).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from agents.config import WorldConfig
from agents.learning.closed_form import ridge_change
from agents.learning.encoder import Parameters
from agents.learning.inner_loop import InnerLoop, Networks, adapt, predict, squared_error
from agents.learning.normalizer import Float32Array, Scales
from agents.learning.windows import Windows
from agents.learning.world_model import Prepared, head_hidden, prepare
from agents.learning.world_state import WorldSizes, WorldState, encoder_parameters
from swarm.errors import ConfigError


def networks_of(head: Parameters, num_known: int, num_tasks: int) -> Networks:
    """Return ``num_tasks`` copies of a head that share their weights, each with a context of its own.

    Args:
        num_known: inputs of the head beside the context.
    """
    return Networks(
        weights=(head["w1"][:num_known], head["w2"]),
        biases=(head["b1"], head["b2"]),
        context=head["c0"].expand(num_tasks, 1, -1),
        context_weights=head["w1"][num_known:],
    )


def inner_loop_of(config: WorldConfig, head: Parameters) -> InnerLoop:
    """Return the inner loop that the configuration asks for, with the head's own rates where they are learned.

    Raises:
        ConfigError: the configuration asks for ridge regression, which has no steps.
    """
    if config.adapted == "ridge":
        raise ConfigError(
            "world.adapted='ridge' has no gradient steps, which online adaptation takes: adapt between episodes "
            "(without online), or train with another world.adapted"
        )
    context: Tensor | float = config.inner_learning_rate
    layers: Tensor | float = config.inner_learning_rate
    if config.learned_rates:
        context, layers = config.inner_learning_rate * torch.exp(head["rates"])
    adapted = config.adapted
    return InnerLoop(
        steps=config.inner_steps,
        context_rate=0.0 if adapted == "head" else context,
        layer_rates=(layers if adapted == "all" else 0.0, 0.0 if adapted == "context" else layers),
        first_order=config.meta_order == 1,
    )


def adapted_outputs(
    head: Parameters, support: Prepared, query: Prepared, config: WorldConfig, *, steps: int | None = None
) -> Tensor:
    """Return predictions (K, T, O + 1) on the query windows after adaptation to their support windows.

    Args:
        steps: inner steps, 0 for predictions without adaptation; ``None``: as the configuration says.
    """
    seen, asked = support.known.transpose(0, 1), query.known.transpose(0, 1)
    target = support.target.transpose(0, 1)
    networks = networks_of(head, seen.shape[-1], len(seen))
    if steps == 0:
        return predict(networks, asked)
    if config.adapted == "ridge":
        weights, bias = ridge_layer(head, seen, target, config)
        return head_hidden(head, asked, head["c0"]) @ weights + bias
    loop = inner_loop_of(config, head)
    loop = loop if steps is None else replace(loop, steps=steps)
    return predict(adapt(networks, seen, target, support.mask, loop), asked)


def ridge_layer(head: Parameters, seen: Tensor, target: Tensor, config: WorldConfig) -> tuple[Tensor, Tensor]:
    """Return weights (K, H, Y) and bias (K, 1, Y) of the last layer, fitted to what was ``seen`` (K, T, X).

    The inverse of the inner learning rate holds it where it starts: gradient descent with that rate and no end.
    """
    with torch.no_grad() if config.meta_order == 1 else nullcontext():
        features = head_hidden(head, seen, head["c0"])
        residual = target - (features @ head["w2"] + head["b2"])
        precision: Tensor | float = 1 / config.inner_learning_rate
        if config.learned_rates:
            precision = precision * torch.exp(-head["rates"][1])
        weights, bias = ridge_change(features, residual, precision)
    return head["w2"] + weights, head["b2"] + bias


def outer_loss(head: Parameters, support: Prepared, query: Prepared, config: WorldConfig) -> Tensor:
    """Return the mean loss on the query windows after the inner loop, a scalar."""
    outputs = adapted_outputs(head, support, query, config)
    return squared_error(outputs, query.target.transpose(0, 1), query.mask).mean()


def meta_loss(
    sizes: WorldSizes, part: Tensor, support: Windows, query: Windows, scales: Scales, config: WorldConfig
) -> Tensor:
    """Return the mean outer loss over tasks, differentiable with respect to ``part`` (P,)."""
    encoder, head = sizes.views(part)
    seen, asked = (prepare(sizes, encoder, windows, scales) for windows in (support, query))
    return outer_loss(head, seen, asked, config)


def meta_gradients(
    world: WorldState,
    support: Windows,
    query: Windows,
    scales: Scales,
    config: WorldConfig,
    num_gradients: int = 1,
    head: int = 0,
) -> Float32Array:
    """Return ``num_gradients`` MAML gradients (M, P) of encoder and ``head``, each over an equal part of the tasks."""
    size = support.num_windows // num_gradients
    gradients = []
    for g in range(num_gradients):
        some = slice(g * size, (g + 1) * size)
        part = world.sizes.part(world.theta, head).requires_grad_()
        loss = meta_loss(world.sizes, part, support.select(some), query.select(some), scales, config)
        gradients.append(torch.autograd.grad(loss, part)[0])
    return torch.stack(gradients).numpy()


@torch.no_grad()
def adapted_loss(
    world: WorldState, support: Windows, query: Windows, scales: Scales, config: WorldConfig
) -> tuple[float, float]:
    """Return the mean loss on the query windows before and after the inner loop on their support windows.

    Each head adapts by itself; their mean predicts.
    """
    seen, asked = (prepare(world.sizes, encoder_parameters(world), windows, scales) for windows in (support, query))
    heads = [world.sizes.views(world.sizes.part(world.theta, index))[1] for index in range(world.sizes.heads)]
    before, after = (
        torch.stack([adapted_outputs(head, seen, asked, config, steps=steps) for head in heads]).mean(0)
        for steps in (0, None)
    )
    target = asked.target.transpose(0, 1)
    return (
        float(squared_error(before, target, asked.mask).mean()),
        float(squared_error(after, target, asked.mask).mean()),
    )
