"""The state-space layer: projected input, diagonal linear recurrence, gated output; its kernel and its reference.

Letters in this file: T time steps, E sequences, I inputs, N complex states, S = 2 N (N real parts, then N imaginary
parts), D features.

    x[t] = keep[t] λ x[t−1] + γ ⊙ B u[t]        γ = √(1 − |λ|²) keeps the state's variance near that of the input
    h[t] = tanh(C x[t] + K u[t] + c) · sigmoid(G x[t] + g)

``keep`` is 0 where an episode starts, so that nothing flows across. Products of decays are taken in linear space:
|λ| < 1 only underflows to zero, never to −inf or NaN.

Source: Orvieto et al. 2023, arXiv:2303.06349, eqs. 3-7. Differs from the paper: C is a real matrix on real and
imaginary parts, and the block ends in tanh · sigmoid, so that features are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from agents.learning import ssm_kernel
from agents.learning.parameters import Shapes, uniform_

MIN_RADIUS = 0.5
MAX_RADIUS = 0.99
MAX_PHASE = math.pi / 10
NAMES: Final = ("nu", "theta", "input_w", "output_w", "skip_w", "output_b", "gate_w", "gate_b")
Parameters = Mapping[str, Tensor]


def shapes(inputs: int, states: int, features: int) -> Shapes:
    """Return the arrays of the layer, ``nu`` and ``theta`` being log(−log|λ|) and log phase."""
    return (
        ("nu", (states,)),
        ("theta", (states,)),
        ("input_w", (inputs, 2 * states)),
        ("output_w", (2 * states, features)),
        ("skip_w", (inputs, features)),
        ("output_b", (features,)),
        ("gate_w", (2 * states, features)),
        ("gate_b", (features,)),
    )


def state_size(inputs: int, states: int, features: int) -> int:
    """Return S."""
    return 2 * states


def init(w: Parameters, generator: torch.Generator) -> None:
    """Fill ``w`` in place, on its own device, which must be the generator's.

    |λ| has uniform area in [0.5, 0.99], the phase is in (0, π/10).
    """
    nu, (inputs, width) = w["nu"], w["input_w"].shape
    u = torch.rand(nu.shape, generator=generator, dtype=nu.dtype, device=nu.device)
    nu.copy_(torch.log(-0.5 * torch.log(u * (MAX_RADIUS**2 - MIN_RADIUS**2) + MIN_RADIUS**2)))
    phase = torch.rand(nu.shape, generator=generator, dtype=nu.dtype, device=nu.device)
    w["theta"].copy_(torch.log(MAX_PHASE * phase + 1e-4))
    uniform_(w["input_w"], inputs, generator, scale=math.sqrt(1.5))
    uniform_(w["output_w"], width, generator, scale=math.sqrt(3))
    uniform_(w["skip_w"], inputs, generator, scale=math.sqrt(3))
    uniform_(w["gate_w"], width, generator)
    w["output_b"].zero_()
    w["gate_b"].zero_()


def decay(w: Parameters) -> Tensor:
    """Return λ, real parts, then imaginary parts, (S,)."""
    radius, phase = torch.exp(-torch.exp(w["nu"])), torch.exp(w["theta"])
    return torch.cat([radius * torch.cos(phase), radius * torch.sin(phase)])


def drive_matrix(w: Parameters) -> Tensor:
    """Return γ ⊙ B (I, S)."""
    gamma = torch.sqrt(1 - torch.exp(-2 * torch.exp(w["nu"])))
    return w["input_w"] * torch.cat([gamma, gamma])


def turn(decay_S: Tensor, state_ES: Tensor) -> Tensor:
    """Return λ ⊙ x (E, S)."""
    (a, b), (real, imaginary) = decay_S.chunk(2), state_ES.chunk(2, dim=-1)
    return torch.cat([a * real - b * imaginary, a * imaginary + b * real], dim=-1)


def readout(w: Parameters, states: Tensor, inputs: Tensor) -> Tensor:
    """Return features (…, D) from states (…, S) and the inputs (…, I) of the same step."""
    output = states @ w["output_w"] + inputs @ w["skip_w"] + w["output_b"]
    return torch.tanh(output) * torch.sigmoid(states @ w["gate_w"] + w["gate_b"])


def step(w: Parameters, inputs_EI: Tensor, keep_E: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (E, D) and the next state (E, S); differentiable, on any device."""
    kept = torch.where(keep_E[:, None], turn(decay(w), state_ES), 0)
    state_ES = kept + inputs_EI @ drive_matrix(w)
    return readout(w, state_ES, inputs_EI), state_ES


