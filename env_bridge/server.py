"""The bridge process: ``python -m env_bridge.server --endpoint ipc://…``.

Two threads: this one owns the socket and always answers; the other owns the physics and performs requests one at a
time, in order of arrival. A client may ask for the state of a request (``query``): the answer is the result if it is
there, ``working`` if it is coming, ``unknown`` if this process never saw it, so that the client sends it again. Letters
that do not decode are counted and ignored. The process ends on SIGTERM, SIGINT, and when its parent dies.
"""

from __future__ import annotations

import argparse
import collections
import os
import queue
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import zmq

if __name__ == "__main__":  # nothing is drawn here: a GL library that is missing must not keep MuJoCo from loading
    os.environ["MUJOCO_GL"] = "disable"

from env_bridge.models import route_warnings_to_log
from env_bridge.rollout import RolloutCancelled
from env_bridge.service import Service, error_kind
from env_bridge.wire import MAX_FRAME_BYTES, Letter, decode, encode
from swarm.errors import CodecError, ConfigError, SwarmError
from swarm.lifeline import die_with_parent
from swarm.messages import Json
from swarm.names import MAX_SOCKET_PATH

log = structlog.get_logger(__name__)

POLL_MS: Final = 200
MAX_BATCH: Final = 64
MAX_WAITING: Final = 256
MAX_ANSWERS: Final = 32
MAX_ANSWER_BYTES: Final = 256 << 20
Key = tuple[bytes, int]
Frames = list[bytes | memoryview]


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request between its arrival and its answer."""

    client: bytes
    letter: Letter
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> Key:
        """Who asked, and the number of the request."""
        return self.client, self.letter.request_id


class Answers:
    """The last answers, for clients that ask again; bounded in number and bytes, oldest dropped."""

    def __init__(self) -> None:
        self._frames: collections.OrderedDict[Key, Frames] = collections.OrderedDict()
        self._bytes = 0

    def put(self, key: Key, frames: Frames) -> None:
        """Keep an answer."""
        self._frames[key] = frames
        self._bytes += _size(frames)
        while len(self._frames) > MAX_ANSWERS or (self._bytes > MAX_ANSWER_BYTES and len(self._frames) > 1):
            self._bytes -= _size(self._frames.popitem(last=False)[1])

    def get(self, key: Key) -> Frames | None:
        """The answer, if it is still here."""
        return self._frames.get(key)


def _size(frames: Frames) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)


class BridgeServer:
    """Socket, job queue and stepping thread of one bridge."""

    def __init__(self, endpoint: str, workers: int, parent: int) -> None:
        self._endpoint = endpoint
        self._parent = parent
        self._service = Service(workers)
        self._context = zmq.Context()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._finished: collections.deque[tuple[Job, Frames]] = collections.deque()
        self._jobs: dict[Key, Job] = {}
        self._answers = Answers()
        self._stopping = threading.Event()
        self._rejected: collections.Counter[str] = collections.Counter()
        self._performed = 0

    def stop(self) -> None:
        """Ask the loop to end; callable from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until stopped. Raises ``ConfigError`` where the endpoint cannot be bound."""
        socket, path = self._bind()
        wake = self._context.socket(zmq.PULL)
        wake.bind("inproc://finished")
        stepping = threading.Thread(target=self._perform_jobs, name="physics", daemon=True)
        stepping.start()
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(wake, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                ready = dict(poller.poll(POLL_MS))
                if wake in ready:
                    wake.recv()
                    self._answer_finished(socket)
                if socket in ready:
                    self._receive(socket)
                if os.getppid() != self._parent:
                    log.info("parent died; leaving")
                    self.stop()
        finally:
            self._stopping.set()
            self._queue.put(None)
            stepping.join(timeout=2.0)
            socket.close(linger=0)
            wake.close(linger=0)
            if path is not None:
                path.unlink(missing_ok=True)

    def _bind(self) -> tuple[zmq.Socket[bytes], Path | None]:
        path = check_endpoint(self._endpoint)
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 1000)
        socket.setsockopt(zmq.RCVHWM, 1000)
        try:
            socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise ConfigError(f"the bridge cannot bind {self._endpoint}: {error}; choose another endpoint") from error
        return socket, path

    # --- the socket's thread ------------------------------------------------------------------------------------------

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(MAX_BATCH):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            client = frames[0].bytes
            try:
                letter = decode(frames[1:])
            except CodecError as error:
                self._reject(error)
                continue
            self._handle(socket, client, letter)

    def _reject(self, error: CodecError) -> None:
        if not self._rejected[error.reason]:
            log.warning("ignored what is no request; further ones are only counted", reason=str(error))
        self._rejected[error.reason] += 1

    def _handle(self, socket: zmq.Socket[bytes], client: bytes, letter: Letter) -> None:
        key = (client, letter.request_id)
        answered = self._answers.get(key)
        if letter.kind == "cancel":
            if key in self._jobs:
                self._jobs[key].cancelled.set()
        elif letter.kind == "statistics":
            counts: dict[str, Json] = dict(self._rejected)
            body: dict[str, Json] = {
                "rejected": counts,
                "performed": self._performed,
                "waiting": len(self._jobs),
            }
            self._send(socket, client, encode(Letter(kind="ok", request_id=letter.request_id, body=body)))
        elif answered is not None:
            self._send(socket, client, answered)
        elif key in self._jobs:
            self._send(socket, client, encode(Letter(kind="working", request_id=letter.request_id)))
        elif letter.kind == "query":
            self._send(socket, client, encode(Letter(kind="unknown", request_id=letter.request_id)))
        elif len(self._jobs) >= MAX_WAITING:
            self._reject(CodecError("busy", f"{MAX_WAITING} requests wait already"))
        else:
            self._jobs[key] = Job(client=client, letter=letter)
            self._queue.put(self._jobs[key])

    def _answer_finished(self, socket: zmq.Socket[bytes]) -> None:
        while self._finished:
            job, frames = self._finished.popleft()
            self._jobs.pop(job.key, None)
            self._performed += 1
            if not job.cancelled.is_set():
                self._answers.put(job.key, frames)
                self._send(socket, job.client, frames)

    def _send(self, socket: zmq.Socket[bytes], client: bytes, frames: Frames) -> None:
        """Send, or count what does not go out now: the client asks again."""
        try:
            socket.send_multipart([client, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._reject(CodecError("unsent", "a client does not read its answers"))

    # --- the physics' thread ------------------------------------------------------------------------------------------

    def _perform_jobs(self) -> None:
        done = self._context.socket(zmq.PUSH)
        done.connect("inproc://finished")
        try:
            while (job := self._queue.get()) is not None and not self._stopping.is_set():
                self._finished.append((job, self._perform(job)))
                done.send(b"")
        finally:
            self._service.close()
            done.close(linger=0)

    def _perform(self, job: Job) -> Frames:
        """The encoded answer to ``job``; every error becomes a letter, so that the bridge lives on."""

        def should_stop() -> bool:
            return job.cancelled.is_set() or self._stopping.is_set()

        try:
            if should_stop():
                raise RolloutCancelled("cancelled before it began")
            return encode(self._service.perform(job.client, job.letter, should_stop))
        except SwarmError as error:
            return encode(Letter(kind=error_kind(error), request_id=job.letter.request_id, body={"text": str(error)}))
        except Exception as error:  # a defect here or in a policy: told to who asked, with its trace in the log
            log.error("request failed", operation=job.letter.kind, trace=traceback.format_exc())
            text = f"{type(error).__name__}: {error}"
            return encode(Letter(kind="error", request_id=job.letter.request_id, body={"text": text}))


def check_endpoint(endpoint: str) -> Path | None:
    """Path of an ipc endpoint, a stale socket of which is removed; ``None`` for loopback TCP.

    Raises:
        ConfigError: another transport, a path that is too long, no socket or without its folder, or TCP off loopback.
    """
    if endpoint.startswith("tcp://127.0.0.1:"):
        return None
    if not endpoint.startswith("ipc:///"):
        raise ConfigError(f"bridge endpoint {endpoint!r}: expected ipc:///absolute/path or tcp://127.0.0.1:port")
    path = Path(endpoint.removeprefix("ipc://"))
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigError(
            f"bridge endpoint {endpoint!r}: the path is longer than {MAX_SOCKET_PATH} bytes; use a shorter one"
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"bridge endpoint {endpoint!r}: the folder {path.parent} does not exist; create it (mode 0700)"
        )
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigError(f"bridge endpoint {endpoint!r}: {path} exists and is no socket; choose another path")
        path.unlink()
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bridge process; exit code 2 with one line for what the user got wrong."""
    parser = argparse.ArgumentParser(prog="python -m env_bridge.server", description="Serve MuJoCo environments.")
    parser.add_argument("--endpoint", required=True, help="ipc:///path/of/socket or tcp://127.0.0.1:port")
    parser.add_argument("--workers", type=int, default=1, help="stepping threads (default 1); never change a result")
    options = parser.parse_args(arguments)
    parent = os.getppid()
    die_with_parent(parent, signal.SIGTERM)  # the serving loop looks at the parent too, where there is no prctl
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
    route_warnings_to_log()
    try:
        if options.workers < 1:
            raise ConfigError(f"got --workers {options.workers}; expected at least 1")
        server = BridgeServer(options.endpoint, options.workers, parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        server.run()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
