"""The task with a known answer: its solution is right, and it behaves as a Gymnasium environment should."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from env_bridge.linear_quadratic import (
    ENV_ID,
    EPISODE_STEPS,
    MAX_ACCELERATION,
    START,
    A,
    B,
    LinearQuadraticEnv,
    Q,
    R,
    best_cost,
    best_gain,
    register,
    riccati,
)
from env_bridge.vector_env import VectorEnv

DISCOUNT = 0.99


def simulated_cost(gain: np.ndarray, starts: np.ndarray, num_steps: int = 600) -> np.ndarray:
    x, cost = starts.copy(), np.zeros(len(starts))
    for t in range(num_steps):
        u = -x @ gain.T
        cost += DISCOUNT**t * (np.einsum("ni,ij,nj->n", x, Q, x) + np.einsum("ni,ij,nj->n", u, R, u))
        x = x @ A.T + u @ B.T
    return cost


def test_the_riccati_matrix_solves_its_equation() -> None:
    p = riccati(DISCOUNT)
    a, b = np.sqrt(DISCOUNT) * A, np.sqrt(DISCOUNT) * B
    right = Q + a.T @ p @ a - a.T @ p @ b @ np.linalg.solve(R + b.T @ p @ b, b.T @ p @ a)
    np.testing.assert_allclose(p, right, rtol=1e-12)


def test_the_best_gain_costs_what_riccati_says_and_any_other_gain_more() -> None:
    starts = np.random.default_rng(0).uniform(-START, START, (50, 2))
    best = best_gain(DISCOUNT)
    np.testing.assert_allclose(simulated_cost(best, starts), best_cost(starts, DISCOUNT), rtol=1e-8)
    for change in ([[0.3, 0.0]], [[-0.3, 0.0]], [[0.0, 0.3]], [[0.0, -0.3]]):
        assert (simulated_cost(best + np.array(change), starts) > best_cost(starts, DISCOUNT)).all()


def test_the_best_action_stays_within_the_limits_from_every_start() -> None:
    corners = np.array([[sign_x, sign_v] for sign_x in (-1, 1) for sign_v in (-1, 1)]) * START
    assert np.abs(corners @ best_gain(DISCOUNT).T).max() < MAX_ACCELERATION


def test_gymnasium_accepts_the_environment() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(normalized space|infinity)", category=UserWarning)
        check_env(LinearQuadraticEnv(), skip_render_check=True)
    register()
    assert gymnasium.make(ENV_ID).spec is not None


@pytest.mark.parametrize("stop", [1, 7])
def test_a_snapshot_continues_to_the_same_bits(stop: int) -> None:
    env = VectorEnv(ENV_ID, 2)
    assert env.spec.max_episode_steps == EPISODE_STEPS
    env.seed([3, 4])
    env.reset()
    actions = np.random.default_rng(1).uniform(-1, 1, (12, 2, 1)).astype(np.float32)
    for t in range(stop):
        env.step(actions[t])
    state = env.get_state()
    first = [env.step(action).observation for action in actions[stop:]]
    other = VectorEnv(ENV_ID, 2)
    other.set_state(state)
    second = [other.step(action).observation for action in actions[stop:]]
    np.testing.assert_array_equal(np.array(first), np.array(second))