def layer_loop(w: Parameters, inputs_TEI: Tensor, keep_TE: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `layer` returns, step by step through autograd: the reference that the kernel is held to."""
    factor, driven = decay(w), inputs_TEI @ drive_matrix(w)
    states = []
    for keep_E, driven_ES in zip(keep_TE, driven, strict=True):
        state_ES = torch.where(keep_E[:, None], turn(factor, state_ES), 0) + driven_ES
        states.append(state_ES)
    states_TES = torch.stack(states)
    return readout(w, states_TES, inputs_TEI), states_TES


def layer(w: Parameters, inputs_TEI: Tensor, keep_TE: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (T, E, D), differentiable with respect to ``w`` and the inputs, and states (T, E, S).

    On a CPU this is the compiled kernel: gradients of first order only (``create_graph`` raises ``RuntimeError``), none
    at the carried state nor through the states. On every other device it is `layer_loop`.

    Args:
        inputs_TEI: float32 or float64, as ``w``.
        keep_TE: bool; false where an episode starts.
        state_ES: state carried in.
    """
    if inputs_TEI.device.type != "cpu":
        return layer_loop(w, inputs_TEI, keep_TE, state_ES)
    result: tuple[Tensor, Tensor] = _Layer.apply(  # type: ignore[no-untyped-call]
        inputs_TEI, keep_TE, state_ES, *(w[name] for name in NAMES)
    )
    return result


class _Layer(torch.autograd.Function):
    """`ssm_kernel` behind autograd; it keeps states, inputs and both sigmoids for the way back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context
        inputs_TEI: Tensor,
        keep_TE: Tensor,
        state_ES: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        m = _matrices(dict(zip(NAMES, parameters, strict=True)))
        num_steps, num_sequences, num_inputs = inputs_TEI.shape
        split, width = m["gate"].shape
        num_rows = num_steps * num_sequences
        joint = inputs_TEI.new_empty(num_rows, split + num_inputs)
        sigmoids = inputs_TEI.new_empty(2, num_rows, width)
        scratch = inputs_TEI.new_empty(ssm_kernel.workspace(num_inputs, split // 2, width))
        keep, state = keep_TE.contiguous(), state_ES.contiguous()
        ssm_kernel.forward(
            inputs_TEI.reshape(num_rows, num_inputs).contiguous().numpy(),
            keep.numpy(),
            state.numpy(),
            _arrays(m),
            joint.numpy(),
            sigmoids.numpy(),
            scratch.numpy(),
        )
        sigmoids.sigmoid_()
        output, gate = sigmoids
        features = torch.neg(gate).addcmul_(output, gate, value=2).view(num_steps, num_sequences, width)
        states = joint[:, :split].view(num_steps, num_sequences, split)
        ctx.mark_non_differentiable(states)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(keep, state, joint, sigmoids, scratch, *m.values(), *parameters[:3])
        return features, states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        upper = gradients[0]
        if torch.is_grad_enabled():
            raise RuntimeError("gradients of the state-space kernel are of first order only; take layer_loop instead")
        if upper is None:
            return (None,) * (3 + len(NAMES))
        keep, state, joint, sigmoids, scratch, *saved = ctx.saved_tensors
        m, (nu, theta, input_w) = dict(zip(ssm_kernel.Matrices._fields, saved, strict=False)), saved[-3:]
        found = {name: torch.zeros_like(value) for name, value in m.items()}
        num_rows = len(joint) if ctx.needs_input_grad[0] else 0
        found["inputs"] = joint.new_empty(num_rows, len(input_w))
        ssm_kernel.backward(
            upper.reshape(len(joint), -1).contiguous().numpy(),
            keep.numpy(),
            state.numpy(),
            _arrays(m),
            joint.numpy(),
            sigmoids.numpy(),
            ssm_kernel.Gradients(**{name: value.numpy() for name, value in found.items()}),
            scratch.numpy(),
        )
        inputs = found["inputs"].view(*keep.shape, -1) if num_rows else None
        return inputs, None, None, *_through_parameters(nu, theta, input_w, m, found)


def _matrices(w: Parameters) -> dict[str, Tensor]:
    """Return `ssm_kernel.Matrices` as tensors."""
    return {
        "decay": decay(w),
        "drive": drive_matrix(w),
        "output": torch.cat([w["output_w"], w["skip_w"]]).mul_(2),
        "output_b": 2 * w["output_b"],
        "gate": w["gate_w"].contiguous(),
        "gate_b": w["gate_b"].contiguous(),
    }


def _arrays(m: Mapping[str, Tensor]) -> ssm_kernel.Matrices:
    return ssm_kernel.Matrices(**{name: value.numpy() for name, value in m.items()})


def _through_parameters(
    nu: Tensor, theta: Tensor, input_w: Tensor, m: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients at the parameters, in the order of `NAMES`, from those at the kernel's matrices."""
    rate, phase = torch.exp(nu), torch.exp(theta)
    square = torch.exp(-2 * rate)
    gamma = torch.sqrt(1 - square)
    (real, imaginary), (d_real, d_imaginary) = m["decay"].chunk(2), found["decay"].chunk(2)
    d_gamma = (found["drive"] * input_w).sum(0).view(2, -1).sum(0)
    split = len(m["gate"])
    return (
        rate * (d_gamma * square / gamma - d_real * real - d_imaginary * imaginary),
        phase * (d_imaginary * real - d_real * imaginary),
        found["drive"] * torch.cat([gamma, gamma]),
        2 * found["output"][:split],
        2 * found["output"][split:],
        2 * found["output_b"],
        found["gate"],
        found["gate_b"],
    )
