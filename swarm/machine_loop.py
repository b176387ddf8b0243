"""Drives a pure state machine: events in one at a time, instructions executed in order, a timer for its wake-ups."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from swarm.bus import Bus
from swarm.errors import BusFull
from swarm.messages import Message
from swarm.topics import TOPIC_OF

EventT = TypeVar("EventT")
InstructionT = TypeVar("InstructionT")

MAX_WAITING: Final = 1_000
"""Events that may wait; beyond it `MachineLoop.put` waits, and with it the subscription that feeds it."""


class MachineLoop(Generic[EventT, InstructionT]):
    """The waiting shell of one pure machine.

    Args:
        handle: the machine: event and ``loop.time()`` in, instructions out.
        execute: executes a batch of instructions in order.
        tick: event that stands for 'the time you asked for has come'.
    """

    def __init__(
        self,
        handle: Callable[[EventT, float], Sequence[InstructionT]],
        execute: Callable[[Sequence[InstructionT]], Awaitable[None]],
        tick: EventT,
    ) -> None:
        self._handle = handle
        self._execute = execute
        self._tick = tick
        self._events: asyncio.Queue[tuple[EventT, bool]] = asyncio.Queue()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._due_s: float | None = None

    async def put(self, event: EventT) -> None:
        """Hand over an event; waits while `MAX_WAITING` events wait."""
        await self._room.acquire()
        self._events.put_nowait((event, True))

    def put_soon(self, event: EventT) -> None:
        """Hand over an event from where nobody can wait (a cancellation); it does not count against the bound."""
        self._events.put_nowait((event, False))

    def wake_at(self, due_s: float) -> None:
        """Give the machine a tick at ``due_s`` of the loop's clock; replaces an earlier wish."""
        self._due_s = due_s

    async def run(self) -> None:
        """Drive the machine until cancelled. What it or ``execute`` raises ends the loop: state may be half-way."""
        clock = asyncio.get_running_loop()
        while True:
            events = await self._next_batch(clock)
            now_s = clock.time()
            await self._execute([instruction for event in events for instruction in self._handle(event, now_s)])

    async def _next_batch(self, clock: asyncio.AbstractEventLoop) -> list[EventT]:
        """Wait for an event or the wake-up; take what else waits along, so that journal writes share an fsync."""
        if self._due_s is not None and self._due_s <= clock.time():
            self._due_s = None
            return [self._tick]
        try:
            async with asyncio.timeout_at(self._due_s):
                waiting = [await self._events.get()]
        except TimeoutError:
            self._due_s = None
            return [self._tick]
        while not self._events.empty():
            waiting.append(self._events.get_nowait())
        for _, counted in waiting:
            if counted:
                self._room.release()
        return [event for event, _ in waiting]


async def publish_patiently(bus: Bus, message: Message) -> None:
    """Publish ``message``; where its topic is full, wait until slow readers have caught up."""
    while True:
        try:
            bus.publish(message)
        except BusFull:
            await bus.wait_writable(TOPIC_OF[type(message)])
        else:
            return
