from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.config import MEMBERS
from agents.ledger import Ledger, Standing
from agents.records import RunRecords
from scenarios.observer import ProcessEvent
from scenarios.recorders import EventLog
from scenarios.run_directory import RunDirectory
from scenarios.scenario import Scenario, load_preset
from swarm.bus import BusStatistics, TopicStatistics
from swarm.messages import Evaluation, Json
from swarm.topics import Topic


def summary_of(index: int, *, evaluated: bool = True) -> dict[str, Json]:
    """A summary with the keys and types that the coordinator publishes."""
    steps = 200 * index
    evaluation = index // 5 * 5 if evaluated else 0
    returns: dict[str, Json] = {
        name: 30.0 * evaluation * (1 + 0.1 * n) if evaluation else None for n, name in enumerate(MEMBERS)
    }
    summary: dict[str, Json] = {
        "round_index": index,
        "env_steps": steps,
        "budget_steps": 20_000,
        "updates_total": max(0, 1_000 * (index - 3)),
        "wall_s": 0.5 + 3.0 * index,
        "evaluation_steps": 40 * evaluation,
        "adaptation_steps": 0,
        "returns": returns,
        "best": {"member": "meta", "return": returns["meta"], "distance_m": 3.0 if evaluation else None},
        "reputation": {name: {"act": 0.5 + 0.1 * n, "compute": 0.6} for n, name in enumerate(MEMBERS)},
        "lost": [],
        "adaptation": {"accepted": index // 10, "rejected": index // 7, "last": None},
    }
    if index > 0:
        auctioned = index > 3
        summary |= {
            "updates": 1_000 if auctioned else 0,
            "seats": {name: 2 if n < 4 else 0 for n, name in enumerate(MEMBERS)},
            "lots": {name: 4 + (index + n) % 3 if auctioned else 0 for n, name in enumerate(MEMBERS)},
            "bids": {
                "act": {name: 1.0 + 0.3 * math.sin(index / 5 + n) for n, name in enumerate(MEMBERS)},
                "compute": {name: 1.5 + 0.3 * math.cos(index / 5 + n) for n, name in enumerate(MEMBERS)},
            }
            if auctioned
            else {},
            "performers": {"coordinator": "adaptation", "meta": "meta"},
            "votes": {name: 10.0 + n + 0.1 * index for n, name in enumerate(MEMBERS)} if auctioned else {},
            "losses": {"meta": {"critic": 1.0 / index}},
            "episodes": [{"return": 20.0 * index + 5 * e, "length": 1_000, "member": "meta"} for e in range(3)]
            if index % 5 == 0
            else [],
            "world": {
                "error": 1.0 / (1 + index / 10),
                "persistence": 0.9,
                "ratio": 1.0 / (1 + index / 10) / 0.9,
                "meta_before": 1.2,
                "meta_after": 1.0 / (1 + index / 20),
                "raw_calibration_error": 0.3,
                "calibration_error": 0.05 + 0.1 / (1 + index),
                "coverage": [0.45, 0.77, 0.93],
                "reliability": [[0.1 * n, 0.09 * n + 0.002 * index] for n in range(1, 9)],
                "imagined_error": 0.2,
                "imagined_persistence": 0.8,
                "imagined_steps": 5.0 + 0.01 * index,
            },
        }
    return summary


WriteRun = Callable[..., RunDirectory]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Makes a run directory with the writers of a real run: records of the coordinator, event log of the runner."""

    def write(
        rounds: int, *, evaluated: bool = True, scenario: Scenario | None = None, name: str = "r"
    ) -> RunDirectory:
        run = RunDirectory.create(tmp_path / name, scenario or load_preset("halfcheetah"))
        records = RunRecords(run.path)
        for index in range(rounds + 1):
            summary = summary_of(index, evaluated=evaluated)
            ledger = Ledger(
                env_steps=200 * index, standings={"meta": Standing(mean_return=1, distance_m=1, round_index=0)}
            )
            records.commit(index, {}, {"nominal": 25 * index}, ledger, summary, {"observation_size": 17})
        if rounds and evaluated:
            for label, level in (("before", -100.0), ("after", 1_500.0)):
                records.write_evaluation(label, reported(level, rounds if label == "after" else 0), 10, 16_000)
        with EventLog(run) as log:
            log.on_process(ProcessEvent(name="bridge", kind="started"))
            log.on_process(ProcessEvent(name="bridge", kind="exited", detail="killed by signal 9"))
            log.on_process(ProcessEvent(name="bridge", kind="restarted", detail="attempt 1"))
            log.on_statistics(
                BusStatistics(
                    topics={topic: TopicStatistics(received=10 * rounds, received_bytes=999) for topic in Topic},
                    rejected={"truncated": 2},
                )
            )
        return run

    return write


def reported(level: float, version: int) -> Evaluation:
    return Evaluation(
        judge="environment",
        round_index=version,
        kind="return-after",
        scores={"meta": level},
        details={
            "returns": [level + 10 * n for n in range(16)],
            "episode_distances": [level / 20 + n for n in range(16)],
            "lengths": [1_000] * 16,
        },
    )
