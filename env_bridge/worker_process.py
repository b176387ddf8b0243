"""The owner's side of one stepping worker: start, talk, replace."""

from __future__ import annotations

import itertools
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

import numpy as np

from env_bridge.stepping import ask, look_for_byte
from env_bridge.wire import Letter, encode, raise_error
from env_bridge.worker_wire import (
    DONE,
    EXIT_PATIENCE_S,
    LETTER,
    READY,
    STEP,
    receive_byte,
    receive_byte_into,
    receive_letter,
    send_frames,
    set_patience,
)
from swarm.errors import CodecError, ConfigError, PeerLost
from swarm.messages import Arrays, Json

PATIENCE_S: Final = 60.0
"""A worker that has not answered a step after this long hangs."""
LONG_PATIENCE_S: Final = 120.0
"""What a worker may always take for anything else."""
GRACE_S: Final = 1.0
"""What is left of a step's time at least, should nobody have looked for so long (this process slept, too)."""
NOTHING_ASKED: Final = b"-"
UNANSWERED: Final = b"?"
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def processors() -> list[int]:
    """Numbers of the processors that this process may run on; as many as there are where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class WorkerProcess:
    """A child that runs `env_bridge.worker`. Every method raises ``PeerLost`` where it has ended or hangs.

    Each question has one answer. Where an interrupt or another error kept its asker from reading one, it is read and
    forgotten before the next question; a letter that was cut in two makes the worker count as lost.

    Args:
        memory: descriptor of shared memory, which the child gets too.
        patience_s: how long a step may take.
        cpu: the processor to stay on; ``None``: any.
        may_draw: whether MuJoCo loads GL there, for an environment's class that observes pictures.
    """

    def __init__(
        self, memory: int, *, patience_s: float = PATIENCE_S, cpu: int | None = None, may_draw: bool = False
    ) -> None:
        self._numbers = itertools.count(1)
        self._connection, theirs = socket.socketpair()
        self._patience_s = patience_s
        self._waits_s = self._asked_s = 0.0
        self._is_ready = False
        self._is_cut = False
        self._question = np.frombuffer(STEP, np.uint8)
        self._answer = np.frombuffer(NOTHING_ASKED, np.uint8).copy()
        with theirs:
            command = [sys.executable, "-m", "env_bridge.worker"]
            command += ["--control", str(theirs.fileno()), "--memory", str(memory)]
            if cpu is not None:
                command += ["--cpu", str(cpu)]
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1") | ({} if may_draw else {"MUJOCO_GL": "disable"}),
            )

    @property
    def is_ready(self) -> bool:
        """Whether the worker is known to have started."""
        return self._is_ready

    def wait_ready(self) -> None:
        """Wait until the worker has started, for as long as that may take."""
        if not self._is_ready:
            self._wait_for(LONG_PATIENCE_S)
            if receive_byte(self._connection) != READY:
                raise PeerLost("it did not start as a worker does")
            self._is_ready = True

    @property
    def is_asked(self) -> bool:
        """Whether a question was sent, or may have been, whose answer was not taken yet."""
        return self._is_cut or self._first != NOTHING_ASKED

    @property
    def _first(self) -> bytes:
        """Where the newest question stands: the first byte of its answer, once that came."""
        return self._answer.tobytes()

    def send_step(self) -> None:
        """Have the worker step; `wait_step` must follow."""
        self._settle()
        self._wait_for(self._patience_s)
        self._asked_s = time.monotonic()
        if not ask(self._connection.fileno(), self._question, self._answer, UNANSWERED):
            raise PeerLost("the other process has ended")

    @property
    def is_alive(self) -> bool:
        """Whether the worker has not ended, as far as the system knows."""
        return self.process.poll() is None

    def look_for_answer(self, tries: int) -> None:
        """Ask ``tries`` times whether there is an answer, without falling asleep; see `stepping.look_for_byte`."""
        if self._first == UNANSWERED and not self._is_cut:
            look_for_byte(self._connection.fileno(), self._answer, tries)

    def wait_step(self) -> Letter | None:
        """Wait for the end of the step; a letter where the worker has more to say than that it is done."""
        since_s = time.monotonic() - self._asked_s
        if since_s > GRACE_S:
            self._wait_for(max(self._patience_s - since_s, min(GRACE_S, self._patience_s)))
        answer = self._receive()
        return None if answer is None else raise_error(answer)

    def _receive(self) -> Letter | None:
        """Read one answer; nothing where it is only that a step is done."""
        if self._is_cut:
            raise PeerLost("a letter to or from it was cut in two")
        if self._first == UNANSWERED:
            receive_byte_into(self._connection, self._answer)
        first, letter = self._first, None
        if first == LETTER:
            self._is_cut = True
            letter = receive_letter(self._connection)
        elif first != DONE:
            raise PeerLost(f"it said {first!r}")
        self._answer[:] = ord(NOTHING_ASKED)
        self._is_cut = False
        return letter

    def _settle(self) -> None:
        """Read and forget an answer that nobody waited for."""
        if self.is_asked:
            self.wait_ready()
            self._wait_for(LONG_PATIENCE_S)
            self._receive()

    @property
    def descriptor(self) -> int:
        """Becomes readable with the next answer, or the end of the worker; negative once it was killed."""
        return self._connection.fileno()

    def _wait_for(self, seconds: float) -> None:
        if self._waits_s != seconds:
            self._waits_s = -1.0  # unknown, should an interrupt come between
            set_patience(self._connection, seconds)
            self._waits_s = seconds

    def send(self, kind: str, body: Mapping[str, Json], arrays: Arrays | None = None) -> None:
        """Ask for something else than a step; `wait` must follow."""
        letter = Letter(kind=kind, request_id=next(self._numbers), body=body, arrays=arrays or {})
        try:
            frames = encode(letter)  # what cannot be written is known before anything is sent
        except (CodecError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{kind!r} cannot be sent to a worker ({error}): use workers=0") from error
        self._settle()
        self._wait_for(LONG_PATIENCE_S)
        self._is_cut = True
        send_frames(self._connection, frames)
        self._answer[:] = ord(UNANSWERED)
        self._is_cut = False

    def poll(self, seconds: float) -> bool:
        """Wait until there is an answer, or the end of the worker, to `wait` for; false after ``seconds``."""
        if self._connection.fileno() < 0:  # it was killed
            return True
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def wait(self) -> Letter:
        """Wait for the answer to `send`. Raises the error that it names."""
        self.wait_ready()
        answer = self._receive()
        if answer is None:
            raise PeerLost("it answered a letter with a byte")
        return raise_error(answer)

    def disconnect(self) -> None:
        """Have the worker end, without waiting for that."""
        self._connection.close()

    def close(self) -> None:
        """Let the worker end by itself, or else kill it."""
        self.disconnect()
        try:
            self.process.wait(EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> str:
        """End the worker now; return how it had ended, if it had."""
        code = self.process.poll()
        if code is None:
            self.process.kill()
            self.process.wait()
        self._connection.close()
        self._answer[:] = ord(NOTHING_ASKED)
        self._is_cut = False
        if code is None:
            return "did not answer and was killed"
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def lost_text(error: PeerLost, how: str) -> str:
    """One line about a worker that was lost."""
    return f"a stepping worker {how} ({error})"
