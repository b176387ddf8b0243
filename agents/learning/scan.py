"""The linear recurrence of a diagonal state-space model, in step, loop and chunked form, with resets.

Letters in this file: T time steps, E sequences, N complex states, C chunks, L steps of a chunk.

All forms compute x[t] = keep[t] · λ · x[t−1] + u[t]; ``keep`` is 0 where an episode starts, so that nothing flows
across. Products of decays are taken in linear space: |λ| < 1 only underflows to zero, never to −inf or NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 64


def step(decay_N: Tensor, keep_E: Tensor, input_EN: Tensor, state_EN: Tensor) -> Tensor:
    """Return the next state (E, N)."""
    return input_EN + keep_E[:, None] * decay_N * state_EN


def scan_loop(decay_N: Tensor, keep_TE: Tensor, input_TEN: Tensor, state_EN: Tensor) -> Tensor:
    """Return all states (T, E, N), one step after the other: the reference that the other forms are held to."""
    states = []
    for keep_E, input_EN in zip(keep_TE, input_TEN, strict=True):
        state_EN = step(decay_N, keep_E, input_EN, state_EN)
        states.append(state_EN)
    return torch.stack(states)


def scan_chunked(decay_N: Tensor, keep_TE: Tensor, input_TEN: Tensor, state_EN: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return all states (T, E, N): chunks side by side from zero, then carried states added. No autograd.

    Two short loops of L and T / L steps replace one of T steps.
    """
    num_steps, num_sequences, num_states = input_TEN.shape
    if num_steps <= chunk:
        return _scan_short(decay_N, keep_TE, input_TEN, state_EN)
    num_chunks = -(-num_steps // chunk)
    padding = num_chunks * chunk - num_steps
    keep = torch.nn.functional.pad(keep_TE, (0, 0, 0, padding)).view(num_chunks, chunk, num_sequences)
    x = torch.nn.functional.pad(input_TEN, (0, 0, 0, 0, 0, padding)).view(num_chunks, chunk, num_sequences, num_states)
    keep = keep.to(x.real.dtype)
    for j in range(1, chunk):
        torch.addcmul(x[:, j], x[:, j - 1] * keep[:, j, :, None], decay_N, out=x[:, j])
    powers = decay_N[None] ** torch.arange(1, chunk + 1)[:, None]
    alive = torch.cumprod(keep, dim=1)
    carry = torch.empty(num_chunks, num_sequences, num_states, dtype=x.dtype)
    carry[0] = state_EN
    for c in range(1, num_chunks):
        carry[c] = x[c - 1, -1] + powers[-1] * (alive[c - 1, -1][:, None] * carry[c - 1])
    x.addcmul_(alive[..., None] * carry[:, None], powers[:, None])
    return x.view(num_chunks * chunk, num_sequences, num_states)[:num_steps]


def _scan_short(decay_N: Tensor, keep_TE: Tensor, input_TEN: Tensor, state_EN: Tensor) -> Tensor:
    decay_TEN = keep_TE.to(decay_N.real.dtype)[..., None] * decay_N
    x = torch.empty_like(input_TEN, memory_format=torch.contiguous_format)
    for t in range(len(x)):
        state_EN = torch.addcmul(input_TEN[t], decay_TEN[t], state_EN, out=x[t])
    return x


class _Scan(torch.autograd.Function):
    """`scan_chunked` with the adjoint recurrence g[t] = ∂x[t] + keep[t+1] · λ* · g[t+1] as its backward pass."""

    @staticmethod
    def forward(ctx: Any, decay_N: Tensor, keep_TE: Tensor, input_TEN: Tensor, state_EN: Tensor) -> Tensor:  # noqa: ANN401
        x = scan_chunked(decay_N, keep_TE, input_TEN, state_EN)
        ctx.save_for_backward(decay_N, keep_TE, state_EN, x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:  # noqa: ANN401
        decay_N, keep_TE, state_EN, x = ctx.saved_tensors
        conjugate = decay_N.conj().resolve_conj()
        zero = torch.zeros_like(state_EN)
        shifted = torch.cat([torch.zeros_like(keep_TE[:1]), keep_TE.flip(0)[:-1]])
        g = scan_chunked(conjugate, shifted, gradients[0].flip(0), zero).flip(0)
        keep = keep_TE.to(x.real.dtype)[..., None]
        previous = torch.cat([state_EN[None], x[:-1]])
        d_decay = (keep * g * previous.conj()).sum((0, 1))
        return d_decay, None, g, keep[0] * conjugate * g[0]


def scan(decay_N: Tensor, keep_TE: Tensor, input_TEN: Tensor, state_EN: Tensor) -> Tensor:
    """Return x[t] = keep[t] · λ · x[t−1] + u[t] for all t, shape (T, E, N), differentiable (first order).

    Args:
        decay_N: λ, complex, |λ| < 1.
        keep_TE: bool; false where an episode starts.
        input_TEN: u, complex.
        state_EN: state carried in, complex.
    Source: Orvieto et al. 2023, arXiv:2303.06349, eq. 3.
    """
    result: Tensor = _Scan.apply(decay_N, keep_TE, input_TEN, state_EN)  # type: ignore[no-untyped-call]
    return result
