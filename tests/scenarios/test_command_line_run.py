from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scenarios.run_directory import RunDirectory
from scenarios.run_records import read_history

SWARM = [sys.executable, "-m", "scenarios"]


def committed_round(run: RunDirectory, at_least: int, child: subprocess.Popen[str], limit_s: float = 60.0) -> int:
    """Wait until a round is committed, and fail if the command ends before."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s and child.poll() is None:
        last = run.last_round()
        if last is not None and last >= at_least:
            return last
        time.sleep(0.05)
    raise AssertionError(f"round {at_least} was not committed; exit code {child.poll()}")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_interrupted_run_ends_in_two_seconds_and_is_resumed_evaluated_and_adapted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    command = [*SWARM, "run", "smoke", "--plain", "--out", str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        committed_round(run, 2, child)
        child.send_signal(signal.SIGINT)
        started_s = time.monotonic()
        _, errors = child.communicate(timeout=20)
        assert time.monotonic() - started_s < 2.0
    assert child.returncode == 130
    assert f"go on with: swarm resume {run.path}" in errors
    assert "interrupted" in [event["kind"] for event in read_history(run).events]

    resumed = subprocess.run([*SWARM, "resume", str(run.path), "--json"], capture_output=True, text=True, check=True)
    outcome = json.loads(resumed.stdout)
    assert outcome["status"] == "done"
    assert run.scenario().team.budget_steps - outcome["env_steps"] < 8
    assert len(outcome["evaluation"]["after"]["returns"]) == 2
    rounds = [row["round_index"] for row in read_history(run).rounds]
    assert rounds == list(range(outcome["round_index"] + 1))
    assert run.report_file.exists()
    assert list(run.tensorboard.iterdir())

    command = [*SWARM, "evaluate", str(run.path), "--episodes", "3", "--json"]
    evaluated = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(evaluated["returns"]) == len(evaluated["distances"]) == 3
    command = [*SWARM, "adapt", str(run.path), "--shift", "gravity=1.5", "--json"]
    adapted = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert adapted["shift"] == {"gravity": 1.5}
    assert isinstance(adapted["accepted"], bool)
