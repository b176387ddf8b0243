"""Actor and critics of a member: sizes, birth, and what they compute, in plain PyTorch.

Letters in this file: B batch, X inputs (normalised observation or projection, and encoder features), A actions,
K critics evaluated together.

Acting, votes and tests use these forms. Updates use `agents.learning.passes`: autograd's graph costs more than the
matrix products at these sizes, where a pass is a dozen kernels of 2-60 µs.

Differs from Haarnoja et al. 2018 (arXiv:1812.05905): critics normalise each hidden layer (LayerNorm without affine
part, then ReLU) as in DroQ, Hiraoka et al. 2022, arXiv:2110.02034.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.learning.parameters import ParameterLayout, uniform_

LOG_STD_MIN = -10.0
LOG_STD_MAX = 2.0
NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSizes:
    """Sizes of one member's actor and critics.

    Attributes:
        inputs: X, width of what actor and critics see of the state.
        actions: A.
    """

    inputs: int
    actions: int
    actor_hidden: tuple[int, int]
    critic_hidden: tuple[int, int]

    @property
    def actor(self) -> ParameterLayout:
        """Layout of the actor: two hidden layers, then mean and log standard deviation (2 A)."""
        first, second = self.actor_hidden
        return _mlp_layout(self.inputs, first, second, 2 * self.actions)

    @property
    def critic(self) -> ParameterLayout:
        """Layout of one critic on (X, A)."""
        first, second = self.critic_hidden
        return _mlp_layout(self.inputs + self.actions, first, second, 1)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters: two critics, then the actor."""
        return 2 * self.critic.size + self.actor.size

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return views (2, critic.size) and (actor.size,) of a member's flat vector."""
        critics = 2 * self.critic.size
        return theta[:critics].view(2, -1), theta[critics:]


def _mlp_layout(inputs: int, first: int, second: int, outputs: int) -> ParameterLayout:
    return ParameterLayout(
        shapes=(
            ("w1", (inputs, first)),
            ("b1", (first,)),
            ("w2", (first, second)),
            ("b2", (second,)),
            ("w3", (second, outputs)),
            ("b3", (outputs,)),
        )
    )


def init_networks(
    sizes: NetworkSizes,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return a fresh flat vector (P,); the actor's output layer starts small, so that first actions are moderate.

    Args:
        generator: of the CPU, where it is drawn, so that a seed gives the same numbers everywhere.
        device: where it is put.
    """
    theta = torch.empty(sizes.num_parameters, dtype=dtype)
    critics, actor = sizes.split(theta)
    for layout, flat, last_scale in (
        (sizes.critic, critics[0], 1.0),
        (sizes.critic, critics[1], 1.0),
        (sizes.actor, actor, 0.1),
    ):
        views = layout.views(flat)
        for index in ("1", "2", "3"):
            scale = last_scale if index == "3" else 1.0
            fan_in = views["w" + index].shape[0]
            uniform_(views["w" + index], fan_in, generator, scale)
            uniform_(views["b" + index], fan_in, generator, scale)
    return theta.to(device)


def actor_output(sizes: NetworkSizes, actor: Tensor, inputs_BX: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and clamped log standard deviation, each (B, A), before squashing."""
    w = sizes.actor.views(actor)
    hidden = torch.relu(torch.addmm(w["b1"], inputs_BX, w["w1"]))
    hidden = torch.relu(torch.addmm(w["b2"], hidden, w["w2"]))
    out = torch.addmm(w["b3"], hidden, w["w3"])
    mean, log_std = out[:, : sizes.actions], out[:, sizes.actions :]
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def critic_values(sizes: NetworkSizes, critics_KP: Tensor, state_action_BI: Tensor) -> Tensor:
    """Return values (K, B) of K critics with flat parameters (K, P)."""
    w = sizes.critic.views(critics_KP)
    first, second = sizes.critic_hidden
    hidden = state_action_BI @ w["w1"] + w["b1"][:, None]
    hidden = torch.relu(torch.nn.functional.layer_norm(hidden, (first,), eps=NORM_EPSILON))
    hidden = hidden @ w["w2"] + w["b2"][:, None]
    hidden = torch.relu(torch.nn.functional.layer_norm(hidden, (second,), eps=NORM_EPSILON))
    return (hidden @ w["w3"] + w["b3"][:, None])[..., 0]
