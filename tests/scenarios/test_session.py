from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from scenarios.session import run_interruptibly

STUBBORN = """
import asyncio, sys
from scenarios.session import run_interruptibly
async def main():
    print("ready", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
try:
    run_interruptibly(main(), lambda: print("told", flush=True))
except KeyboardInterrupt:
    sys.exit(99)
"""


def test_result_comes_back_and_nobody_is_told_of_an_interruption() -> None:
    async def main() -> int:
        return 42

    assert run_interruptibly(main(), pytest.fail) == 42


def test_error_comes_out_as_it_is() -> None:
    async def main() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        run_interruptibly(main(), pytest.fail)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cancels_lets_clean_up_and_ends_as_keyboard_interrupt(number: signal.Signals) -> None:
    told: list[str] = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            told.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(main(), lambda: told.append("told"))
    assert told == ["cleaned up", "told"]


def test_coroutine_that_swallows_cancellation_is_left_behind_within_two_seconds() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        started_s = time.monotonic()
        assert child.wait(timeout=10) == 130
        assert time.monotonic() - started_s < 2.5
        assert child.stdout.read() == "told\n"
