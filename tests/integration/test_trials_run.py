"""A run on several tasks: memory over the episodes of a trial; stored rows give the features that were acted on."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.learning.encoder import Stream, columns_from_arrays, encode_stream
from agents.member import encoder_sizes
from agents.pinned import Pinned
from agents.plan import SHARED
from agents.rollout_policy import MemberPolicy, SeatedPolicy, build_policy
from agents.rollouts import collection_requests
from env_bridge.rollout import run_rollout
from scenarios.observer import Observers
from scenarios.report import write_report
from scenarios.run_directory import RunDirectory
from scenarios.runner import evaluate_run, run_scenario
from scenarios.scenario import Scenario
from swarm.experience import ExperienceReader
from swarm.messages import Arrays
from swarm.policy import PolicyInput
from tests.integration.training_runs import smoke

EPISODE, TRIAL, ROWS = 15, 30, 100
pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class TrialRun:
    path: Path
    scenario: Scenario
    columns: Arrays


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrialRun:
    """800 steps on the two headings of HalfCheetah: trials of two episodes of 15 steps, rounds of 25 rows."""
    scenario = smoke(
        "suite=halfcheetah-dir",
        "trials.episodes=2",
        f"trials.episode_steps={EPISODE}",
        "budget_steps=800",
        "rounds.evaluate_every=0",
        "rounds.adapt_every=0",
        "rounds.shifted_every=0",
    )
    path = tmp_path_factory.mktemp("trials") / "run"
    RunDirectory.create(path, scenario)
    outcome = asyncio.run(run_scenario(scenario, path, observer=Observers([]), inline=True))
    assert outcome.status == "done", outcome.reason
    return TrialRun(path, scenario, ExperienceReader(path / "experience" / "nominal").columns(ROWS))


def rows_where(flags: NDArray[np.generic]) -> list[int]:
    assert (flags.all(axis=1) == flags.any(axis=1)).all()  # type: ignore[union-attr]
    return [int(row) for row in np.flatnonzero(flags[:, 0])]


def test_memory_lasts_over_the_episodes_of_a_trial_and_no_longer(run: TrialRun) -> None:
    assert rows_where(run.columns["reset"]) == list(range(0, ROWS, TRIAL))
    assert rows_where(run.columns["truncated"]) == list(range(EPISODE - 1, ROWS, EPISODE))


def test_the_task_changes_between_trials_only_and_both_headings_are_met(run: TrialRun) -> None:
    directions = np.asarray(run.columns["task"], np.float64)[..., 1]
    for first in range(0, ROWS, TRIAL):
        assert (directions[first : first + TRIAL] == directions[first]).all()
    assert set(np.unique(directions)) == {0.0, float(np.float32(math.pi))}
    assert (directions[0] != directions[TRIAL]).any()


class Watched:
    """Acts as the seated policy does and keeps the features that its members saw."""

    def __init__(self, weights: Arrays, seats: list[str]) -> None:
        self._policy: SeatedPolicy = build_policy(weights, {"seats": seats})
        own = {key.partition("/")[2]: np.asarray(v, np.float32) for key, v in weights.items() if seats[0] in key}
        self._member = MemberPolicy(own)
        self.state_size = self._policy.state_size
        self.features: list[NDArray[np.float32]] = []

    def act(self, given: PolicyInput) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.features.append(self._member.encode(given)[1])
        return self._policy.act(given)


@pytest.mark.parametrize("round_index", [3, 4])
def test_recomputed_features_equal_those_that_were_acted_on(run: TrialRun, round_index: int) -> None:
    """Both rounds begin within a trial and cross its end: the memory must be taken up, and then be dropped."""
    team = run.scenario.team
    pinned = Pinned(run.path, team, round_index - 1)
    seats = ["state"] * 8
    terms = {"stream": "nominal", "round": round_index, "seats": seats, "steps": 25, "random": False}
    watched = Watched(pinned.seat_weights(seats, deployed=False), seats)
    parts = [run_rollout(request, policy=watched) for request in collection_requests(pinned, terms)]
    first = 25 * (round_index - 1)
    stored = {name: np.array(column[:first]) for name, column in run.columns.items()}
    names = ("observation", "action", "reward", "next_observation", "terminated", "reset")
    arrays = {name: np.concatenate([stored[name], *(part.columns[name] for part in parts)]) for name in names}
    stream: Stream = encode_stream(
        encoder_sizes(team.member, *pinned.sizes),
        pinned.encoder(SHARED),
        columns_from_arrays(arrays, len(arrays["reward"])),
        pinned.scales(SHARED),
    )
    np.testing.assert_allclose(np.stack(watched.features), stream.features[first:].numpy(), atol=2e-5)
    assert torch.count_nonzero(stream.features[first:]) > 0


def test_the_report_shows_how_the_return_changes_over_the_episodes_of_a_trial(run: TrialRun) -> None:
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    after = evaluation["after"]
    assert np.shape(after["curves"]) == (2, 2)
    assert after["returns"] == pytest.approx(np.mean(after["curves"], axis=1).tolist())
    assert sorted(task["direction"] for task in after["tasks"]) == pytest.approx([0.0, math.pi])
    opened = RunDirectory.open(run.path)
    write_report(opened)
    assert "Return by episode of a trial on test tasks" in opened.report_file.read_text()
    assert (run.path / "trials.png").is_file()


def test_evaluating_again_gives_the_trials_of_the_report(run: TrialRun) -> None:
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    outcome = asyncio.run(evaluate_run(run.path, episodes=2))
    assert [list(curve) for curve in outcome.curves] == evaluation["after"]["curves"]
