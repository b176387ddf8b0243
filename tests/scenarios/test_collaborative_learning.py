from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agents import AdaptationAgent, CoordinatorAgent, MetaLearningAgent, StateModelingAgent
from scenarios.collaborative_learning import (
    CollaborationResult,
    CollaborativeLearning,
    configured,
    measure_improvement,
)
from scenarios.examples.custom_agent import TrainerAgent
from scenarios.observer import RunOutcome
from scenarios.run_directory import RunDirectory
from scenarios.scenario import load_preset
from swarm.errors import ConfigError

WriteRun = Callable[..., RunDirectory]


def finished(write_run: WriteRun, name: str, returns: list[float], *overrides: str) -> RunDirectory:
    run = write_run(3, name=name, scenario=load_preset("halfcheetah").with_overrides(overrides))
    data = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
    data["after"]["returns"] = returns
    run.evaluation_file.write_text(json.dumps(data), encoding="utf-8")
    return run


def test_missing_coordinator_and_environment_agent_are_added() -> None:
    workflow = CollaborativeLearning(agents=[MetaLearningAgent(), AdaptationAgent(), StateModelingAgent()])
    assert sorted(workflow.agents) == ["adaptation", "coordinator", "environment", "meta", "state"]


def test_no_agents_at_all_means_the_five_specialists() -> None:
    assert len(CollaborativeLearning().agents) == 5


def test_coordinator_may_be_given_apart() -> None:
    workflow = CollaborativeLearning(agents=[MetaLearningAgent()], coordinator=CoordinatorAgent())
    assert sorted(workflow.agents) == ["coordinator", "environment", "meta"]


def test_two_agents_of_one_name_and_renamed_specialists_are_refused() -> None:
    with pytest.raises(ConfigError, match="two agents are called 'meta'"):
        CollaborativeLearning(agents=[MetaLearningAgent(), MetaLearningAgent()])
    with pytest.raises(ConfigError, match="the meta agent is called 'other'"):
        CollaborativeLearning(agents=[MetaLearningAgent("other")])


def test_every_agent_learns_of_the_team_that_it_joins() -> None:
    scenario = load_preset("smoke")
    for agent in configured([MetaLearningAgent(), TrainerAgent()], scenario):
        assert agent.options == scenario.team.to_json()


async def test_unknown_task_mode_and_baseline_are_refused_before_anything_is_written(
    tmp_path: Path, write_run: WriteRun
) -> None:
    workflow, out = CollaborativeLearning(), tmp_path / "out"
    other = finished(write_run, "other", [1.0], "budget_steps=400")
    with pytest.raises(ConfigError, match="unknown environment"):
        await workflow.solve_task(task="HalfCheeta-v4", out=out)
    with pytest.raises(ConfigError, match="unknown mode 'telepathic'"):
        await workflow.solve_task(collaboration_mode="telepathic", out=out)
    with pytest.raises(ConfigError, match="does not exist"):
        await workflow.solve_task(baseline=tmp_path / "none", out=out)
    with pytest.raises(ConfigError, match="budget_steps 400, this run 20000: not comparable"):
        await workflow.solve_task(baseline=str(other.path), out=out)
    assert not out.exists()


def test_improvement_is_percent_where_the_baseline_is_above_idle(write_run: WriteRun) -> None:
    team = finished(write_run, "team", [1_400.0, 1_600.0])
    baseline = finished(write_run, "baseline", [900.0, 1_100.0], "mode=independent", "seed=7")
    found = measure_improvement(team, baseline)
    assert (found.value, found.unit, found.interval) == (50.0, "percent", None)
    assert "five members that exchange nothing, same 20000 steps, seed 7" in str(found)
    assert "one seed each, so no interval" in str(found)


def test_improvement_is_a_difference_where_the_baseline_is_below_idle(write_run: WriteRun) -> None:
    team = finished(write_run, "team", [1_500.0], "env_id=Ant-v4")
    baseline = finished(write_run, "baseline", [900.0], "env_id=Ant-v4")
    found = measure_improvement(team, baseline)
    assert (found.value, found.unit) == (600.0, "return")
    assert str(found).startswith("+600.0 in return")


def test_result_says_what_was_not_measured() -> None:
    outcome = RunOutcome(
        run_dir=Path("runs/x"), status="done", round_index=8, env_steps=1_600, wall_s=9.0, weights_digest="d"
    )
    result = CollaborationResult(
        task="HalfCheetah-v4", mode="collaborative", outcome=outcome, returns=(1.0, 3.0), distances=(0.5, 0.5)
    )
    assert result.improvement is None
    assert result.emergent_strategies is None
    text = str(result)
    assert "improvement:         not measured: pass baseline='run'" in text
    assert "emergent strategies: not analysed" in text
    assert "2.0 over 2 episodes" in text
