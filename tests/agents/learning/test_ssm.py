from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.learning import ssm, ssm_kernel
from agents.learning.parameters import ParameterLayout
from agents.learning.ssm import layer, layer_loop, step
from swarm.errors import ConfigError

Problem = tuple[dict[str, Tensor], Tensor, Tensor, Tensor]


def problem(
    num_steps: int,
    num_sequences: int = 3,
    sizes: tuple[int, int, int] = (5, 4, 6),
    *,
    resets: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Parameters, inputs, keep and state for (I, N, D) = ``sizes``."""
    generator = torch.Generator().manual_seed(num_steps)
    layout = ParameterLayout(shapes=ssm.shapes(*sizes))
    flat = torch.zeros(layout.size, dtype=dtype)
    ssm.init(layout.views(flat), generator)
    flat += 0.1 * torch.randn(flat.shape, generator=generator, dtype=dtype)
    inputs = torch.randn(num_steps, num_sequences, sizes[0], generator=generator, dtype=dtype)
    keep = torch.rand(num_steps, num_sequences, generator=generator) >= resets
    state = torch.randn(num_sequences, 2 * sizes[1], generator=generator, dtype=dtype)
    return layout.views(flat), inputs, keep, state


def gradients(form, given: Problem) -> tuple[Tensor, ...]:  # noqa: ANN001
    """Of features and states, at inputs, state and parameters."""
    w, inputs, keep, state = given
    free = {name: value.clone().requires_grad_() for name, value in w.items()}
    inputs, state = inputs.clone().requires_grad_(), state.clone().requires_grad_()
    generator, total = torch.Generator().manual_seed(1), torch.zeros(())
    for found in form(free, inputs, keep, state):
        total = total + (found * torch.randn(found.shape, generator=generator, dtype=found.dtype)).sum()
    return torch.autograd.grad(total, [inputs, state, *free.values()])


@pytest.mark.parametrize("resets", [0.0, 0.1])
@pytest.mark.parametrize(
    ("num_steps", "num_sequences"),
    [(1, 1), (2, 3), (33, 3), (ssm_kernel.BLOCK_ROWS, 2), (3, ssm_kernel.BLOCK_ROWS + 5)],
)
def test_kernel_equals_the_loop(num_steps: int, num_sequences: int, resets: float) -> None:
    """Also where a block is a part of the steps, or a part of the sequences."""
    given = problem(num_steps, num_sequences, resets=resets)
    for mine, reference in zip(layer(*given), layer_loop(*given), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)
    for mine, reference in zip(gradients(layer, given), gradients(layer_loop, given), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", [(24, 32, 32), (54, 32, 32), (64, 32, 64), (1, 1, 1)])
def test_kernel_equals_the_loop_in_float32(sizes: tuple[int, int, int]) -> None:
    given = problem(40, 16, sizes, dtype=torch.float32)
    for mine, reference in zip(layer(*given), layer_loop(*given), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
    for mine, reference in zip(gradients(layer, given), gradients(layer_loop, given), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


def test_loop_equals_single_steps() -> None:
    w, inputs, keep, state = problem(6)
    features, states = layer_loop(w, inputs, keep, state)
    for t in range(6):
        one, state = step(w, inputs[t], keep[t], state)
        torch.testing.assert_close(one, features[t], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(state, states[t], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("cut", [1, 20, 49])
def test_pieces_that_carry_the_state_equal_the_whole(cut: int) -> None:
    w, inputs, keep, state = problem(50)
    whole = layer(w, inputs, keep, state)
    first = layer(w, inputs[:cut], keep[:cut], state)
    rest = layer(w, inputs[cut:], keep[cut:], first[1][-1])
    for part, expected in zip(zip(first, rest, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(part), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("num_sequences", [3, ssm_kernel.BLOCK_ROWS + 5])
@pytest.mark.parametrize("cut", [1, 20, 49])
def test_pieces_that_carry_the_state_have_the_gradients_of_the_whole(cut: int, num_sequences: int) -> None:
    def in_pieces(w: dict[str, Tensor], inputs: Tensor, keep: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        first = layer(w, inputs[:cut], keep[:cut], state)
        rest = layer(w, inputs[cut:], keep[cut:], first[1][-1])
        return torch.cat([first[0], rest[0]]), torch.cat([first[1], rest[1]])

    given = problem(50, num_sequences)
    for parts, whole in zip(gradients(in_pieces, given), gradients(layer, given), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-11)


def test_the_recurrence_is_that_of_complex_numbers() -> None:
    w, inputs, keep, state = problem(8, resets=0.0)
    half = len(w["nu"])
    turned = torch.complex(*ssm.decay(w).chunk(2))
    torch.testing.assert_close(turned, torch.polar(torch.exp(-torch.exp(w["nu"])), torch.exp(w["theta"])))
    driven = inputs @ ssm.drive_matrix(w)
    x = torch.complex(state[:, :half], state[:, half:])
    for t, found in enumerate(layer(w, inputs, keep, state)[1]):
        x = turned * x + torch.complex(driven[t, :, :half], driven[t, :, half:])
        torch.testing.assert_close(found, torch.cat([x.real, x.imag], dim=-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [layer, layer_loop])
def test_nothing_flows_across_a_reset(form) -> None:  # noqa: ANN001
    w, inputs, keep, state = problem(150, resets=0.0)
    keep[75, 1] = False
    changed = inputs.clone()
    changed[:75] += 1
    before, after = (form(w, u, keep, state)[0] for u in (inputs, changed))
    assert torch.equal(before[75:, 1], after[75:, 1])
    assert not torch.equal(before[75:, 0], after[75:, 0])


def test_a_reset_stops_the_gradient_and_what_is_not_finite() -> None:
    w, inputs, keep, state = problem(10, resets=0.0)
    keep[5] = False
    assert layer(w, inputs, keep, torch.full_like(state, torch.nan))[0][5:].isfinite().all()
    (gradient,) = torch.autograd.grad(layer(w, inputs.requires_grad_(), keep, state)[0][5:].sum(), inputs)
    assert not gradient[:5].any()
    assert gradient[5:].abs().min() > 0


def test_decay_near_zero_underflows_without_nan() -> None:
    w, inputs, keep, state = problem(200)
    w["nu"].fill_(6.2)
    assert float(ssm.decay(w).abs().max()) < 1e-200
    assert layer(w, inputs, keep, state)[0].isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(layer, (w, inputs, keep, state)))


@pytest.mark.parametrize("of", ["features", "states", "last state"])
@pytest.mark.parametrize("num_steps", [5, 70])
def test_gradients_equal_finite_differences(num_steps: int, of: str) -> None:
    w, inputs, keep, state = problem(num_steps)
    free = [inputs.requires_grad_(), state.requires_grad_(), *(value.clone().requires_grad_() for value in w.values())]

    def function(inputs: Tensor, state: Tensor, *values: Tensor) -> Tensor:
        features, states = layer(dict(zip(ssm.NAMES, values, strict=True)), inputs, keep, state)
        return {"features": features[:, :1, :3], "states": states[:, :1, :3], "last state": states[-1]}[of]

    assert torch.autograd.gradcheck(function, free, fast_mode=num_steps > 10)


def test_a_second_derivative_is_refused_where_only_the_loop_has_one() -> None:
    w, inputs, keep, state = problem(4)
    inputs.requires_grad_()
    features = layer(w, inputs, keep, state)[0].sum()
    with pytest.raises(RuntimeError, match="first order only; take layer_loop"):
        torch.autograd.grad(features, inputs, create_graph=True)
    (first,) = torch.autograd.grad(layer_loop(w, inputs, keep, state)[0].sum(), inputs, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inputs)
    assert second.abs().max() > 0


def test_strided_and_transposed_arguments_change_nothing() -> None:
    w, inputs, keep, state = problem(12)
    strange = inputs.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    turned = {name: (value.t().contiguous().t() if value.ndim == 2 else value) for name, value in w.items()}
    assert torch.equal(layer(w, inputs, keep, state)[0], layer(turned, strange, keep.t().contiguous().t(), state)[0])


@pytest.mark.parametrize(
    ("what", "got"),
    [
        ("inputs", torch.zeros(7, 3, 4, dtype=torch.float64)),
        ("inputs", torch.zeros(7, 5, dtype=torch.float64)),
        ("inputs", torch.zeros(0, 3, 5, dtype=torch.float64)),
        ("inputs", torch.zeros(7, 3, 5, dtype=torch.float16)),
        ("keep", torch.ones(3, 3, dtype=torch.bool)),
        ("keep", torch.ones(7, 3)),
        ("state", torch.zeros(1, 8, dtype=torch.float64)),
        ("state", torch.zeros(3, 8)),
        ("state", torch.zeros(3, 8, dtype=torch.float64, device="meta")),
        ("theta", torch.zeros(3, dtype=torch.float64)),
        ("gate_b", torch.zeros(6)),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(what: str, got: Tensor) -> None:
    """The kernel trusts shapes: it would read past the end, and a state for one sequence would act as garbage."""
    w, inputs, keep, state = problem(7)
    given = {"inputs": inputs, "keep": keep, "state": state, **w, what: got}
    with pytest.raises(ConfigError, match=rf"got {what} of shape .*, {got.dtype}.* expected \(") as refused:
        layer({name: given[name] for name in ssm.NAMES}, given["inputs"], given["keep"], given["state"])
    assert "\n" not in str(refused.value)


def test_other_devices_take_the_loop() -> None:
    """On the device 'meta' nothing is computed, which the kernel could not do."""
    given = problem(5, 3)
    w = {name: value.to("meta") for name, value in given[0].items()}
    features, states = layer(w, *(value.to("meta") for value in given[1:]))
    assert (features.device.type, features.shape, states.shape) == ("meta", (5, 3, 6), (5, 3, 8))
