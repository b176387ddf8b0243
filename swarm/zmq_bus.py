"""The bus over ZeroMQ: a PUB socket to the broker's XSUB, a SUB socket to its XPUB, each owned by one object.

Not ``zmq.asyncio``: that costs several awaits a message. The loop watches the SUB socket's file descriptor; on
readiness the socket is drained until it is empty, within a bound, and the batch is handed over. The descriptor is
edge-triggered (zmq_getsockopt(3), ZMQ_FD): whoever stops before EAGAIN must come back by himself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import zmq

from swarm.arrays import Frame
from swarm.bus import BusStatistics, Subscription
from swarm.bus_config import MAX_FRAME_BYTES, BusConfig, Faults
from swarm.control import prefixes
from swarm.errors import ConfigError
from swarm.messages import Message
from swarm.names import MAX_SOCKET_PATH
from swarm.publishing import Frames
from swarm.session import Session
from swarm.topics import Topic

HEARTBEAT_MS: Final = 2_000
HEARTBEAT_TIMEOUT_MS: Final = 10_000
HANDSHAKE_MS: Final = 5_000
RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 500


def harden(socket: zmq.Socket[bytes], high_water: int, linger_s: float) -> None:
    """Set every limit of a socket that faces other processes: queues, sizes, heartbeats, handshake, reconnecting."""
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.RCVHWM, high_water)
    socket.setsockopt(zmq.LINGER, int(linger_s * 1000))
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)


class ZmqBus:
    """One peer on ZeroMQ; see `swarm.bus.Bus`. Works on any asyncio loop with ``add_reader``, uvloop's too.

    Args:
        name: id of the peer.
        publish_endpoint: the broker's frontend, where peers publish to.
        subscribe_endpoint: the broker's backend, where peers subscribe.
        incarnation: which life of the peer this is; the wall clock's nanoseconds by default.
        faults: disturbs what arrives, for tests and drills.

    Raises:
        ConfigError: ``name`` is not an id.
    """

    def __init__(
        self,
        name: str,
        publish_endpoint: str,
        subscribe_endpoint: str,
        *,
        incarnation: int | None = None,
        config: BusConfig | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.name = name
        self._endpoints = (publish_endpoint, subscribe_endpoint)
        self._config = config or BusConfig()
        self._session = Session(name, incarnation, self._config, self._transmit, faults)
        self.incarnation = self._session.peer.incarnation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._publishing: zmq.Socket[bytes] | None = None
        self._receiving: zmq.Socket[bytes] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open sockets and wait until own probes came back through the broker.

        Raises:
            PeerLost: they did not, within the configured patience.
            ConfigError: an endpoint is not one that ZeroMQ can connect to.
            BusClosed: the bus was open before.
        """
        self._loop = self._session.begin()
        try:
            self._connect(self._loop)
            await self._session.join(" and ".join(self._endpoints))
        except BaseException:
            await self._close(linger_s=0.0)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush for at most the configured time, close every socket."""
        await self._close(linger_s=self._config.linger_s)

    def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        self._context = zmq.Context()
        self._publishing = self._context.socket(zmq.PUB)
        self._receiving = self._context.socket(zmq.SUB)
        for socket, endpoint in zip((self._publishing, self._receiving), self._endpoints, strict=True):
            harden(socket, self._config.high_water, self._config.linger_s)
            try:
                socket.connect(endpoint)
            except zmq.ZMQError as error:
                raise ConfigError(
                    f"cannot connect to {endpoint!r} ({error}); expected ipc://PATH of at most "
                    f"{MAX_SOCKET_PATH} bytes, or tcp://HOST:PORT"
                ) from None
        for prefix in prefixes(self.name):
            self._receiving.setsockopt(zmq.SUBSCRIBE, prefix)
        loop.add_reader(self._receiving.FD, self._drain)
        loop.call_soon(self._drain)  # what became ready while subscribing gives no further edge

    async def _close(self, linger_s: float) -> None:
        self._session.end()
        context, publishing, receiving = self._context, self._publishing, self._receiving
        self._context = self._publishing = self._receiving = None
        if receiving is not None and self._loop is not None:
            self._loop.remove_reader(receiving.FD)
            receiving.close(linger=0)
        if publishing is not None:
            publishing.close(linger=int(linger_s * 1000))
        if context is not None:
            await asyncio.shield(asyncio.to_thread(context.term))  # waits for the flush, at most linger_s

    # --- sockets ------------------------------------------------------------------------------------------------------

    def _transmit(self, frames: Frames) -> None:
        """Send; PUB never blocks: what a full connection cannot take is dropped there and repaired by its reader."""
        if self._publishing is not None:
            self._publishing.send_multipart(frames, zmq.NOBLOCK, copy=len(frames) <= 3)

    def _drain(self) -> None:
        """Receive until the socket is empty or the bound is reached; then hand the batch over."""
        socket, loop = self._receiving, self._loop
        if socket is None or loop is None:
            return
        batch: list[Sequence[Frame]] = []
        stop = loop.time() + self._config.drain_s
        receive = socket.recv_multipart
        try:
            while len(batch) < self._config.drain_messages:
                batch.append(receive(zmq.NOBLOCK))
                if not len(batch) % 64 and loop.time() > stop:
                    break
            loop.call_soon(self._drain)
        except zmq.Again:
            if socket.poll(0, zmq.POLLIN):
                loop.call_soon(self._drain)
        if batch:
            self._session.arrived(batch)

    # --- users --------------------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> int:
        """Publish without blocking; see `swarm.bus.Bus.publish`."""
        return self._session.publish(message)

    async def wait_writable(self, topic: Topic) -> None:
        """Wait until ``publish`` on ``topic`` would not raise ``BusFull``."""
        await self._session.wait_writable(topic)

    def subscribe(self, *topics: Topic, capacity: int = 10_000, retained: bool = False) -> Subscription:
        """Start receiving ``topics``; see `swarm.bus.Bus.subscribe`."""
        return self._session.subscribe(topics, capacity, retained)

    def statistics(self) -> BusStatistics:
        """Counts so far."""
        return self._session.statistics()
