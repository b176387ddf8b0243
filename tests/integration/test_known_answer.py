"""A task whose best return is known is solved by the same run that users start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from agents.pinned import Pinned
from agents.rollout_policy import build_policy
from env_bridge.linear_quadratic import MAX_ACCELERATION, START, A, B, Q, R, best_cost
from scenarios.observer import Observers
from scenarios.run_directory import RunDirectory
from scenarios.runner import run_scenario
from scenarios.scenario import load_preset
from swarm.policy import BLOCK_SIZE, PolicyInput

HORIZON = 300


def policy_cost(pinned: Pinned, starts: np.ndarray) -> float:
    """Mean discounted cost of the deployed policy from ``starts`` (a whole number of blocks)."""
    member, discount = pinned.team.members[0], pinned.team.sac.discount
    costs = []
    for block in starts.reshape(-1, BLOCK_SIZE, 2):
        policy = build_policy(
            pinned.seat_weights((member,) * BLOCK_SIZE, deployed=True), {"seats": [member] * BLOCK_SIZE}
        )
        x, cost, reward = block.copy(), np.zeros(BLOCK_SIZE), np.zeros(BLOCK_SIZE, np.float32)
        state = np.zeros((BLOCK_SIZE, policy.state_size), np.float32)
        for t in range(HORIZON):
            action, state = policy.act(
                PolicyInput(
                    reset=np.full(BLOCK_SIZE, t == 0),
                    observation=x.astype(np.float32),
                    reward=reward,
                    state=state,
                    noise=np.zeros((BLOCK_SIZE, 1), np.float32),
                )
            )
            u = action.astype(np.float64) * MAX_ACCELERATION
            step_cost = np.einsum("ni,ij,nj->n", x, Q, x) + np.einsum("ni,ij,nj->n", u, R, u)
            cost += discount**t * step_cost
            reward = (-step_cost).astype(np.float32)
            x = x @ A.T + u @ B.T
        costs.append(cost)
    return float(np.mean(costs))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_linear_quadratic_task_is_solved_to_two_percent_of_the_riccati_optimum(tmp_path: Path) -> None:
    scenario = load_preset("linear-quadratic")
    run = RunDirectory.create(tmp_path / "run", scenario)
    outcome = asyncio.run(run_scenario(scenario, run.path, observer=Observers([])))
    assert outcome.status == "done", outcome.reason
    pinned = Pinned(run.path, scenario.team, outcome.round_index)
    starts = np.random.default_rng(0).uniform(-START, START, (8 * BLOCK_SIZE, 2))
    best = float(best_cost(starts, scenario.team.sac.discount).mean())
    assert best <= policy_cost(pinned, starts) <= 1.02 * best
