from __future__ import annotations

import signal
import subprocess
import sys

import pytest

CHILD = """
import os, signal, sys, time
from swarm.lifeline import die_with_parent
die_with_parent(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid()), sys.argv[2]])
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's; elsewhere children watch standard input")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_gets_the_signal_when_its_parent_is_killed(signum: signal.Signals) -> None:
    argv = [sys.executable, "-c", PARENT, CHILD, str(int(signum))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        parent.kill()
        assert parent.stdout.read() == ""  # the pipe ends when the child has ended, well before its 60 seconds


def test_a_child_of_another_process_ends_at_once() -> None:
    ended = subprocess.run([sys.executable, "-c", CHILD, "1", "15"], check=False, capture_output=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (1, b"")
