from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import Columns, columns_from_arrays
from agents.learning.normalizer import Scales, normalizer_from_rows

OBSERVATION, ACTION, ENVIRONMENTS = 5, 2, 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small_member() -> MemberConfig:
    return MemberConfig(encoder_width=6, encoder_states=4, actor_hidden=(16, 16), critic_hidden=(16, 12))


@pytest.fixture
def small_world() -> WorldConfig:
    return WorldConfig(window=8, hidden=12, context_size=3, inner_learning_rate=0.1)


@pytest.fixture
def columns() -> Columns:
    """200 steps of 4 environments under smooth dynamics, with resets and a few terminations."""
    rng = np.random.default_rng(0)
    steps, shape = 200, (200, ENVIRONMENTS)
    reset = rng.random(shape) < 0.03
    reset[0] = True
    action = rng.uniform(-1, 1, (*shape, ACTION)).astype(np.float32)
    drift = np.linspace(-0.3, 0.3, ENVIRONMENTS)[:, None]
    push = rng.standard_normal((ACTION, OBSERVATION)) * 0.5
    observation = np.zeros((*shape, OBSERVATION), np.float32)
    following = np.zeros_like(observation)
    now = rng.standard_normal((ENVIRONMENTS, OBSERVATION))
    for t in range(steps):
        now = np.where(reset[t][:, None], rng.standard_normal((ENVIRONMENTS, OBSERVATION)), now)
        observation[t] = now
        now = 0.9 * now + drift + action[t] @ push
        following[t] = now
    ends = np.roll(reset, -1, axis=0)
    return columns_from_arrays(
        {
            "observation": observation,
            "action": action,
            "reward": following.sum(axis=-1).astype(np.float32),
            "next_observation": following,
            "terminated": ends & (rng.random(shape) < 0.5),
            "reset": reset,
        },
        steps,
    )


@pytest.fixture
def scales(columns: Columns) -> Scales:
    return normalizer_from_rows(
        columns.observation.numpy(), columns.reward.numpy(), columns.next_observation.numpy()
    ).scales()
