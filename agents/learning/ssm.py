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
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from agents.learning import ssm_kernel
from agents.learning.parameters import Shapes, uniform_
from swarm.errors import ConfigError

MIN_RADIUS = 0.5
MAX_RADIUS = 0.99
MAX_PHASE = math.pi / 10
NAMES: Final = ssm_kernel.Weights._fields
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
    """Return features (T, E, D) and states (T, E, S), differentiable with respect to all but ``keep_TE``.

    A long sequence may come in chunks, each going on from the last state of the one before: values and gradients are
    those of the whole. On a CPU this is the compiled kernel, with gradients of first order only (``create_graph``
    raises ``RuntimeError``). On every other device it is `layer_loop`.

    Args:
        inputs_TEI: float32 or float64, as ``w``.
        keep_TE: bool; false where an episode starts.
        state_ES: state carried in.

    Raises:
        ConfigError: shapes, types or devices that do not fit one another.
    """
    _check(w, inputs_TEI, keep_TE, state_ES)
    if inputs_TEI.device.type != "cpu":
        return layer_loop(w, inputs_TEI, keep_TE, state_ES)
    result: tuple[Tensor, Tensor] = _Layer.apply(  # type: ignore[no-untyped-call]
        inputs_TEI, keep_TE, state_ES, *(w[name] for name in NAMES)
    )
    return result


def _check(w: Parameters, inputs_TEI: Tensor, keep_TE: Tensor, state_ES: Tensor) -> None:
    """Raise ``ConfigError`` for what the kernel, which works on bare memory, must not be given."""
    shape, dtype, device = tuple(inputs_TEI.shape), inputs_TEI.dtype, inputs_TEI.device
    (num_inputs, split), features = w["input_w"].shape, w["output_b"].shape[-1]
    if len(shape) != 3 or 0 in (*shape, split, features) or dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"got inputs of shape {shape}, {dtype}, expected (steps, sequences, {num_inputs}), none of them 0, in "
            "float32 or float64"
        )
    expected = (
        ("inputs", inputs_TEI, (*shape[:2], num_inputs), dtype),
        ("keep", keep_TE, shape[:2], torch.bool),
        ("state", state_ES, (shape[1], split), dtype),
        *((name, w[name], its_shape, dtype) for name, its_shape in shapes(num_inputs, split // 2, features)),
    )
    for name, value, its_shape, its_dtype in expected:
        if value.shape != its_shape or value.dtype != its_dtype or value.device != device:
            raise ConfigError(
                f"got {name} of shape {tuple(value.shape)}, {value.dtype} on {value.device}, expected {its_shape}, "
                f"{its_dtype} on {device}: all must belong to one layer and to the same steps and sequences"
            )


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
        """Return features (T, E, D) and states (T, E, S)."""
        w = [parameter.contiguous() for parameter in parameters]
        num_steps, num_sequences, num_inputs = inputs_TEI.shape
        split, width = state_ES.shape[1], len(parameters[-1])
        num_rows = num_steps * num_sequences
        joint = inputs_TEI.new_empty(num_rows, split + num_inputs)
        sigmoids = inputs_TEI.new_empty(2, num_rows, width)
        scratch = inputs_TEI.new_empty(ssm_kernel.scratch_elements(num_inputs, split // 2, width))
        keep, state = keep_TE.contiguous(), state_ES.contiguous()
        ssm_kernel.forward(
            _weights(w),
            inputs_TEI.reshape(num_rows, num_inputs).contiguous().numpy(),
            keep.numpy(),
            state.numpy(),
            joint.numpy(),
            sigmoids.numpy(),
            scratch.numpy(),
        )
        output, gate = sigmoids.sigmoid_()
        features = torch.neg(gate).addcmul_(output, gate, value=2).view(num_steps, num_sequences, width)
        states = joint[:, :split].view(num_steps, num_sequences, split)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(keep, state, joint, sigmoids, scratch, *w)
        return features, states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of what `forward` was given, of those of features (T, E, D) and states (T, E, S)."""
        if torch.is_grad_enabled():
            raise RuntimeError("gradients of the state-space kernel are of first order only; take layer_loop instead")
        upper, following = gradients
        keep, state, joint, sigmoids, scratch, *w = ctx.saved_tensors
        num_rows, (num_sequences, split) = len(joint), state.shape
        if upper is None:
            upper = sigmoids.new_zeros(sigmoids.shape[1:])
        if following is None:
            following = joint.new_empty(0, split)
        found = [torch.empty_like(value) for value in w]
        wanted, carried = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        d_inputs = joint.new_empty(num_rows if wanted else 0, joint.shape[1] - split)
        d_state = joint.new_empty(num_sequences if carried else 0, split)
        ssm_kernel.backward(
            _weights(w),
            upper.reshape(num_rows, -1).contiguous().numpy(),
            keep.numpy(),
            state.numpy(),
            joint.numpy(),
            sigmoids.numpy(),
            following.reshape(-1, split).contiguous().numpy(),
            _weights(found),
            d_inputs.numpy(),
            d_state.numpy(),
            scratch.numpy(),
        )
        return d_inputs.view(*keep.shape, -1) if wanted else None, None, d_state if carried else None, *found


def _weights(values: Sequence[Tensor]) -> ssm_kernel.Weights:
    return ssm_kernel.Weights(*(value.detach().numpy() for value in values))
