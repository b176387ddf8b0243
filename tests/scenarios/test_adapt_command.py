"""``swarm adapt`` on a run directory of new-born members, over a bridge process."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from agents.config import AdaptConfig
from agents.deployment import AdaptedPolicy, save_adapted
from env_bridge.suites import held_out_tasks
from scenarios.adapt_command import config_of, print_outcomes, shifts_of, to_json
from scenarios.adapting import adapt_run, evaluate_adapted
from scenarios.cli import build_parser, main
from scenarios.observer import AdaptationOutcome
from scenarios.scenario import Scenario, load_preset
from swarm.environment import TaskParameters
from swarm.errors import ConfigError
from tests.agents.made_runs import make_run


def outcome(level: float, *, accepted: bool) -> AdaptationOutcome:
    return AdaptationOutcome(
        member="meta",
        shift={"gravity": 1.5},
        level="climb",
        online=True,
        accepted=accepted,
        reason="gain +5.0 exceeds 1.0 (2 against 2 episodes)",
        before=(level, level + 2),
        after=(level + 5, level + 7),
        curve=((level, level), (level + 1, level + 3)),
        probes=56,
        steps=560,
    )


def test_one_task_is_one_object_and_several_are_summed_up_by_task() -> None:
    one = to_json([outcome(10, accepted=True)])
    assert (one["before"], one["after"], one["accepted"], one["probes"]) == (11, 16, True, 56)
    several = to_json([outcome(10, accepted=True), outcome(30, accepted=False)])
    assert (several["before"], several["after"], several["accepted"], several["probes"]) == (21, 26, 1, 112)
    assert several["before_interval"] == [11, 31]
    json.dumps(several)


def test_what_is_printed_names_the_way_there_what_it_took_and_the_verdict() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    print_outcomes([outcome(10, accepted=True), outcome(30, accepted=False)], "heavy", console)
    text = console.export_text()
    for part in ("level climb, online", "accepted (meta)", "rejected", "episode 2 as lived: 22.0", "112 episodes"):
        assert part in text
    assert "not saved" in text


def test_options_change_the_scenarios_adaptation_and_what_is_not_given_stays() -> None:
    online = load_preset("smoke").with_overrides(["adapt.level=inner", "adapt.online=true"]).team

    def config(*options: str) -> AdaptConfig:
        return config_of(build_parser().parse_args(["adapt", "run", "--shift", "mass=2", *options]), (), online)

    assert config() == online.adapt
    assert config("--no-online") == replace(online.adapt, online=False)
    assert config("--level", "context", "--no-online") == replace(online.adapt, level="context", online=False)
    assert config("--level", "probe", "--episodes", "7") == replace(online.adapt, level="probe", episodes=7)
    with pytest.raises(ConfigError, match=r"online=false or --no-online"):
        config("--level", "context")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "logs").mkdir()
    return tmp_path / "run"


def test_a_run_is_adapted_and_an_adapted_policy_is_evaluated_under_its_task(made: Path) -> None:
    config = AdaptConfig(level="inner", online=True, episodes=1, evaluation_blocks=1)
    shifts = (TaskParameters(gravity=1.5), TaskParameters(actuator_gain=0.6))
    found = asyncio.run(adapt_run(made, shifts, config=config))
    assert [row.shift for row in found] == [{"gravity": 1.5}, {"actuator_gain": 0.6}]
    assert all((len(row.before), len(row.after), row.probes) == (8, 8, 24) for row in found)
    with pytest.raises(ConfigError, match="cannot save the policies of 2 tasks"):
        asyncio.run(adapt_run(made, shifts, save_as="x"))


def test_an_adapted_policy_of_another_robot_is_refused(made: Path) -> None:
    from agents.adaptable import AdaptableTeam
    from agents.pinned import Pinned
    from scenarios.run_directory import RunDirectory

    source = AdaptableTeam(Pinned(made, RunDirectory.open(made).scenario().team, 1))
    deployment = source.looking_ahead("meta", AdaptConfig(level="inner"), online=True)
    for name, env_id in (("own", "HalfCheetah-v4"), ("other", "Ant-v4")):
        policy = AdaptedPolicy(
            deployment=deployment, task=TaskParameters(mass=2.0), env_id=env_id, round_index=1, level="inner"
        )
        save_adapted(made, name, policy)
    assert len(asyncio.run(evaluate_adapted(made, "own", episodes=3)).returns) == 3
    with pytest.raises(ConfigError, match="'other' is for Ant-v4, the run for HalfCheetah-v4"):
        asyncio.run(evaluate_adapted(made, "other"))


def test_an_unknown_adapted_policy_is_one_line(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(made), "--adapted", "none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_shift_the_test_tasks_of_the_runs_suite_are_meant_as_its_robot_can_do_them() -> None:
    arguments = argparse.Namespace(shift=None, suite=None, tasks=40, save=None)
    ran = Scenario.from_mapping({"name": "shifts", "suite": "shift-train", "team": {"env_id": "Hopper-v4"}})
    assert shifts_of(arguments, ran) == held_out_tasks("shift-train", 40, "Hopper-v4")
    assert max(task.crippled or 0 for task in shifts_of(arguments, ran)) == 2
