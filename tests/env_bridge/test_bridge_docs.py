"""The programs in ``docs/bridge.md`` print what stands below them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bridge.md"
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_every_program_of_the_page_has_its_output_below() -> None:
    assert len(PROGRAMS) == PAGE.read_text("utf-8").count("```python\n") >= 4


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_program_of_the_page_prints_what_stands_below_it(program: str, output: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(output), done.stdout
    assert not list(tmp_path.iterdir())
