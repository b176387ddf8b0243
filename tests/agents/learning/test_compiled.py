"""Machine code is compiled by a process of its own, so that the first one computes the bits of all others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CALL = "from tests.agents.learning.test_tiles import arrays, product; product(*arrays(4, 3, 5)); "
TELL = "print(len(product.stats.cache_hits), len(product.stats.cache_misses))"
MADE_HERE = """
from agents.learning.compiled import compiled_and_kept

@compiled_and_kept
def product(a):
    return a + a

assert product(2.0) == 4.0
"""


def run(program: str, cache: Path) -> str:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_who_calls_first_reads_what_was_compiled_as_everybody_after_it_does(tmp_path: Path) -> None:
    assert run(CALL + TELL, tmp_path) == "1 0\n"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert len(written) == 2, "an index, and the code for one type"
    assert run(CALL + TELL, tmp_path) == "1 0\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == written


def test_a_function_that_no_other_process_can_compile_is_compiled_here_and_that_is_said(tmp_path: Path) -> None:
    program = CALL.replace("product(*", "product.py_func.__module__ = 'nowhere'; product(*") + TELL
    assert "last bits may differ" in run(program, tmp_path)


def test_a_function_of_the_program_itself_is_compiled_here(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(MADE_HERE + TELL)
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 1\n"
