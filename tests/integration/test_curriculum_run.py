"""A run that chooses its training tasks by learning progress, to its end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from agents.rollouts import task_vector
from agents.trials import cut_into_trials, tasks_of_trial
from scenarios.observer import Observers
from scenarios.run_directory import RunDirectory
from scenarios.runner import run_scenario
from swarm.experience import ExperienceReader
from tests.integration.training_runs import smoke

TRIAL, ROUND, ROUNDS = 4, 25, 2  # rows
pytestmark = pytest.mark.timeout(120)


def test_tasks_by_progress_are_stored_and_told_and_differ_from_those_in_turn(tmp_path: Path) -> None:
    scenario = smoke(
        "suite=halfcheetah-vel", "trials.episodes=2", f"trials.episode_steps={TRIAL // 2}", "trials.train_tasks=6",
        "trials.curriculum=progress", f"budget_steps={8 * ROUND * ROUNDS}", f"rounds.random_steps={8 * ROUND * ROUNDS}",
        "rounds.evaluate_every=0", "rounds.adapt_every=0", "rounds.shifted_every=0",
    )  # fmt: skip
    path, team = tmp_path / "run", scenario.team
    RunDirectory.create(path, scenario)
    outcome = asyncio.run(run_scenario(scenario, path, observer=Observers([]), inline=True))
    assert outcome.status == "done", outcome.reason

    task = np.asarray(ExperienceReader(path / "experience" / "nominal").columns(ROUND * ROUNDS)["task"], np.float32)
    vectors = np.stack([task_vector(t) for t in team.train_tasks])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    told = [line["curriculum"] for line in lines if "curriculum" in line]
    assert len(told) == ROUNDS
    in_turn = []
    for index, chosen in enumerate(told):
        row = ROUND * index
        for stretch, tasks in zip(cut_into_trials(row, ROUND, TRIAL), chosen, strict=True):
            rows = task[row : row + stretch.steps]
            np.testing.assert_array_equal(rows, np.broadcast_to(vectors[tasks], rows.shape))
            expected = np.stack([task_vector(t) for t in tasks_of_trial(team, stretch.trial)])
            in_turn.append((stretch.trial, bool((rows[0] == expected)[~np.isnan(expected)].all())))
            row += stretch.steps
    assert all(same for trial, same in in_turn if trial * TRIAL < ROUND), "nothing is known in the first round"
    assert not any(same for trial, same in in_turn if trial * TRIAL >= ROUND)
