"""What a run directory says about its run, read back for the report. Incomplete and missing files are normal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenarios.observer import UNEVENTFUL, ProcessEvent, skips_of
from scenarios.run_directory import RunDirectory
from swarm.errors import CheckpointError

Row = Mapping[str, Any]
"""One line of JSON; its keys are documented where it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """Everything that was recorded about a run.

    Attributes:
        rounds: summaries of committed rounds, by round index, the initial checkpoint (round 0) first.
        events: lines of ``events.jsonl`` (`scenarios.recorders.EventLog`), oldest first.
        evaluation: ``before`` and ``after`` of ``evaluation.json``, as far as they exist.
    """

    rounds: Sequence[Row] = ()
    events: Sequence[Row] = ()
    evaluation: Mapping[str, Row] = field(default_factory=dict)

    @property
    def trained(self) -> list[Row]:
        """Rounds after the initial checkpoint."""
        return [row for row in self.rounds if row["round_index"] > 0]

    @property
    def last(self) -> Row:
        """Newest summary, or an empty one."""
        return self.rounds[-1] if self.rounds else {}

    def totals(self, key: str) -> dict[str, int]:
        """Sum a ``{name: count}`` entry such as ``seats`` or ``lots`` over all rounds that were auctioned."""
        total: Counter[str] = Counter()
        for row in self.trained:
            if row.get("bids"):
                total.update({name: int(count) for name, count in row.get(key, {}).items()})
        return dict(total)

    def performed(self) -> dict[str, int]:
        """Contracts performed per agent (training contracts, as the summaries name their performers)."""
        return dict(Counter(agent for row in self.trained for agent in row.get("performers", {}).values()))

    def topics(self) -> dict[str, dict[str, int]]:
        """Counts per topic at the launcher's bus, summed over sessions."""
        total: dict[str, Counter[str]] = {}
        for event in self.events:
            if event.get("kind") == "topics":
                for topic, counts in event["topics"].items():
                    total.setdefault(topic, Counter()).update(counts)
        return {topic: dict(counts) for topic, counts in total.items()}

    def incidents(self) -> list[str]:
        """What was lost, restarted, repeated, skipped or rejected, in plain words, oldest first per source."""
        found = [
            ProcessEvent(name=event["name"], kind=event["kind"], detail=event["detail"]).to_text()
            for event in self.events
            if event.get("source") == "process" and event["kind"] not in UNEVENTFUL
        ]
        found += [str(text) for text in self.last.get("lost", ())]
        skips: Counter[str] = Counter()
        for row in self.trained:
            skips.update(skips_of(row))
        found += [f"{text} ({count} {'time' if count == 1 else 'times'})" for text, count in skips.items()]
        for topic, counts in self.topics().items():
            if counts.get("lost"):
                found.append(f"{counts['lost']} messages on topic {topic} were lost for good")
        rejected: Counter[str] = Counter()
        for event in self.events:
            rejected.update(event.get("rejected", {}))
        found += [f"{count} inputs that were no messages were rejected ({why})" for why, count in rejected.items()]
        return found


def read_history(run: RunDirectory) -> RunHistory:
    """Read all records of ``run``; a torn last line is left out.

    Raises:
        CheckpointError: a record is damaged in its middle.
    """
    rounds = {row["round_index"]: row for row in _read_lines(run.metrics_file) if "round_index" in row}
    evaluation: Mapping[str, Row] = {}
    if run.evaluation_file.exists():
        try:
            evaluation = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{run.evaluation_file} is damaged: {error}; delete it to report without") from error
    return RunHistory(
        rounds=[rounds[index] for index in sorted(rounds)], events=_read_lines(run.events_file), evaluation=evaluation
    )


def _read_lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the process died while it wrote this line
                break
            raise CheckpointError(f"{path}, line {number} is damaged: {error}") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows
