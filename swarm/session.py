"""Runs a `Peer` on an event loop: the handshake, its timer, and those who wait to write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from swarm.arrays import Frame
from swarm.bus import BusStatistics
from swarm.bus_config import BusConfig, Faults
from swarm.errors import BusClosed, PeerLost
from swarm.inbox import Inbox
from swarm.messages import Message
from swarm.peer import Peer
from swarm.publishing import Frames
from swarm.topics import Topic


class Session:
    """The asynchronous part that both buses share; a transport calls `arrived` with what it received.

    Args:
        send: hands frames to the transport; never blocks.
        faults: disturbs what arrives, for tests and drills.
    """

    def __init__(
        self,
        name: str,
        incarnation: int | None,
        config: BusConfig,
        send: Callable[[Frames], None],
        faults: Faults | None,
    ) -> None:
        self.peer = Peer(
            name,
            time.time_ns() if incarnation is None else incarnation,
            config,
            send,
            clock=self._now,
            wake=self._wake,
        )
        self._config = config
        self._faults = faults
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._state = "new"
        self._ready = asyncio.Event()
        self._writers: list[tuple[Topic, asyncio.Future[None]]] = []

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0

    # --- life ---------------------------------------------------------------------------------------------------------

    def begin(self) -> asyncio.AbstractEventLoop:
        """Take the running loop. Raises ``BusClosed`` where the bus was opened before."""
        if self._state != "new":
            raise BusClosed(f"bus peer {self.peer.name!r} was opened before; make a new one")
        self._state = "joining"
        self._loop = asyncio.get_running_loop()
        return self._loop

    async def join(self, where: str) -> None:
        """Probe until READY. Raises ``PeerLost`` after the configured patience; ``where`` is named in its text."""
        try:
            async with asyncio.timeout(self._config.patience_s):
                self._probe()
                await self._ready.wait()
        except TimeoutError:
            raise PeerLost(
                f"bus peer {self.peer.name!r} got no answer through the broker at {where} within "
                f"{self._config.patience_s:g} s; is the broker running, at these endpoints?"
            ) from None
        self._state = "open"
        self._poll()

    def _probe(self) -> None:
        if self._state == "joining" and self._loop is not None and not self._ready.is_set():
            self.peer.probe()
            self._timer = self._loop.call_later(self._config.retry_s, self._probe)

    def end(self) -> None:
        """Stop timers; wake everybody who waits."""
        self._state = "closed"
        if self._timer is not None:
            self._timer.cancel()
        self.peer.end()
        for _, writer in self._writers:
            if not writer.done():
                writer.set_exception(BusClosed(f"bus peer {self.peer.name!r} was closed"))
        self._writers.clear()

    # --- what the transport calls -------------------------------------------------------------------------------------

    def arrived(self, batch: Sequence[Sequence[Frame]]) -> None:
        """Take what was received, in order."""
        for frames in batch:
            if self._faults is None:
                self.peer.receive(frames)
            else:
                self._disturb(self._faults, frames)
        self._after_receiving()

    def _disturb(self, faults: Faults, frames: Sequence[Frame]) -> None:
        assert self._loop is not None
        for delay_s in faults.deliveries(self.peer.name, frames, self._now()):
            if delay_s <= 0.0:
                self.peer.receive(frames)
            else:
                self._loop.call_later(delay_s, self._arrived_late, frames)

    def _arrived_late(self, frames: Sequence[Frame]) -> None:
        if self._state in ("joining", "open"):
            self.peer.receive(frames)
            self._after_receiving()

    def _after_receiving(self) -> None:
        if self._state == "joining" and self.peer.is_ready:
            self._ready.set()
        if self._state == "open":
            self._poll()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._state == "open":
            self._poll()

    def _poll(self) -> None:
        """Let the peer do what is due; come back when it says."""
        assert self._loop is not None
        due = self.peer.poll()
        if self._writers:
            self._release_writers()
            due = min(due, self._now() + self._config.beat_s / 10)
        if self._timer is not None:
            if not self._timer.cancelled() and self._timer.when() == due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._poll)

    # --- users --------------------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> int:
        """See `swarm.bus.Bus.publish`."""
        if self._state != "open":
            raise BusClosed(f"bus peer {self.peer.name!r} is not open; publish inside 'async with bus:'")
        return self.peer.publish(message)

    def subscribe(self, topics: Sequence[Topic], capacity: int, retained: bool) -> Inbox:
        """See `swarm.bus.Bus.subscribe`."""
        if self._state == "closed":
            raise BusClosed(f"bus peer {self.peer.name!r} was closed")
        return self.peer.subscribe(topics, capacity, retained)

    async def wait_writable(self, topic: Topic) -> None:
        """See `swarm.bus.Bus.wait_writable`."""
        if self._state != "open" or self._loop is None:
            raise BusClosed(f"bus peer {self.peer.name!r} is not open")
        if self.peer.is_writable(topic):
            return
        writer: asyncio.Future[None] = self._loop.create_future()
        self._writers.append((topic, writer))
        self._poll()
        await writer

    def _release_writers(self) -> None:
        waiting = [(topic, writer) for topic, writer in self._writers if not writer.done()]
        writable = {topic for topic, _ in waiting if self.peer.is_writable(topic)}
        for topic, writer in waiting:
            if topic in writable:
                writer.set_result(None)
        self._writers = [(topic, writer) for topic, writer in waiting if topic not in writable]

    def statistics(self) -> BusStatistics:
        """See `swarm.bus.Bus.statistics`."""
        return self.peer.statistics()
