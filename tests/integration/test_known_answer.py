"""A task whose best return is known is solved by the same run that users start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scenarios.observer import Observers
from scenarios.run_directory import RunDirectory
from scenarios.runner import run_scenario
from scenarios.scenario import load_preset
from tests.benchmarks.learning import cost_ratio


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_linear_quadratic_task_is_solved_to_two_percent_of_the_riccati_optimum(tmp_path: Path) -> None:
    scenario = load_preset("linear-quadratic")
    run = RunDirectory.create(tmp_path / "run", scenario)
    outcome = asyncio.run(run_scenario(scenario, run.path, observer=Observers([])))
    assert outcome.status == "done", outcome.reason
    assert 0.999 <= cost_ratio(run.path) <= 1.02  # below 1 only by what lies behind the horizon
