"""Runs the programs under ``tests/benchmarks`` of a checkout, each in fresh processes with fixed numbers of threads."""

from __future__ import annotations

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from swarm.errors import ConfigError, SwarmError
from swarm.lifeline import die_with_parent

FOLDER: Final = Path(__file__).resolve().parents[1] / "tests" / "benchmarks"
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
PATIENCE_S: Final = 30.0


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the benchmarks of this checkout, sorted; none where the package was installed without its tests."""
    return tuple(sorted(path.stem for path in folder.glob("*.py") if "\ndef measure(" in path.read_text("utf-8")))


def numbers_of_threads(path: Path, asked: Sequence[int]) -> Sequence[int]:
    """Return the numbers that a benchmark names itself, as ``THREADS = (1,)``, else those ``asked`` for."""
    for statement in ast.parse(path.read_text("utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="THREADS")], value=value):
                return tuple(int(number) for number in ast.literal_eval(value))
    return asked


def run(name: str, threads: Sequence[int]) -> dict[str, Any]:
    """Return ``{"measurements": …, "ratios": …}`` of benchmark ``name``.

    Ratios are those of the first number of threads; measurements of all of them, below ``threads-<n>``. A benchmark
    may say itself with which numbers it runs (`numbers_of_threads`).

    Raises:
        ConfigError: there is no such benchmark.
        SwarmError: the benchmark failed.
    """
    known = names()
    if name not in known:
        where = f"; known: {', '.join(known)}" if known else ": none here, benchmarks run from a source checkout"
        raise ConfigError(f"unknown benchmark {name!r}{where}")
    chosen = numbers_of_threads(FOLDER / f"{name}.py", threads)
    found = {number: _in_fresh_process(name, number) for number in chosen}
    return {
        "measurements": {f"threads-{number}": result["measurements"] for number, result in found.items()},
        "ratios": found[chosen[0]]["ratios"],
        "ratios_by_threads": {str(number): result["ratios"] for number, result in found.items()},
    }


def _in_fresh_process(name: str, threads: int) -> Mapping[str, Any]:
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-m", "scenarios.bench", name, str(threads)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:  # it ends what it started itself, if it is told once
            process.send_signal(signal.SIGINT)
            _wait_or_kill(process)
            raise
    if process.returncode != 0:
        raise SwarmError(f"benchmark {name!r} with {threads} threads ended with exit code {process.returncode}")
    found: Mapping[str, Any] = json.loads(output.splitlines()[-1])
    return found


def _wait_or_kill(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _load(name: str) -> ModuleType:
    """Import a benchmark by its file's name; so are its neighbours, and what numba keeps of it is found again."""
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


def main(name: str, threads: str) -> int:
    """Measure in this process; the end of the one that asked, or an interrupt, ends it in order."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    die_with_parent(os.getppid(), signal.SIGINT)
    try:
        sys.stdout.write(json.dumps(_load(name).measure(int(threads))) + "\n")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
