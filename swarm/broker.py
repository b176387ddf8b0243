"""The broker process: libzmq's XSUB/XPUB proxy, stateless. ``python -m swarm.broker --frontend … --backend …``.

Peers publish to the frontend and subscribe at the backend. Prints nothing. Whoever knocks without speaking ZeroMQ is
kept waiting by libzmq, which takes him for a peer of protocol version 1; the broker counts him when he hangs up, and
tells the peers. Exit codes: 0 asked to stop or parent gone, 2 the user must act.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from swarm.control import EVERYBODY, Refused, encode_control
from swarm.errors import ConfigError
from swarm.lifeline import die_with_parent
from swarm.zmq_bus import harden

HIGH_WATER: Final = 100_000
END_S: Final = 1.0
POLL_MS: Final = 250
NAME: Final = "broker"
_INTERNAL: Final = "inproc://refused"
_HANDSHAKE_FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Broker:
    """Two bound sockets and the proxy between them, on a thread of its own.

    Raises:
        ConfigError: an endpoint cannot be bound, or is off loopback.
    """

    def __init__(self, frontend: str, backend: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoints = (frontend, backend)
        self._sockets: list[zmq.Socket[bytes]] = []
        self._incarnation = time.time_ns()
        self._refused = 0
        try:
            for kind, endpoint in zip((zmq.XSUB, zmq.XPUB), self._endpoints, strict=True):
                self._sockets.append(self._bind(kind, endpoint))
        except ConfigError:
            self._context.destroy(linger=0)
            raise
        self._sockets[0].bind(_INTERNAL)
        self._monitors = [socket.get_monitor_socket(_HANDSHAKE_FAILURES) for socket in self._sockets]
        self._teller = self._context.socket(zmq.PUB)
        self._teller.connect(_INTERNAL)
        self._proxy = threading.Thread(target=self._run_proxy, name="proxy", daemon=True)

    def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        _check_endpoint(endpoint)
        socket = self._context.socket(kind)
        harden(socket, HIGH_WATER, 0.0)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise ConfigError(f"cannot bind {endpoint!r}: {error}; choose a free port or a writable folder") from None
        return socket

    def _run_proxy(self) -> None:
        with contextlib.suppress(zmq.ContextTerminated):
            zmq.proxy(self._sockets[0], self._sockets[1])
        for socket in self._sockets:
            socket.close(linger=0)

    def start(self) -> None:
        """Start forwarding."""
        self._proxy.start()

    def watch(self, timeout_ms: int) -> None:
        """Wait for refused handshakes at most so long; tell the peers how many there were."""
        poller = zmq.Poller()
        for monitor in self._monitors:
            poller.register(monitor, zmq.POLLIN)
        for monitor, _ in poller.poll(timeout_ms):
            parse_monitor_message(monitor.recv_multipart())
            self._refused += 1
        if self._refused:
            self._teller.send_multipart(
                encode_control(EVERYBODY, NAME, self._incarnation, Refused(handshakes=self._refused)), zmq.NOBLOCK
            )

    def stop(self) -> None:
        """Remove the ipc files, stop forwarding, close everything."""
        for endpoint in self._endpoints:
            if endpoint.startswith("ipc://"):
                Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        for socket in (*self._monitors, self._teller):
            socket.close(linger=0)
        self._context.term()  # the proxy ends by it, and closes its sockets on its own thread
        self._proxy.join()


def _check_endpoint(endpoint: str) -> None:
    """Refuse to bind where strangers could reach; remove what a killed broker left."""
    scheme, _, where = endpoint.partition("://")
    if scheme == "ipc" and where:
        path = Path(where)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigError(
                    f"cannot bind {endpoint!r}: {where} exists and is no socket; remove it or choose another"
                )
            path.unlink()
        return
    host = where.rpartition(":")[0].strip("[]")
    if scheme != "tcp" or not host:
        raise ConfigError(f"cannot bind {endpoint!r}: expected ipc://PATH or tcp://127.0.0.1:PORT")
    if host != "localhost" and not _is_loopback(host):
        raise ConfigError(f"refusing to bind {endpoint!r} without keys: expected a loopback address such as 127.0.0.1")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the broker until SIGTERM, SIGINT or the parent's end; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m swarm.broker", description="Pass messages between peers.")
    parser.add_argument(
        "--frontend", required=True, help="endpoint that peers publish to: ipc://PATH or tcp://127.0.0.1:PORT"
    )
    parser.add_argument("--backend", required=True, help="endpoint that peers subscribe at")
    parser.add_argument("--parent-pid", type=int, default=None, help="end when this parent process ends")
    options = parser.parse_args(arguments)
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    if options.parent_pid is not None:
        die_with_parent(options.parent_pid, signal.SIGTERM)  # so that the sockets are removed; the loop looks itself
    os.umask(0o077)
    try:
        broker = Broker(options.frontend, options.backend)
    except ConfigError as error:
        sys.stderr.write(f"swarm.broker: {error}\n")
        return 2
    broker.start()
    while not stopping.is_set():
        broker.watch(POLL_MS)
        if options.parent_pid is not None and os.getppid() != options.parent_pid:
            break
    _end_soon()
    broker.stop()
    return 0


def _end_soon() -> None:
    """End this process within `END_S`, whatever libzmq still waits for: nothing is kept here that could be lost."""
    timer = threading.Timer(END_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    sys.exit(main())
