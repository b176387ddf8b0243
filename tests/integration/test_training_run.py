"""The whole swarm on real physics: reproducible, crash-proof, and every topic matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.training_runs import FinishedRun, train

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The run that others are compared with: two worker processes, one stepping worker."""
    run = train(tmp_path_factory.mktemp("reference") / "run", ["processes=2", "workers=1"])
    assert run.outcome.status == "done", run.outcome.reason
    return run


def metrics(run: FinishedRun) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_spends_its_budget_and_leaves_its_files(reference_run: FinishedRun) -> None:
    rows = metrics(reference_run)
    assert rows[-1]["env_steps"] == rows[-1]["budget_steps"]
    assert [row["round_index"] for row in rows] == list(range(len(rows)))
    for name in ("scenario.toml", "environment.json", "journal.sqlite", "evaluation.json"):
        assert (reference_run.path / name).is_file()
    evaluation = json.loads((reference_run.path / "evaluation.json").read_text())
    assert len(evaluation["before"]["returns"]) == len(evaluation["after"]["returns"]) == 2


def test_every_topic_carried_messages_and_lost_none(reference_run: FinishedRun) -> None:
    topics = {"tasks", "proposals", "results", "experience", "parameters", "gradients", "evaluations", "presence"}
    assert topics <= set(reference_run.heard.messages)
    assert reference_run.heard.statistics is not None
    assert sum(row.lost for row in reference_run.heard.statistics.topics.values()) == 0


def test_auctions_decide_seats_and_lots(reference_run: FinishedRun) -> None:
    auctioned = [row for row in metrics(reference_run) if row.get("bids")]
    assert auctioned
    assert any(len(set(row["lots"].values())) > 1 for row in auctioned)
    assert all(sum(row["seats"].values()) == 8 for row in auctioned)


def test_the_world_model_beats_repeating_the_last_value(reference_run: FinishedRun) -> None:
    ratios = [row["world"]["ratio"] for row in metrics(reference_run) if row.get("world", {}).get("ratio")]
    assert ratios[-1] <= 0.7


def test_adaptation_is_accepted_and_rejected_at_least_once(reference_run: FinishedRun) -> None:
    last = metrics(reference_run)[-1]["adaptation"]
    assert last["accepted"] >= 1
    assert last["rejected"] >= 1


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (4, 1)])
def test_the_layout_does_not_change_a_bit(
    reference_run: FinishedRun, tmp_path: Path, processes: int, workers: int
) -> None:
    run = train(tmp_path / "run", [f"processes={processes}", f"workers={workers}"])
    assert run.outcome.weights_digest == reference_run.outcome.weights_digest


def test_another_seed_changes_the_weights(reference_run: FinishedRun, tmp_path: Path) -> None:
    run = train(tmp_path / "run", ["seed=1"])
    assert run.outcome.weights_digest != reference_run.outcome.weights_digest


@pytest.mark.parametrize("topic", ["proposals", "gradients", "evaluations"])
def test_replacing_the_payloads_of_a_topic_changes_the_weights(
    reference_run: FinishedRun, tmp_path: Path, topic: str
) -> None:
    run = train(tmp_path / "run", [f"faults.replace={topic}"])
    assert run.outcome.status == "done", run.outcome.reason
    assert run.outcome.weights_digest != reference_run.outcome.weights_digest


@pytest.mark.parametrize("topic", ["proposals", "gradients", "evaluations"])
def test_stopping_a_topic_is_noticed_and_named(tmp_path: Path, topic: str) -> None:
    run = train(tmp_path / "run", [f"faults.stop={topic}", "rounds.patience_s=2"])
    assert run.outcome.status == "failed"
    assert topic in run.outcome.reason


def children_by_name(parent: int) -> dict[str, psutil.Process]:
    """Worker nodes, coordinator, bridge and broker among the descendants of ``parent``."""
    found = {}
    for process in psutil.Process(parent).children(recursive=True):
        command = process.cmdline()
        if "swarm.node" in command:
            found[Path(command[-1]).stem] = process
        elif "env_bridge.server" in command:
            found["bridge"] = process
        elif "swarm.broker" in command:
            found["broker"] = process
    return found


@pytest.mark.parametrize("victim", ["node-1", "coordinator", "bridge", "broker"])
def test_killing_a_process_changes_nothing_but_is_reported(
    reference_run: FinishedRun, tmp_path: Path, victim: str
) -> None:
    killed: list[int] = []

    def kill(round_index: int) -> None:
        if round_index >= 3 and not killed:
            process = children_by_name(os.getpid())[victim]
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)

    run = train(tmp_path / "run", after_round=kill)
    assert killed
    assert run.outcome.status == "done", run.outcome.reason
    assert run.outcome.weights_digest == reference_run.outcome.weights_digest
    assert (victim, "restarted") in run.heard.processes


def test_a_run_that_lost_its_launcher_resumes_to_the_same_bits(reference_run: FinishedRun, tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-m", "scenarios", "run", "smoke", "--plain", "--out", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if (path / "checkpoints" / "round-000003").exists():
                break
        orphans = list(children_by_name(process.pid).values())
        process.kill()
    assert orphans, "".join(seen)
    assert not psutil.wait_procs(orphans, timeout=3)[1]
    run = train(path, resume=True)
    assert run.outcome.status == "done", run.outcome.reason
    assert run.outcome.weights_digest == reference_run.outcome.weights_digest
