"""Run a coroutine from a command line: signals cancel it, and the process ends in time even if it does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

ReturnT = TypeVar("ReturnT")
EXIT_WITHIN_S: Final = 1.3
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_interruptibly(main: Coroutine[Any, Any, ReturnT], on_interrupt: Callable[[], None]) -> ReturnT:
    """Run ``main`` to its end on a loop of its own and return its result.

    SIGINT and SIGTERM cancel it. What then takes longer than `EXIT_WITHIN_S` is left behind: the process ends with exit
    code 130, and children notice that their parent is gone.

    Args:
        on_interrupt: tells the user; called once, when ``main`` has ended after a signal or is given up.

    Raises:
        KeyboardInterrupt: a signal came.
    """
    interruption = _Interruption(on_interrupt)
    with interruption, asyncio.Runner() as runner:
        return runner.run(interruption.guard(main))


class _Interruption:
    """Whether a signal came, and the timer that runs since then."""

    def __init__(self, on_interrupt: Callable[[], None]) -> None:
        self._on_interrupt = on_interrupt
        self._timer: threading.Timer | None = None
        self._told = threading.Lock()

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        """Turn the end of an interrupted coroutine, however it ended, into ``KeyboardInterrupt``."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._tell()
        raise KeyboardInterrupt from None

    async def guard(self, main: Coroutine[Any, Any, ReturnT]) -> ReturnT:
        """Await ``main``; the first signal cancels it and starts the timer."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop() -> None:
            if self._timer is None:
                self._timer = threading.Timer(EXIT_WITHIN_S, self._give_up)
                self._timer.daemon = True
                self._timer.start()
                task.cancel()

        for number in SIGNALS:
            loop.add_signal_handler(number, stop)
        try:
            return await main
        finally:
            if self._timer is None:  # else further signals must not end the process before it has cleaned up
                for number in SIGNALS:
                    loop.remove_signal_handler(number)

    def _give_up(self) -> None:
        self._tell()
        os._exit(130)

    def _tell(self) -> None:
        if self._told.acquire(blocking=False):
            with contextlib.suppress(OSError):  # a terminal that went away must not keep the process alive
                self._on_interrupt()
