from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from agents import MetaLearningAgent
from scenarios.cli import main
from scenarios.collaborative_learning import CollaborativeLearning, complete_team, configured
from scenarios.examples.custom_agent import TrainerAgent
from scenarios.own_agents import rebuild_agents, save_own_agents
from scenarios.run_directory import RunDirectory
from scenarios.scenario import Scenario, load_preset
from swarm.agent import Agent, AgentContext
from swarm.errors import CheckpointError, ConfigError
from swarm.messages import Announcement, Award, Json, Proposal, Refusal


class OwnMetaAgent(MetaLearningAgent):
    """A specialist in a form of the user's own."""


class PlainAgent(Agent):
    """An agent that takes any options and does nothing."""

    role: ClassVar[str] = "plain"

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        raise NotImplementedError

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        raise NotImplementedError


@pytest.fixture
def scenario() -> Scenario:
    return load_preset("smoke")


@pytest.fixture
def run(tmp_path: Path, scenario: Scenario) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", scenario)


def save(run: RunDirectory, scenario: Scenario, *own: Agent) -> None:
    save_own_agents(run, configured(complete_team(own), scenario), scenario)


def test_a_team_of_specialists_needs_no_file(run: RunDirectory, scenario: Scenario) -> None:
    save(run, scenario)
    assert not run.agents_file.exists()
    assert rebuild_agents(run, scenario) is None


def test_agents_of_ones_own_come_back_with_their_names_and_options(run: RunDirectory, scenario: Scenario) -> None:
    save(run, scenario, OwnMetaAgent("meta"), TrainerAgent("own", {"seed": 2}), TrainerAgent("second"))
    team = rebuild_agents(run, scenario, allow_import=True)
    assert team is not None
    kinds = {agent.name: type(agent) for agent in team}
    assert len(kinds) == len(team) == 7
    assert kinds["meta"] is OwnMetaAgent
    assert kinds["own"] is kinds["second"] is TrainerAgent
    options = {agent.name: agent.options for agent in team}
    assert options["own"] == {"seed": 2}
    assert options["second"] == options["meta"] == options["state"] == scenario.team.to_json()


def test_an_agent_that_an_entry_point_names_needs_no_leave_to_be_imported(
    run: RunDirectory, scenario: Scenario
) -> None:
    run.agents_file.write_text(json.dumps([{"name": "scout", "factory": "meta", "options": {}, "problem": ""}]))
    team = rebuild_agents(run, scenario)
    assert team is not None
    assert [type(agent) for agent in team if agent.name == "scout"] == [MetaLearningAgent]


def test_classes_are_imported_only_where_the_user_says_so(
    run: RunDirectory, scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    save(run, scenario, TrainerAgent("own"))
    assert main(["resume", str(run.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "agent 'own' is of the class scenarios.examples.custom_agent:TrainerAgent" in line
    assert "add --allow-import if you trust this run directory" in line


def test_an_agent_that_cannot_be_built_again_is_refused_with_what_to_do(run: RunDirectory, scenario: Scenario) -> None:
    class LocalAgent(TrainerAgent):
        pass

    save(run, scenario, LocalAgent("here"))
    with pytest.raises(
        ConfigError, match=r"class LocalAgent is defined inside a function.*continue this run in Python"
    ):
        rebuild_agents(run, scenario, allow_import=True)
    save(run, scenario, PlainAgent("own", {"path": object()}))  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"has options that are not JSON.*continue this run in Python"):
        rebuild_agents(run, scenario, allow_import=True)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", CheckpointError, "is damaged"),
        ('[{"name": "x"}]', CheckpointError, "is damaged: KeyError: 'factory'"),
        ("[3]", CheckpointError, "is damaged: TypeError"),
        ('[{"name": "x", "factory": "os:system", "options": null}]', ConfigError, "expected a subclass of swarm.agent"),
        ('[{"name": "x", "factory": "nobody", "options": null}]', ConfigError, "'nobody' is not an entry point"),
    ],
)
def test_rubbish_is_refused(
    run: RunDirectory, scenario: Scenario, content: str, error: type[Exception], message: str
) -> None:
    run.agents_file.write_text(content)
    with pytest.raises(error, match=message):
        rebuild_agents(run, scenario, allow_import=True)


# --- what solve_task runs ---------------------------------------------------------------------------------------------


def resolved(workflow: CollaborativeLearning, *given: object) -> Sequence[object]:
    team = workflow._scenario(*given).team  # type: ignore[arg-type]
    return team.env_id, team.mode, team.budget_steps, team.seed


def test_what_is_not_asked_for_is_the_scenarios_own(scenario: Scenario) -> None:
    given = scenario.with_task("Hopper-v4").with_overrides(["mode=independent", "seed=7", "budget_steps=800"])
    workflow = CollaborativeLearning()
    assert resolved(workflow, given, None, None, None, None) == ("Hopper-v4", "independent", 800, 7)
    assert resolved(workflow, given, "Ant-v4", "collaborative", 1_000, 0) == ("Ant-v4", "collaborative", 1_000, 0)
    assert resolved(workflow, None, None, None, None, None) == ("HalfCheetah-v4", "collaborative", 20_000, 0)
    assert resolved(workflow, None, "Ant-v5", None, None, 3) == ("Ant-v5", "collaborative", 20_000, 3)


def test_the_scenarios_agents_take_part_unless_the_workflow_was_given_some(scenario: Scenario) -> None:
    small, _ = scenario.with_agents(["meta", "state"])
    arguments = (small, None, None, None, None)
    assert set(CollaborativeLearning()._scenario(*arguments).team.agents) == set(small.team.agents)
    own = CollaborativeLearning([MetaLearningAgent()])._scenario(*arguments)
    assert set(own.team.agents) == {"coordinator", "environment", "meta"}
