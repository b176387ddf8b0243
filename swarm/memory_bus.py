"""The bus inside one process and one event loop: same streams, same codec, no sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from swarm.arrays import Frame
from swarm.bus import BusStatistics, Subscription
from swarm.bus_config import BusConfig, Faults
from swarm.messages import Message
from swarm.publishing import Frames
from swarm.session import Session
from swarm.topics import Topic


class MemoryHub:
    """What a broker is to `ZmqBus`: passes what one peer sends to all that are open, itself included."""

    def __init__(self) -> None:
        self._buses: dict[int, MemoryBus] = {}

    def attach(self, bus: MemoryBus) -> None:
        """From now on ``bus`` receives."""
        self._buses[id(bus)] = bus

    def detach(self, bus: MemoryBus) -> None:
        """From now on ``bus`` receives nothing."""
        self._buses.pop(id(bus), None)

    def send(self, frames: Sequence[Frame]) -> None:
        """Pass ``frames`` to every attached bus, or to the addressed one."""
        prefix = frames[0]
        for bus in self._buses.values():
            if prefix[:4] != b"!to/" or prefix == bus.address:
                bus.enqueue(frames)


class MemoryBus:
    """One peer on a `MemoryHub`; see `swarm.bus.Bus`.

    Args:
        name: id of the peer.
        hub: shared by all peers of the bus; all of them live on one event loop.
        incarnation: which life of the peer this is; the wall clock's nanoseconds by default.
        faults: disturbs what arrives, for tests and drills.

    Raises:
        ConfigError: ``name`` is not an id.
    """

    def __init__(
        self,
        name: str,
        hub: MemoryHub,
        *,
        incarnation: int | None = None,
        config: BusConfig | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.name = name
        self.address = b"!to/" + name.encode() + b"/"
        self._config = config or BusConfig()
        self._hub = hub
        self._session = Session(name, incarnation, self._config, self._transmit, faults)
        self.incarnation = self._session.peer.incarnation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrivals: list[Sequence[Frame]] = []
        self._is_open = False

    async def __aenter__(self) -> Self:
        """Attach to the hub. Raises ``BusClosed`` where it was open before."""
        self._loop = self._session.begin()
        self._is_open = True
        self._hub.attach(self)
        try:
            await self._session.join("the memory hub")
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Detach; what was published is with the others already."""
        self._close()

    def _close(self) -> None:
        self._is_open = False
        self._hub.detach(self)
        self._arrivals.clear()
        self._session.end()

    def _transmit(self, frames: Frames) -> None:
        if self._is_open:
            self._hub.send(frames)

    def enqueue(self, frames: Sequence[Frame]) -> None:
        """Take frames from the hub; they are handed on in one batch on the loop's next turn."""
        if not self._arrivals and self._loop is not None:
            self._loop.call_soon(self._drain)
        self._arrivals.append(frames)

    def _drain(self) -> None:
        if not self._is_open:
            return
        bound = self._config.drain_messages
        batch, self._arrivals = self._arrivals[:bound], self._arrivals[bound:]
        if self._arrivals and self._loop is not None:
            self._loop.call_soon(self._drain)
        self._session.arrived(batch)

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
