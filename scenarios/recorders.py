"""Observers that write files of the run directory: ``events.jsonl`` and TensorBoard event files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Self, TextIO, cast

from scenarios.observer import ProcessEvent, RunOutcome
from scenarios.run_directory import RunDirectory
from swarm.bus import BusStatistics, Received
from swarm.messages import Json


class EventLog:
    """Appends processes, ends of sessions and topic counts to ``events.jsonl``, line by line.

    Each line has ``wall_time`` (seconds since 1970), ``source`` (``process`` or ``session``), ``kind``, ``name`` and
    ``detail``; the line of kind ``topics``, written when a session closes, has ``topics`` and ``rejected`` counts.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._file: TextIO | None = None
        self._statistics: BusStatistics | None = None

    def __enter__(self) -> Self:
        _end_torn_line(self._run.events_file)
        self._file = self._run.events_file.open("a", encoding="utf-8")
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        broken_off = None if exc is None else "failed" if isinstance(exc, Exception) else "interrupted"
        self.close(broken_off, str(exc) if exc is not None else "")

    def close(self, broken_off: str | None = None, detail: str = "") -> None:
        """Write how the session broke off, if it did, and the last topic counts; later calls do nothing."""
        if broken_off is not None:
            self._write("session", broken_off, detail=detail)
        if self._statistics is not None:
            self._write(
                "session",
                "topics",
                topics={topic.value: asdict(counts) for topic, counts in self._statistics.topics.items()},
                rejected=dict(self._statistics.rejected),
            )
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_phase(self, text: str) -> None:
        """Nothing: phases are for people who watch."""

    def on_message(self, received: Received) -> None:
        """Nothing: messages are counted by the bus."""

    def on_process(self, event: ProcessEvent) -> None:
        """Write what happened to a process."""
        self._write("process", event.kind, event.name, event.detail)

    def on_statistics(self, statistics: BusStatistics) -> None:
        """Keep the newest counts."""
        self._statistics = statistics

    def on_round(self, summary: Mapping[str, Json]) -> None:
        """Nothing: the coordinator writes ``metrics.jsonl`` itself."""

    def on_end(self, outcome: RunOutcome) -> None:
        """Write how the session ended."""
        self._write("session", outcome.status, detail=outcome.reason)

    def _write(self, source: str, kind: str, name: str = "", detail: str = "", **more: object) -> None:
        if self._file is None:
            return
        row = {"wall_time": time.time(), "source": source, "kind": kind, "name": name, "detail": detail, **more}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def _end_torn_line(path: Path) -> None:
    """Cut what a killed session left of its last line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        path.write_bytes(data[:whole])


class TensorboardLog:
    """Writes a scalar per measured quantity and round; the step is environment steps."""

    def __init__(self, run: RunDirectory) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run.tensorboard), flush_secs=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        self._writer.close()

    def on_phase(self, text: str) -> None:
        """Nothing."""

    def on_message(self, received: Received) -> None:
        """Nothing."""

    def on_process(self, event: ProcessEvent) -> None:
        """Nothing."""

    def on_statistics(self, statistics: BusStatistics) -> None:
        """Nothing."""

    def on_round(self, summary: Mapping[str, Json]) -> None:
        """Write one point per curve."""
        step = cast(int, summary["env_steps"])
        for tag, value in sorted(scalars_of(summary).items()):
            self._writer.add_scalar(tag, value, step)

    def on_end(self, outcome: RunOutcome) -> None:
        """Flush."""
        self._writer.flush()


def scalars_of(summary: Mapping[str, Json]) -> dict[str, float]:
    """Return the numbers of a round summary that make curves, by slash-separated tag."""
    found: dict[str, float] = {}
    for key in ("returns", "lots", "seats", "votes", "best", "world", "bids", "reputation", "losses", "adaptation"):
        _collect(summary.get(key), key, found)
    for key in ("updates", "updates_total", "wall_s", "evaluation_steps", "adaptation_steps"):
        _collect(summary.get(key), f"totals/{key}", found)
    return found


def _collect(value: Json, tag: str, found: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, f"{tag}/{key}", found)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found[tag] = float(value)
