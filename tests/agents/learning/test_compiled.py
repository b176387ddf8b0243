"""Machine code is compiled by a process of its own, so that the first one computes the bits of all others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TELL = "print(len(double.stats.cache_hits), len(double.stats.cache_misses))"
CALL = "from kept import double; double(2.0); " + TELL
KEPT = """
from agents.learning.compiled import compiled_and_kept

@compiled_and_kept
def double(a):
    return a + a
"""


def environment(folder: Path, module: str = KEPT) -> dict[str, str]:
    (folder / "kept.py").write_text(module)
    return os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": f"{ROOT}:{folder}"}


def run(program: str, folder: Path) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_who_calls_first_reads_what_was_compiled_as_everybody_after_it_does(tmp_path: Path) -> None:
    assert run(CALL, tmp_path) == "1 0\n"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert len(written) == 2, "an index, and the code for one type"
    assert run(CALL, tmp_path) == "1 0\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == written


def test_what_no_other_process_compiles_is_compiled_here_and_that_is_said(tmp_path: Path) -> None:
    calls = (
        ("sys.executable = ''; double(2.0)", "no interpreter is known"),
        ("sys.executable = '/nowhere'; double(2)", "No such file or directory: '/nowhere'"),
        ("sys.executable = '/bin/true'; double(2j)", "nothing was kept in"),
        ("sys.executable = before; compiled._PROGRAM = 'import os; os.kill(os.getpid(), 15)'; double(True)", "SIGTERM"),
        ("compiled._PROGRAM, compiled.TIMEOUT_S = 'while True: pass', 0; double(numpy.int8(2))", "longer than 0 s"),
        (
            "compiled._PROGRAM, compiled.TIMEOUT_S = 'print(1)\\nnowhere', 60; double(numpy.int16(2))",
            'reason="NameError',
        ),
    )
    start = (
        "import sys, numpy; from kept import double; from agents.learning import compiled; before = sys.executable\n"
    )
    *said, counts = run("\n".join((start, *(call for call, _ in calls), TELL)), tmp_path).splitlines()
    for line, (_, reason) in zip(said, calls, strict=True):
        assert "last bits may differ" in line
        assert reason in line
    assert counts == f"0 {len(calls)}"


def test_a_cache_and_a_path_set_by_the_program_hold_for_the_process_that_compiles(tmp_path: Path) -> None:
    cache = tmp_path / "set"
    settings = (
        f"import sys, pathlib, numba; sys.path.insert(0, pathlib.Path('.')); numba.config.CACHE_DIR = '{cache}'; "
    )
    assert run(settings + CALL, tmp_path) == "1 0\n"
    assert len(list(cache.rglob("*.nb?"))) == 2


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_the_process_that_compiles_ends_with_the_one_that_waits_for_it(by: signal.Signals, tmp_path: Path) -> None:
    fifo = tmp_path / "compiling"
    os.mkfifo(fifo)
    waits = f"import signal, sys\nif not hasattr(sys, 'asks'):\n    alive = open('{fifo}', 'w')\n    signal.pause()\n"
    command = [sys.executable, "-c", "import sys; sys.asks = True; " + CALL]
    asking = subprocess.Popen(command, env=environment(tmp_path, waits + KEPT), stderr=subprocess.PIPE)
    with asking, fifo.open() as compiling:
        asking.send_signal(by)
        assert compiling.read() == "", "its end is the end of the file"
    assert asking.returncode == -by


def test_a_function_of_the_program_itself_is_compiled_here(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(KEPT + "double(2.0)\n" + TELL)
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 1\n"
