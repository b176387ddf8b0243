"""Actor and critics of a member, with hand-written forward and backward passes into preallocated buffers.

Letters in this file: B batch, X inputs (normalised observation or projection, and encoder features), A actions,
H hidden units, K critics evaluated together.

Autograd's graph costs more here than the matrix products themselves: at these sizes a pass is a dozen kernels of
2-60 µs. The backward passes are checked against autograd in float64 (`tests/agents/learning/test_networks.py`).

Differs from Haarnoja et al. 2018 (arXiv:1812.05905): critics normalise each hidden layer (LayerNorm without affine
part, then ReLU) as in DroQ, Hiraoka et al. 2022, arXiv:2110.02034.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.learning.parameters import ParameterLayout, uniform_

LOG_STD_MIN = -10.0
LOG_STD_MAX = 2.0
NORM_EPSILON = 1e-5
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

relu_backward = torch.ops.aten.threshold_backward.grad_input


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


def init_networks(sizes: NetworkSizes, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a fresh flat vector (P,); the actor's output layer starts small, so that first actions are moderate."""
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
    return theta


def actor_output(sizes: NetworkSizes, actor: Tensor, inputs_BX: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and clamped log standard deviation, each (B, A), before squashing."""
    w = sizes.actor.views(actor)
    hidden = torch.relu(torch.addmm(w["b1"], inputs_BX, w["w1"]))
    hidden = torch.relu(torch.addmm(w["b2"], hidden, w["w2"]))
    out = torch.addmm(w["b3"], hidden, w["w3"])
    mean, log_std = out[:, : sizes.actions], out[:, sizes.actions :]
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def squashed_log_prob(log_std: Tensor, pre_tanh: Tensor, noise: Tensor) -> Tensor:
    """Log density (B,) of a = tanh(u), u = mean + std · noise. Source: arXiv:1812.05905, appendix C.

    log(1 − tanh²u) is written as 2 (log 2 − u − softplus(−2u)), which cannot overflow.
    """
    gaussian = -0.5 * noise.square() - log_std - _HALF_LOG_2PI
    correction = 2 * (math.log(2) - pre_tanh - torch.nn.functional.softplus(-2 * pre_tanh))
    return (gaussian - correction).sum(-1)


def critic_values(sizes: NetworkSizes, critics_KP: Tensor, state_action_BI: Tensor) -> Tensor:
    """Return values (K, B) of K critics with flat parameters (K, P)."""
    w = sizes.critic.views(critics_KP)
    first, second = sizes.critic_hidden
    hidden = state_action_BI @ w["w1"] + w["b1"][:, None]
    hidden = torch.relu(torch.nn.functional.layer_norm(hidden, (first,), eps=NORM_EPSILON))
    hidden = hidden @ w["w2"] + w["b2"][:, None]
    hidden = torch.relu(torch.nn.functional.layer_norm(hidden, (second,), eps=NORM_EPSILON))
    return (hidden @ w["w3"] + w["b3"][:, None])[..., 0]


class NormalizedLayer:
    """LayerNorm (no affine part) and ReLU of two critics at once, in buffers (2, B, H) that are written in place.

    The composed kernels take 25 µs where `native_layer_norm` and its backward take 40-150: they allocate nothing.

    Attributes:
        z: pre-activation on entry to `forward`, its normalised form afterwards; ``z_k`` are its two halves.
        a: activation; ``a_t`` are the transposes of its halves.
        d: gradient at the activation on entry to `backward`, at the pre-activation afterwards.
    """

    def __init__(self, batch_size: int, width: int, dtype: torch.dtype) -> None:
        shape = (2, batch_size, width)
        self.z, self.a, self.d = (torch.empty(shape, dtype=dtype) for _ in range(3))
        self._scratch = torch.empty(shape, dtype=dtype)
        self._sum, self._std, self._sum_d = (torch.empty(2, batch_size, 1, dtype=dtype) for _ in range(3))
        self._floor = torch.tensor(math.sqrt(width * NORM_EPSILON), dtype=dtype)
        self._root, self._share = 1 / math.sqrt(width), 1 / width
        self.z_k, self.a_k, self.d_k = list(self.z), list(self.a), list(self.d)
        self.a_t = [a.t() for a in self.a]

    def forward(self) -> None:
        """Normalise ``z`` in place and write its positive part to ``a``."""
        self.z.sub_(torch.sum(self.z, -1, keepdim=True, out=self._sum), alpha=self._share)
        torch.linalg.vector_norm(self.z, dim=-1, keepdim=True, out=self._std)
        torch.hypot(self._std, self._floor, out=self._std).mul_(self._root)
        torch.clamp_min(self.z.div_(self._std), 0, out=self.a)

    def backward(self) -> None:
        """Turn the gradient ``d`` at ``a`` into the gradient before normalisation."""
        d = relu_backward(self.d, self.a, 0, grad_input=self.d)
        torch.sum(torch.mul(d, self.z, out=self._scratch), -1, keepdim=True, out=self._sum)
        d.sub_(torch.sum(d, -1, keepdim=True, out=self._sum_d), alpha=self._share)
        d.addcmul_(self.z, self._sum, value=-self._share).div_(self._std)


class CriticWeights:
    """Views of one critic's flat parameters (or gradient) in the forms that `CriticPair` multiplies by."""

    def __init__(self, sizes: NetworkSizes, flat: Tensor) -> None:
        w = sizes.critic.views(flat)
        self.w1, self.b1, self.w2, self.b2, self.w3, self.b3 = (
            w[name] for name in ("w1", "b1", "w2", "b2", "w3", "b3")
        )
        self.w2_t = self.w2.t()
        self.action_t = self.w1[sizes.inputs :].t()


class OnlineCritics:
    """The two critics that are trained, with their gradient: views one by one and both at once."""

    def __init__(self, sizes: NetworkSizes, flat_2P: Tensor, gradient_2P: Tensor) -> None:
        self.pair = [CriticWeights(sizes, flat) for flat in flat_2P]
        self.gradients = [CriticWeights(sizes, flat) for flat in gradient_2P]
        self.last = sizes.critic.views(flat_2P)["w3"].transpose(1, 2)
        both = sizes.critic.views(gradient_2P)
        self.bias_gradients = (both["b1"], both["b2"], both["b3"][:, 0])


class CriticPair:
    """Two critics on one batch: forward and backward without autograd. Buffers are reused from call to call."""

    def __init__(self, sizes: NetworkSizes, batch_size: int, dtype: torch.dtype) -> None:
        first, second = sizes.critic_hidden
        self._first = NormalizedLayer(batch_size, first, dtype)
        self._second = NormalizedLayer(batch_size, second, dtype)
        self._q = torch.empty(2, batch_size, 1, dtype=dtype)
        self._q_k, self._values = list(self._q), self._q[..., 0]
        self._d_action = torch.empty(batch_size, sizes.actions, dtype=dtype)

    def forward(self, pair: Sequence[CriticWeights], x: Tensor) -> Tensor:
        """Return values (2, B) of two critics on ``x`` (B, X + A), valid until the next call."""
        one, two = self._first, self._second
        for k in (0, 1):
            torch.addmm(pair[k].b1, x, pair[k].w1, out=one.z_k[k])
        one.forward()
        for k in (0, 1):
            torch.addmm(pair[k].b2, one.a_k[k], pair[k].w2, out=two.z_k[k])
        two.forward()
        for k in (0, 1):
            torch.addmm(pair[k].b3, two.a_k[k], pair[k].w3, out=self._q_k[k])
        return self._values

    def _backward_hidden(self, online: OnlineCritics, dq_2B1: Tensor) -> None:
        one, two = self._first, self._second
        torch.mul(dq_2B1, online.last, out=two.d)
        two.backward()
        for k in (0, 1):
            torch.mm(two.d_k[k], online.pair[k].w2_t, out=one.d_k[k])
        one.backward()

    def backward_parameters(self, online: OnlineCritics, x: Tensor, dq_2B1: Tensor) -> None:
        """Write the gradient of Σ dq · q with respect to all weights, for the batch of the last `forward`."""
        self._backward_hidden(online, dq_2B1)
        one, two, x_t = self._first, self._second, x.t()
        for k in (0, 1):
            gradient = online.gradients[k]
            torch.mm(two.a_t[k], dq_2B1[k], out=gradient.w3)
            torch.mm(one.a_t[k], two.d_k[k], out=gradient.w2)
            torch.mm(x_t, one.d_k[k], out=gradient.w1)
        b1, b2, b3 = online.bias_gradients
        torch.sum(one.d, 1, out=b1)
        torch.sum(two.d, 1, out=b2)
        torch.sum(dq_2B1[..., 0], 1, out=b3)

    def backward_action(self, online: OnlineCritics, dq_2B1: Tensor) -> Tensor:
        """Return the gradient of Σ dq · q with respect to the actions, (B, A), valid until the next call."""
        self._backward_hidden(online, dq_2B1)
        torch.mm(self._first.d_k[0], online.pair[0].action_t, out=self._d_action)
        return self._d_action.addmm_(self._first.d_k[1], online.pair[1].action_t)


class ActorPass:
    """The actor on one batch: sampling and backward without autograd. Buffers are reused from call to call."""

    def __init__(self, sizes: NetworkSizes, flat: Tensor, gradient: Tensor, batch_size: int) -> None:
        first, second = sizes.actor_hidden
        actions, dtype = sizes.actions, flat.dtype
        self._w, self._g = sizes.actor.views(flat), sizes.actor.views(gradient)
        self._w2_t, self._w3_t = self._w["w2"].t(), self._w["w3"].t()
        self._a1, self._d1 = (torch.empty(batch_size, first, dtype=dtype) for _ in range(2))
        self._a2, self._d2 = (torch.empty(batch_size, second, dtype=dtype) for _ in range(2))
        self._out, self._d_out = (torch.empty(batch_size, 2 * actions, dtype=dtype) for _ in range(2))
        self._mean, self._raw_log_std = self._out[:, :actions], self._out[:, actions:]
        self._d_mean, self._d_log_std = self._d_out[:, :actions], self._d_out[:, actions:]
        self._log_std, self._scaled_noise, self._pre_tanh = (
            torch.empty(batch_size, actions, dtype=dtype) for _ in range(3)
        )

    def sample(self, x: Tensor, noise: Tensor, action: Tensor) -> Tensor:
        """Write tanh-squashed actions (B, A) into ``action`` and return their log density (B,)."""
        w = self._w
        torch.addmm(w["b1"], x, w["w1"], out=self._a1).relu_()
        torch.addmm(w["b2"], self._a1, w["w2"], out=self._a2).relu_()
        torch.addmm(w["b3"], self._a2, w["w3"], out=self._out)
        torch.clamp(self._raw_log_std, LOG_STD_MIN, LOG_STD_MAX, out=self._log_std)
        torch.exp(self._log_std, out=self._scaled_noise).mul_(noise)
        torch.add(self._mean, self._scaled_noise, out=self._pre_tanh)
        torch.tanh(self._pre_tanh, out=action)
        return squashed_log_prob(self._log_std, self._pre_tanh, noise)

    def backward(self, x: Tensor, action: Tensor, d_action: Tensor, d_log_prob: float) -> None:
        """Write the weight gradient of Σ (d_action · a + d_log_prob · log π(a)) for the batch of the last `sample`.

        ∂ log π / ∂u through the squashing is 2a, ∂ log π / ∂ log_std is −1, and u = mean + exp(log_std) · noise.
        """
        g = self._g
        torch.addcmul(d_action, d_action * action, action, value=-1, out=self._d_mean)
        self._d_mean.add_(action, alpha=2 * d_log_prob)
        torch.mul(self._d_mean, self._scaled_noise, out=self._d_log_std)
        # Where the clamp held the log standard deviation, no gradient passes.
        self._d_log_std.sub_(d_log_prob).mul_(self._raw_log_std == self._log_std)
        torch.mm(self._a2.t(), self._d_out, out=g["w3"])
        torch.sum(self._d_out, 0, out=g["b3"])
        d2 = torch.mm(self._d_out, self._w3_t, out=self._d2)
        relu_backward(d2, self._a2, 0, grad_input=d2)
        torch.mm(self._a1.t(), d2, out=g["w2"])
        torch.sum(d2, 0, out=g["b2"])
        d1 = torch.mm(d2, self._w2_t, out=self._d1)
        relu_backward(d1, self._a1, 0, grad_input=d1)
        torch.mm(x.t(), d1, out=g["w1"])
        torch.sum(d1, 0, out=g["b1"])
