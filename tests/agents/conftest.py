"""While the first tests here run, another process compiles what later ones call; who calls it earlier waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AHEAD = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start it before the first test of this folder."""
    if AHEAD not in item.session.stash:
        command = [sys.executable, "-m", "tests.agents.compile_ahead"]
        item.session.stash[AHEAD] = subprocess.Popen(command, cwd=HERE.parents[1], start_new_session=True)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End it behind the last one."""
    if nextitem is None or HERE not in nextitem.path.parents:
        with item.session.stash[AHEAD] as ahead:
            if ahead.poll() is None:
                os.killpg(ahead.pid, signal.SIGKILL)
            elif ahead.returncode != 0:
                raise RuntimeError("what compiles ahead failed; see its traceback above")
