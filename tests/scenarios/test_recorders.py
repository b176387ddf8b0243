from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenarios.observer import Observers, ProcessEvent, RunOutcome
from scenarios.recorders import EventLog, TensorboardLog, scalars_of
from scenarios.run_directory import RunDirectory
from scenarios.run_records import read_history
from scenarios.scenario import load_preset
from swarm.bus import BusStatistics, TopicStatistics
from swarm.topics import Topic


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", load_preset("smoke"))


def test_event_log_keeps_processes_outcome_and_the_last_counts(run: RunDirectory) -> None:
    with EventLog(run) as log:
        observer = Observers([log])
        observer.on_process(ProcessEvent(name="bridge", kind="restarted", detail="why"))
        for received in (1, 2):
            observer.on_statistics(BusStatistics(topics={Topic.TASKS: TopicStatistics(received=received)}))
        observer.on_end(
            RunOutcome(run_dir=run.path, status="done", round_index=1, env_steps=2, wall_s=3.0, weights_digest="x")
        )
    history = read_history(run)
    assert [event["kind"] for event in history.events] == ["restarted", "done", "topics"]
    assert history.topics()["tasks"]["received"] == 2
    assert history.incidents() == ["bridge restarted: why"]


@pytest.mark.parametrize(("error", "kind"), [(KeyboardInterrupt(), "interrupted"), (ValueError("bad"), "failed")])
def test_event_log_says_how_a_session_broke_off(run: RunDirectory, error: BaseException, kind: str) -> None:
    with pytest.raises(type(error)), EventLog(run):
        raise error
    assert [event["kind"] for event in read_history(run).events] == [kind]


def test_second_session_appends(run: RunDirectory) -> None:
    for _ in range(2):
        with EventLog(run) as log:
            log.on_process(ProcessEvent(name="bridge", kind="exited"))
    assert len(run.events_file.read_text(encoding="utf-8").splitlines()) == 2


def test_numbers_of_a_summary_become_curves() -> None:
    summary = {
        "env_steps": 400,
        "updates": 50,
        "returns": {"meta": 1.5, "state": None},
        "best": {"member": "meta", "return": 2.0},
        "bids": {"act": {"meta": 0.5}},
        "world": {"ratio": 0.4, "skipped": []},
        "adaptation": {"accepted": 1, "last": {"accepted": True, "before": 3.0}},
    }
    assert scalars_of(summary) == {
        "returns/meta": 1.5,
        "best/return": 2.0,
        "bids/act/meta": 0.5,
        "world/ratio": 0.4,
        "adaptation/accepted": 1.0,
        "adaptation/last/before": 3.0,
        "totals/updates": 50.0,
    }


def test_tensorboard_files_are_written(run: RunDirectory) -> None:
    with TensorboardLog(run) as log:
        log.on_round({"env_steps": 200, "returns": {"meta": 3.0}})
    (path,) = run.tensorboard.iterdir()
    assert b"returns/meta" in path.read_bytes()


def test_run_directory_records_machine_and_scenario(run: RunDirectory) -> None:
    assert run.scenario() == load_preset("smoke")
    machine = json.loads(run.environment_file.read_text(encoding="utf-8"))
    assert machine["seed"] == 0
    assert machine["compiled"] == "numba"
    assert machine["versions"]["torch"]
    assert machine["cores"] >= 1
