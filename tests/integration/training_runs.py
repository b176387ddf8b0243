"""Training runs of the smoke scenario, small enough for every test machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scenarios.observer import Observers, RunOutcome
from scenarios.run_directory import RunDirectory
from scenarios.runner import run_scenario
from scenarios.scenario import Scenario, load_preset
from swarm.bus import BusStatistics, Received
from swarm.messages import Json


@dataclass
class Recorder:
    """An observer that keeps what it hears and can call back after each round."""

    rounds: list[Mapping[str, Json]] = field(default_factory=list)
    processes: list[tuple[str, str]] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)
    statistics: BusStatistics | None = None
    after_round: Callable[[int], None] | None = None

    def on_phase(self, text: str) -> None:
        pass

    def on_message(self, received: Received) -> None:
        self.messages[received.topic.value] = self.messages.get(received.topic.value, 0) + 1

    def on_process(self, event: object) -> None:
        self.processes.append((event.name, event.kind))  # type: ignore[attr-defined]

    def on_statistics(self, statistics: BusStatistics) -> None:
        self.statistics = statistics

    def on_round(self, summary: Mapping[str, Json]) -> None:
        self.rounds.append(summary)
        if self.after_round is not None:
            self.after_round(int(summary["round_index"]))  # type: ignore[arg-type]

    def on_end(self, outcome: RunOutcome) -> None:
        pass


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end, and what was heard of it."""

    outcome: RunOutcome
    heard: Recorder
    path: Path


def smoke(*overrides: str) -> Scenario:
    """The smoke scenario with overrides."""
    return load_preset("smoke").with_overrides(list(overrides))


def train(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    after_round: Callable[[int], None] | None = None,
    resume: bool = False,
) -> FinishedRun:
    """Run the smoke scenario to its end in ``path``."""
    return asyncio.run(_train(path, overrides, after_round, resume=resume))


def train_side_by_side(*rows: Mapping[Path, Sequence[str]]) -> dict[Path, FinishedRun]:
    """Run the smoke scenario in each of the paths with its overrides: those of a row one by one, the rows at once.

    For runs that mostly wait, and others meanwhile.
    """
    finished: dict[Path, FinishedRun] = {}

    async def train_row(row: Mapping[Path, Sequence[str]]) -> None:
        for path, overrides in row.items():
            finished[path] = await _train(path, overrides, None, resume=False)

    async def train_rows() -> None:
        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(train_row(row))

    asyncio.run(train_rows())
    return finished


async def _train(
    path: Path, overrides: Sequence[str], after_round: Callable[[int], None] | None, *, resume: bool
) -> FinishedRun:
    scenario = smoke(*overrides)
    if not resume:
        RunDirectory.create(path, scenario)
    heard = Recorder(after_round=after_round)
    outcome = await run_scenario(scenario, path, observer=Observers([heard]), resume=resume)
    return FinishedRun(outcome, heard, path)
