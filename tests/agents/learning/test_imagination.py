from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import Columns, columns_from_arrays, encode_stream
from agents.learning.imagination import Imagined, imagine
from agents.learning.normalizer import Scales, normalizer_from_rows
from agents.learning.uncertainty import Calibration, fit_calibration
from agents.learning.windows import Windows, cut_windows, sample_windows
from agents.learning.world_model import head_predictions, prediction_gradients, prepare
from agents.learning.world_state import WorldState, apply_gradients, encoder_parameters, init_world

HEADS, STEPS, ENVIRONMENTS = 3, 300, 4
DYNAMICS = np.array([[0.95, 0.2, 0.0], [-0.2, 0.95, 0.1], [0.0, 0.0, 0.8]])
PUSH = np.array([[0.0, 0.3, 0.2]])
MEMBER = MemberConfig(encoder_width=4, encoder_states=4)


def linear_columns(seed: int) -> Columns:
    """Rows of the linear system s' = D s + P a with reward s₀, under random actions."""
    rng = np.random.default_rng(seed)
    state, shape = rng.standard_normal((ENVIRONMENTS, 3)), (STEPS, ENVIRONMENTS)
    rows = {"observation": np.zeros((*shape, 3), np.float32), "next_observation": np.zeros((*shape, 3), np.float32)}
    action = rng.uniform(-1, 1, (*shape, 1)).astype(np.float32)
    reset = np.zeros(shape, bool)
    reset[0] = True
    for t in range(STEPS):
        rows["observation"][t] = state
        state = state @ DYNAMICS.T + action[t] @ PUSH
        rows["next_observation"][t] = state
    reward = rows["observation"][..., 0]
    return columns_from_arrays(
        {**rows, "action": action, "reward": reward, "reset": reset, "terminated": np.zeros(shape, bool)}, STEPS
    )


@pytest.fixture(scope="module")
def fitted() -> tuple[WorldState, Scales, Calibration]:
    """Three heads trained on the linear system, calibrated on rows of another seed."""
    torch.set_num_threads(1)
    columns = linear_columns(0)
    scales = normalizer_from_rows(
        columns.observation.numpy(), columns.reward.numpy(), columns.next_observation.numpy()
    ).scales()
    config = WorldConfig(window=8, hidden=24, learning_rate=1e-2, encoder_rate=0.5)
    world, rng = init_world(config, MEMBER, 3, 1, seed=0, heads=HEADS), np.random.default_rng(0)
    split = world.sizes.num_shared
    for step in range(250):
        parts = {
            head: prediction_gradients(world, sample_windows(columns, None, rng, 16, 8), scales, 1, head)
            for head in range(HEADS)
        }
        shared = np.mean([part[:, :split] for part in parts.values()], axis=0)
        now = replace(config, learning_rate=1e-2 * (1 - step / 250))
        world = apply_gradients(world, shared, {head: part[:, split:] for head, part in parts.items()}, now)
    prepared = prepare(world.sizes, encoder_parameters(world), held_out(16, 8), scales)
    predictions = head_predictions(world, prepared.known).flatten(1, 2)
    return world, scales, fit_calibration(predictions, prepared.target.flatten(0, 1), prepared.mask)


def held_out(num_windows: int, length: int) -> Windows:
    return sample_windows(linear_columns(1), None, np.random.default_rng(1), num_windows, length)


def roll(fitted: tuple[WorldState, Scales, Calibration], start: Windows, *, push: float = 1.0, cut: float) -> Imagined:
    world, scales, calibration = fitted
    return imagine(
        world,
        start,
        scales,
        calibration,
        lambda step, seen: push * start.action[step],
        horizon=start.num_steps,
        cut=cut,
    )


def test_imagined_trajectories_of_a_linear_system_equal_the_true_ones(
    fitted: tuple[WorldState, Scales, Calibration],
) -> None:
    start = held_out(12, 10)
    found = roll(fitted, start, cut=np.inf)
    assert found.valid.all()
    assert found.next_observation.shape == start.next_observation.shape
    deviation = start.next_observation.std(dim=(0, 1))
    error = (found.next_observation - start.next_observation).square().mean(dim=(0, 1)).sqrt() / deviation
    assert error.max() < 0.1
    reward_error = (found.reward - start.reward).square().mean().sqrt() / start.reward.std()
    assert reward_error < 0.1
    torch.testing.assert_close(found.observation[0], start.observation[0])
    torch.testing.assert_close(found.observation[1:], found.next_observation[:-1])


def test_imagination_is_cut_earlier_where_the_heads_have_never_been(
    fitted: tuple[WorldState, Scales, Calibration],
) -> None:
    start = held_out(12, 10)
    usual, far = roll(fitted, start, cut=3.0), roll(fitted, start, push=12.0, cut=3.0)
    assert usual.horizon.float().mean() > 2 * far.horizon.float().mean()
    assert far.novelty[1:].mean() > 3 * usual.novelty[1:].mean()


def test_a_rollout_stays_cut_and_the_step_that_cuts_does_not_count(
    fitted: tuple[WorldState, Scales, Calibration],
) -> None:
    found = roll(fitted, held_out(12, 10), push=12.0, cut=3.0)
    over = found.novelty > 3.0
    assert over.any()
    assert not found.valid[over].any()
    assert (found.valid.int().diff(dim=0) <= 0).all()


def test_imagination_goes_on_from_the_state_that_the_encoder_had(
    fitted: tuple[WorldState, Scales, Calibration],
) -> None:
    """Starting at step 5 of a window with the encoder's state there gives what running through it gives."""
    world, scales, calibration = fitted
    columns = linear_columns(1)
    stream = encode_stream(world.sizes.encoder, encoder_parameters(world), columns, scales)
    starts = np.array([[5, e] for e in range(ENVIRONMENTS)])
    start = cut_windows(columns, stream.states, starts, 3)
    seen: list[torch.Tensor] = []

    def actions(step: int, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs)
        return start.action[step]

    imagine(world, start, scales, calibration, actions, horizon=1, cut=np.inf)
    torch.testing.assert_close(seen[0], torch.cat([stream.visible[5], stream.features[5]], dim=-1))
