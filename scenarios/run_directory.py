"""A run on disk: names of its files, making a new one, opening an old one with clear errors."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from typing import Final, Self

from scenarios.scenario import Scenario, check_runnable
from swarm.errors import CheckpointError, ConfigError
from swarm.messages import Json

DEFAULT_ROOT: Final = Path("runs")
CHECKPOINT_NAME: Final = re.compile(r"round-(\d{6,})")
RECORDED_PACKAGES: Final = (
    "ssm-swarm",
    "torch",
    "gymnasium",
    "mujoco",
    "numpy",
    "numba",
    "pyzmq",
    "msgpack",
    "safetensors",
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run; creating and opening validate, reading does not."""

    path: Path

    @classmethod
    def create(cls, path: Path, scenario: Scenario) -> Self:
        """Make the directory with ``scenario.toml`` and ``environment.json``.

        Raises:
            ConfigError: the path exists and holds something, or cannot be written; or the environment cannot be used.
        """
        check_runnable(scenario)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(
                    f"{path} is not empty; name a new folder with --out, "
                    f"or continue it with: {swarm_command()} resume {path}"
                )
            run = cls(path)
            run.environment_file.write_text(json.dumps(describe_machine(scenario), indent=1) + "\n", encoding="utf-8")
            run.scenario_file.write_text(scenario.to_toml(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {path}: {error.strerror or error}; name a writable folder with --out"
            ) from error
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return an existing run. Raises ``CheckpointError`` where ``path`` is none."""
        if not path.exists():
            raise CheckpointError(
                f"run directory {path} does not exist; start one with: {swarm_command()} run halfcheetah"
            )
        run = cls(path)
        if not run.scenario_file.is_file():
            raise CheckpointError(f"{path} is not a run directory: it has no scenario.toml")
        run.scenario()
        return run

    @property
    def scenario_file(self) -> Path:
        """The resolved scenario."""
        return self.path / "scenario.toml"

    @property
    def agents_file(self) -> Path:
        """Agents of the user's own, where there are any."""
        return self.path / "agents.json"

    @property
    def environment_file(self) -> Path:
        """Versions, machine, seed."""
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """One committed round a line."""
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        """Processes and sessions, one event a line."""
        return self.path / "events.jsonl"

    @property
    def evaluation_file(self) -> Path:
        """Reported episodes before and after training."""
        return self.path / "evaluation.json"

    @property
    def report_file(self) -> Path:
        """The report, with its plots beside it."""
        return self.path / "report.md"

    @property
    def video_file(self) -> Path:
        """The trained policy."""
        return self.path / "video.mp4"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Committed rounds."""
        return self.path / "checkpoints"

    def scenario(self) -> Scenario:
        """Read the resolved scenario. Raises ``CheckpointError`` where it is damaged."""
        try:
            return Scenario.from_mapping(tomllib.loads(self.scenario_file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
            raise CheckpointError(f"{self.scenario_file} cannot be used: {error}") from error

    def last_round(self) -> int | None:
        """Newest committed round by name; ``None`` before the initial checkpoint. Contents are not checked here."""
        found = (CHECKPOINT_NAME.fullmatch(entry.name) for entry in self.checkpoints.glob("round-*"))
        return max((int(match[1]) for match in found if match), default=None)

    def require_checkpoint(self) -> int:
        """Return `last_round`. Raises ``CheckpointError`` where nothing is committed."""
        committed = self.last_round()
        if committed is None:
            raise CheckpointError(
                f"{self.path} has no committed round; continue it with: {swarm_command()} resume {self.path}"
            )
        return committed


def swarm_command() -> str:
    """Return how a shell in the current folder calls this program: ``swarm``, or its path where PATH lacks it."""
    if which("swarm") is not None:
        return "swarm"
    script = Path(sys.executable).with_name("swarm")
    if not script.exists():
        return f"{sys.executable} -m scenarios"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def default_path(scenario: Scenario, now: datetime) -> Path:
    """Return ``runs/<scenario>-<seed>-<date>-<time>`` below the current folder."""
    return DEFAULT_ROOT / f"{scenario.name}-{scenario.team.seed}-{now:%Y%m%d-%H%M%S}"


def describe_machine(scenario: Scenario) -> dict[str, Json]:
    """Return what reproducing a run needs to know, besides the scenario: versions, processor, threads, commit."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: installed_version(name) for name in RECORDED_PACKAGES},
        "seed": scenario.team.seed,
        "threads_per_process": 1,
        "processes": scenario.processes,
        "workers": scenario.workers,
        "commit": _commit(),
        "compiled": "numba",
        "command": sys.argv,
    }


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution without importing it, or ``None``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> Mapping[str, Json] | None:
    """Commit of the source tree that runs, and whether it is modified; ``None`` where it is no git checkout."""
    source = Path(__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    try:
        head = _git(source, "rev-parse", "HEAD")
        return {"id": head, "modified": bool(_git(source, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(source: Path, *arguments: str) -> str:
    command = ["git", "-C", str(source), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
