from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.learning.scan import scan, scan_chunked, scan_loop, step

SEQUENCES, STATES = 3, 4


def problem(num_steps: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    radius = torch.rand(STATES, generator=generator, dtype=torch.float64) * 0.99
    decay = torch.polar(radius, torch.rand(STATES, generator=generator, dtype=torch.float64))
    keep = torch.rand(num_steps, SEQUENCES, generator=generator) > 0.1
    inputs = torch.randn(num_steps, SEQUENCES, STATES, generator=generator, dtype=torch.complex128)
    state = torch.randn(SEQUENCES, STATES, generator=generator, dtype=torch.complex128)
    return decay, keep, inputs, state


@pytest.mark.parametrize("num_steps", [1, 2, 7, 8, 9, 33, 100])
@pytest.mark.parametrize("chunk", [8, 16])
def test_chunked_form_equals_the_loop(num_steps: int, chunk: int) -> None:
    given = problem(num_steps)
    torch.testing.assert_close(scan_chunked(*given, chunk=chunk), scan_loop(*given), rtol=1e-12, atol=1e-12)


def test_loop_equals_single_steps() -> None:
    decay, keep, inputs, state = problem(5)
    states = scan_loop(decay, keep, inputs, state)
    for t in range(5):
        state = step(decay, keep[t], inputs[t], state)
        assert torch.equal(states[t], state)


@pytest.mark.parametrize("num_steps", [6, 150])
def test_nothing_flows_across_a_reset(num_steps: int) -> None:
    decay, keep, inputs, state = problem(num_steps)
    keep[:] = True
    keep[num_steps // 2, 1] = False
    changed = inputs.clone()
    changed[: num_steps // 2] += 1
    before, after = (scan_chunked(decay, keep, u, state) for u in (inputs, changed))
    assert torch.equal(before[num_steps // 2 :, 1], after[num_steps // 2 :, 1])
    assert not torch.equal(before[num_steps // 2 :, 0], after[num_steps // 2 :, 0])


def test_decay_near_zero_underflows_without_nan() -> None:
    _, keep, inputs, state = problem(200)
    tiny = torch.full((STATES,), 1e-200 + 0j, dtype=torch.complex128)
    assert torch.view_as_real(scan_chunked(tiny, keep, inputs, state)).isfinite().all()


@pytest.mark.parametrize("num_steps", [5, 70])
def test_gradients_equal_finite_differences(num_steps: int) -> None:
    decay, keep, inputs, state = problem(num_steps)
    free = [x.clone().requires_grad_() for x in (decay, inputs, state)]

    def function(decay: Tensor, inputs: Tensor, state: Tensor) -> Tensor:
        return torch.view_as_real(scan(decay, keep, inputs, state))[:, :1, :2]

    assert torch.autograd.gradcheck(function, free, fast_mode=num_steps > 10)


def test_gradients_equal_those_of_the_loop() -> None:
    decay, keep, inputs, state = problem(90)
    results = []
    for form in (scan, scan_loop):
        free = [x.clone().requires_grad_() for x in (decay, inputs, state)]
        loss = torch.view_as_real(form(free[0], keep, free[1], free[2])).square().sum()
        results.append(torch.autograd.grad(loss, free))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)
