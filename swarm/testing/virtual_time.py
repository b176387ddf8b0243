"""An event loop whose clock jumps to the next timer whenever nothing is ready: an hour of time-outs in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import TypeVar

ReturnT = TypeVar("ReturnT")


class NothingWillHappen(RuntimeError):
    """Every task waits, and there is no timer left that could wake one: a deadlock."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: looks at descriptors once and moves the clock by the time that it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; if nothing is, ``timeout`` seconds of virtual time have passed."""
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise NothingWillHappen("all tasks wait and no timer is set")
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on virtual time, from 0 seconds. Threads and sockets make it real again: keep them out."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._jumping.now


def run_virtual(main: Coroutine[object, object, ReturnT]) -> ReturnT:
    """Run ``main`` to its end on a fresh `VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
