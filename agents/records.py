"""The files that the coordinator writes, and what they say of a finished run. Blocking; no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog

from agents.ledger import Ledger
from swarm.checkpoint import CheckpointStore, Manifest, write_durably
from swarm.errors import CheckpointError
from swarm.messages import Evaluation, Json

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a run directory holds as of its newest valid checkpoint; ``skipped`` names damaged ones."""

    round_index: int
    rows: Mapping[str, int]
    ledger: Ledger
    summary: Mapping[str, Json]
    skipped: tuple[str, ...]


class RunRecords:
    """Writer of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.store = CheckpointStore(run_dir)
        self._environment: Json = None

    def recover(self) -> Committed | None:
        """Return the newest committed round, with later metrics cut off; ``None`` for a fresh directory.

        Raises:
            CheckpointError: checkpoints exist, but none is valid.
        """
        manifest, skipped = self.store.latest()
        if manifest is None:
            return None
        state = self.store.load_ledger(manifest)
        summary = cast(Mapping[str, Json], state["summary"])
        self._environment = state["environment"]
        self._cut_metrics(manifest.round_index, summary)
        return Committed(
            round_index=manifest.round_index,
            rows=manifest.rows,
            ledger=Ledger.from_json(cast(Mapping[str, Json], state["ledger"])),
            summary=summary,
            skipped=tuple(f"checkpoint {row.path.name} was skipped: {row.reason}" for row in skipped),
        )

    def commit(
        self,
        index: int,
        files: Mapping[str, str],
        rows: Mapping[str, int],
        ledger: Ledger,
        summary: Mapping[str, Json],
        environment: Json,
    ) -> None:
        """Make round ``index`` the newest checkpoint and append its metrics.

        Args:
            files: staged file name → sha256.
            environment: sizes of the environment; ``None`` keeps what was committed before.
        """
        self._environment = environment if environment is not None else self._environment
        state: dict[str, Json] = {"ledger": ledger.to_json(), "summary": summary, "environment": self._environment}
        self.store.commit(index, files, rows=rows, ledger=state)
        with (self.run_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(summary) + "\n")

    def write_evaluation(self, label: str, evaluation: Evaluation, episodes: int, steps: int) -> None:
        """Enter the first ``episodes`` reported episodes, or trials, under ``label`` (``before`` or ``after``).

        Args:
            steps: environment steps that it took to choose this member and to evaluate it.
        """
        path = self.run_dir / EVALUATION
        data = _read_object(path)
        trials = {name: evaluation.details[name] for name in ("curves", "tasks") if name in evaluation.details}
        data[label] = {
            "member": next(iter(evaluation.scores)),
            "version": evaluation.round_index,
            "steps": steps,
            "returns": cast(list[float], evaluation.details["returns"])[:episodes],
            "distances": cast(list[float], evaluation.details["episode_distances"])[:episodes],
            "lengths": cast(list[int], evaluation.details["lengths"])[:episodes],
            **{name: cast(list[Json], rows)[:episodes] for name, rows in trials.items()},
        }
        write_durably(path, json.dumps(data, indent=1).encode())

    def _cut_metrics(self, index: int, summary: Mapping[str, Json]) -> None:
        path = self.run_dir / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _round_of(line) < index]
        write_durably(path, "".join(line + "\n" for line in [*kept, json.dumps(summary)]).encode())


def newest_checkpoint(run_dir: Path) -> Manifest:
    """Return the newest valid checkpoint. Raises ``CheckpointError`` where there is none."""
    manifest, skipped = CheckpointStore(run_dir).latest()
    for row in skipped:
        log.warning("checkpoint_skipped", checkpoint=row.path.name, reason=row.reason)
    if manifest is None:
        damaged = "; ".join(f"{row.path.name}: {row.reason}" for row in skipped)
        raise CheckpointError(
            f"{run_dir} has no valid checkpoint"
            + (f" ({damaged})" if damaged else "; was a first round ever committed?")
        )
    return manifest


def reported_evaluation(run_dir: Path, round_index: int) -> Mapping[str, Json] | None:
    """Return the reported episodes of a run's end, if it ended with that round.

    Raises:
        CheckpointError: the file of evaluations is damaged.
    """
    path = run_dir / EVALUATION
    if not path.exists():
        return None
    try:
        after: Mapping[str, Json] | None = json.loads(path.read_text(encoding="utf-8")).get("after")
        if after is None or after["version"] != round_index:
            return None
        return {key: after[key] for key in ("member", "returns", "distances", "lengths")}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it to use the best member so far") from error


def deployed_member(run_dir: Path, manifest: Manifest) -> str:
    """Return the member that selection episodes chose: the reported one, else the best so far."""
    reported = reported_evaluation(run_dir, manifest.round_index)
    if reported is not None:
        return cast(str, reported["member"])
    ledger = cast(Mapping[str, str], CheckpointStore(run_dir).load_ledger(manifest)["ledger"])
    return ledger["best"]


def _read_object(path: Path) -> dict[str, Json]:
    """Read a JSON object; what is damaged is moved aside and said, so that the end of a run never depends on it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    os.replace(path, path.with_name(path.name + ".damaged"))
    log.warning("damaged_file_moved_aside", path=str(path))
    return {}


def _round_of(line: str) -> int:
    """Round of a metrics line; a torn last line sorts behind everything and is cut."""
    try:
        return cast(int, json.loads(line)["round_index"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62
