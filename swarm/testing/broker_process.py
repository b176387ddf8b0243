"""A broker process of one's own, for tests and measurements; may be killed and started again at the same endpoints."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class BrokerProcess:
    """``python -m swarm.broker`` as a context manager.

    Attributes:
        endpoints: (frontend, backend), which is what a `ZmqBus` takes after its name.
    """

    def __init__(self, frontend: str, backend: str) -> None:
        self.endpoints = (frontend, backend)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def over_ipc(cls, folder: Path) -> Self:
        """A broker on sockets in ``folder``, whose path must be short (107 bytes in all)."""
        tag = secrets.token_hex(3)
        return cls(f"ipc://{folder}/{tag}.f", f"ipc://{folder}/{tag}.b")

    @classmethod
    def over_tcp(cls) -> Self:
        """A broker on two free ports of the loopback interface."""
        return cls(f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        assert self._process is not None, "the broker was not started"
        return self._process

    def start(self) -> None:
        """Start it; peers wait by themselves until it answers."""
        command = [
            sys.executable,
            "-m",
            "swarm.broker",
            "--frontend",
            self.endpoints[0],
            "--backend",
            self.endpoints[1],
        ]
        self._process = subprocess.Popen([*command, "--parent-pid", str(os.getpid())])

    def kill(self) -> None:
        """Kill it as hard as possible, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)
