"""What the coordinator does about failures before the first and after the last round: a run without any round."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agents.config import TeamConfig
from agents.records import RunRecords
from agents.training import ATTEMPTS, TrainingRun
from swarm.errors import ConfigError, PeerLost, SwarmError, TaskFailed, TaskImpossible
from swarm.messages import Ended, Evaluation, Message, Submission

TEAM = TeamConfig(budget_steps=0, report_episodes=2)
RESULTS: Mapping[str, Mapping[str, Any]] = {
    "initialise": {"files": {}, "environment": {"observation_size": 3, "action_size": 1}},
    "evaluate": {"steps": 1_000},
}


@dataclass
class ScriptedContext:
    """An agent's context whose submissions fail as told, kind by kind, and succeed afterwards."""

    failures: dict[str, list[Exception]]
    submitted: list[Submission] = field(default_factory=list)

    async def submit(self, task: Submission) -> Ended:
        self.submitted.append(task)
        label = task.task_id.rpartition(".")[2]
        if self.failures.get(label):
            raise self.failures[label].pop(0)
        return Ended(task_id=task.task_id, status="done", results={"environment": RESULTS[task.kind]})

    async def gather(self, topic: object, key_of: object, keys: Sequence[Any], timeout_s: float) -> dict[Any, Message]:
        (key,) = keys
        kind, version, judge = key
        details = {"returns": [1.0, 2.0], "episode_distances": [0.0, 0.0], "lengths": [10, 10]}
        scores = {"meta": 2.0} if kind == "return-after" else {"state": 1.0, "meta": 2.0}
        return {key: Evaluation(judge=judge, round_index=version, kind=kind, scores=scores, details=details)}

    async def compute(self, function: Callable[..., Any], *args: object) -> Any:
        return function(*args)

    def publish(self, message: Message) -> None:
        pass

    def labels(self) -> list[str]:
        return [task.task_id.rpartition(".")[2] for task in self.submitted]


def drive(path: Path, **failures: list[Exception]) -> tuple[TrainingRun, ScriptedContext]:
    context = ScriptedContext({label.replace("_", "-"): list(errors) for label, errors in failures.items()})
    run = TrainingRun(TEAM, context, RunRecords(path), lifetime=1)  # type: ignore[arg-type]  # the part that it uses
    asyncio.run(run.drive())
    return run, context


def test_lost_processes_before_and_after_the_rounds_cost_a_repetition_and_not_the_run(tmp_path: Path) -> None:
    lost = PeerLost("node-1 died")
    failed = TaskFailed("5 holders were lost")
    run, context = drive(tmp_path, initialise=[failed], evaluate_final=[lost, failed], evaluate_after=[lost])
    assert context.labels() == ["initialise"] * 2 + ["evaluate-final"] * 3 + ["evaluate-after"] * 2
    assert len({task.task_id for task in context.submitted}) == len(context.submitted)
    assert [text.partition(" was repeated: ")[0] for text in run.ledger.incidents] == [
        "the initial round",
        *["the final selection"] * 2,
        "the final evaluation",
    ]
    assert json.loads((tmp_path / "evaluation.json").read_text())["after"]["member"] == "meta"


def test_what_never_works_ends_the_run_with_every_reason(tmp_path: Path) -> None:
    with pytest.raises(SwarmError, match=r"the initial round failed 3 times: .*: no 2; see logs/"):
        drive(tmp_path, initialise=[TaskFailed(f"no {attempt}") for attempt in range(ATTEMPTS)])
    with pytest.raises(SwarmError, match=r"the final selection failed 3 times: .*; round 0 is committed"):
        drive(tmp_path, evaluate_final=[PeerLost("gone")] * ATTEMPTS)


def test_what_the_user_must_change_is_not_tried_again(tmp_path: Path) -> None:
    context = ScriptedContext({"initialise": [TaskImpossible("CartPole-v1 has actions Discrete()")]})
    run = TrainingRun(TEAM, context, RunRecords(tmp_path), lifetime=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"the initial round cannot be performed: .*CartPole-v1 has actions"):
        asyncio.run(run.drive())
    assert context.labels() == ["initialise"]


def test_the_steps_of_the_final_selection_and_evaluation_are_recorded(tmp_path: Path) -> None:
    drive(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["after"]["steps"] == 2_000
