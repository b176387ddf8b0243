"""The memory bus on virtual time under seeded faults: hours of a bad network in milliseconds."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from swarm.bus import Received
from swarm.memory_bus import MemoryBus, MemoryHub
from swarm.messages import Cancel
from swarm.testing.faults import FaultRates, FaultScript, Partition
from swarm.testing.virtual_time import NothingWillHappen, run_virtual
from swarm.topics import Topic

RATES = FaultRates(drop=0.15, duplicate=0.1, delay=0.3, max_delay_s=0.4)


async def _chatter(seed: int) -> tuple[list[tuple[str, int]], Counter[str]]:
    """Three peers publish for ten seconds; return what peer c saw, in order, and the faults."""
    hub, pace = MemoryHub(), random.Random(seed)
    faults = FaultScript(seed, RATES, (Partition(start_s=3.0, end_s=5.5, names=frozenset("a")),))
    faults.is_active = False
    async with MemoryBus("a", hub) as a, MemoryBus("b", hub) as b, MemoryBus("c", hub, faults=faults) as c:
        subscription = c.subscribe(Topic.TASKS)
        await asyncio.sleep(1.0)  # virtual: everybody has heard everybody's beat
        faults.is_active = True
        for number in range(150):
            for bus in (a, b):
                bus.publish(Cancel(task_id="t", epoch=number, reason=""))
            await asyncio.sleep(pace.random() * 0.1)
        seen = []
        async with asyncio.timeout(600.0):
            while len(seen) < 300:
                item = await subscription.receive()
                assert isinstance(item, Received), item
                seen.append((item.sender, item.sequence))
        assert c.statistics().topics[Topic.TASKS].lost == 0
        return seen, faults.injected


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_doubled_or_reordered_under_faults(seed: int) -> None:
    seen, injected = run_virtual(_chatter(seed))
    for name in ("a", "b"):
        assert [sequence for sender, sequence in seen if sender == name] == list(range(150))
    assert all(injected[kind] > 10 for kind in ("drop", "duplicate", "delay", "partition"))


def test_the_same_seed_gives_the_same_run() -> None:
    assert run_virtual(_chatter(7)) == run_virtual(_chatter(7))
    assert run_virtual(_chatter(7)) != run_virtual(_chatter(8))


async def _publisher_dies_owing() -> list[object]:
    hub, faults = MemoryHub(), FaultScript(0, FaultRates(drop=1.0))
    faults.is_active = False
    async with MemoryBus("b", hub, faults=faults) as b:
        subscription = b.subscribe(Topic.TASKS)
        async with MemoryBus("a", hub) as a:
            for number in range(4):
                faults.is_active = number in (1, 2)
                a.publish(Cancel(task_id="t", epoch=number, reason=""))
                await asyncio.sleep(0.0 if number else 1.0)
        return [await subscription.receive() for _ in range(3)]


def test_what_a_dead_publisher_owed_is_lost_after_its_silence() -> None:
    first, lost, last = run_virtual(_publisher_dies_owing())
    assert isinstance(first, Received)
    assert isinstance(last, Received)
    assert (first.sequence, getattr(lost, "count", None), last.sequence) == (0, 2, 3)


def test_a_deadlock_is_an_error_not_a_hang() -> None:
    async def wait_for_nothing() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(NothingWillHappen):
        run_virtual(wait_for_nothing())


def test_an_hour_of_virtual_time_passes_at_once() -> None:
    async def sleep_an_hour() -> float:
        await asyncio.sleep(3_600)
        return asyncio.get_running_loop().time()

    assert run_virtual(sleep_an_hour()) == pytest.approx(3_600.0)
