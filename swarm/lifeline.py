"""A child process that ends with its parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send ``by`` when process ``parent_pid`` ends; exit at once if it has ended already.

    Call it first thing. On Linux by prctl(2), which fires when the *thread* that started this process ends; elsewhere,
    and for that reason, also use `watch_standard_input`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def watch_standard_input(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Set ``ended`` when standard input reaches its end: the other end of the pipe is closed with its process."""

    def read_to_end() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read_to_end, name="lifeline", daemon=True).start()
