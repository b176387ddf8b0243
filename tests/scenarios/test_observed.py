from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from scenarios.observer import Observers
from scenarios.runner import _observed
from swarm.bus import BusStatistics, Received
from swarm.messages import Goodbye
from swarm.topics import Topic


class OneMessageSwarm:
    """Says one message and then nothing."""

    async def events(self) -> AsyncIterator[Received]:
        yield Received(
            topic=Topic.PRESENCE, sender="a", incarnation=1, sequence=0, message=Goodbye(agent="a", incarnation=1)
        )
        await asyncio.Event().wait()

    def statistics(self) -> BusStatistics:
        return BusStatistics(topics={}, rejected={})


class Watcher(Observers):
    """Hears the message, and may break over it."""

    def __init__(self, breaks: bool) -> None:
        super().__init__(())
        self.breaks = breaks
        self.heard = asyncio.Event()
        self.counted = 0

    def on_message(self, received: Received) -> None:
        self.heard.set()
        if self.breaks:
            raise BrokenPipeError("the reader left")

    def on_statistics(self, statistics: BusStatistics) -> None:
        self.counted += 1


async def test_an_observer_hears_until_the_end_and_leaves_no_task() -> None:
    watcher = Watcher(breaks=False)
    async with asyncio.timeout(5), _observed(OneMessageSwarm(), watcher):  # type: ignore[arg-type]  # what it uses of it
        await watcher.heard.wait()
    assert watcher.counted >= 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_an_observer_raises_ends_the_run_as_it_is() -> None:
    with pytest.raises(BrokenPipeError, match="the reader left"):
        async with asyncio.timeout(5), _observed(OneMessageSwarm(), Watcher(breaks=True)):  # type: ignore[arg-type]
            await asyncio.Event().wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}
