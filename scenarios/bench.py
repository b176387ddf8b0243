"""Runs the programs under ``tests/benchmarks`` of a checkout, each in fresh processes with fixed numbers of threads."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from swarm.errors import ConfigError, SwarmError

FOLDER: Final = Path(__file__).resolve().parents[1] / "tests" / "benchmarks"
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the benchmarks of this checkout, sorted; none where the package was installed without its tests."""
    return tuple(sorted(path.stem for path in folder.glob("*.py") if "\ndef measure(" in path.read_text("utf-8")))


def run(name: str, threads: Sequence[int]) -> dict[str, Any]:
    """Return ``{"measurements": …, "ratios": …}`` of benchmark ``name``.

    Ratios are those of the first number of threads; measurements of all of them, below ``threads-<n>``.

    Raises:
        ConfigError: there is no such benchmark.
        SwarmError: the benchmark failed.
    """
    known = names()
    if name not in known:
        where = f"; known: {', '.join(known)}" if known else ": none here, benchmarks run from a source checkout"
        raise ConfigError(f"unknown benchmark {name!r}{where}")
    found = {number: _in_fresh_process(name, number) for number in threads}
    return {
        "measurements": {f"threads-{number}": result["measurements"] for number, result in found.items()},
        "ratios": found[threads[0]]["ratios"],
        "ratios_by_threads": {str(number): result["ratios"] for number, result in found.items()},
    }


def _in_fresh_process(name: str, threads: int) -> Mapping[str, Any]:
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-m", "scenarios.bench", name, str(threads)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SwarmError(f"benchmark {name!r} with {threads} threads ended with exit code {done.returncode}")
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _load(name: str) -> ModuleType:
    """Import a benchmark by its file's name; so are its neighbours, and what numba keeps of it is found again."""
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_load(sys.argv[1]).measure(int(sys.argv[2]))) + "\n")
