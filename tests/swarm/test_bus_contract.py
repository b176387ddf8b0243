"""One conformance suite for every bus: memory, ZeroMQ over ipc, ZeroMQ over TCP."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm.arrays import Frame
from swarm.bus import Bus, Delivered, Lost, Received, Subscription
from swarm.bus_config import BusConfig, Faults
from swarm.errors import BusClosed, BusFull, CodecError, ConfigError
from swarm.memory_bus import MemoryBus, MemoryHub
from swarm.messages import Accepted, Cancel, Goodbye, Message, ParameterVersion, RoundCommitted
from swarm.testing.broker_process import BrokerProcess
from swarm.testing.faults import FaultRates, FaultScript
from swarm.topics import Topic
from swarm.zmq_bus import ZmqBus

PATIENCE_S = 30.0
MakeBus = Callable[..., Bus]
Join = Callable[..., Any]


@pytest.fixture(scope="module")
def brokers() -> Iterator[dict[str, BrokerProcess]]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield {
            "ipc": stack.enter_context(BrokerProcess.over_ipc(folder)),
            "tcp": stack.enter_context(BrokerProcess.over_tcp()),
        }


@pytest.fixture(params=["memory", "ipc", "tcp"])
def make_bus(request: pytest.FixtureRequest, brokers: dict[str, BrokerProcess]) -> MakeBus:
    hub = MemoryHub()

    def make(name: str, **options: Any) -> Bus:
        if request.param == "memory":
            return MemoryBus(name, hub, **options)
        return ZmqBus(name, *brokers[request.param].endpoints, **options)

    return make


@pytest.fixture
async def join(make_bus: MakeBus) -> AsyncIterator[Join]:
    async with contextlib.AsyncExitStack() as stack:

        async def enter(name: str, **options: Any) -> Bus:
            return await stack.enter_async_context(make_bus(name, **options))

        yield enter


def _cancel(number: int) -> Cancel:
    return Cancel(task_id="t", epoch=number, reason="x" * 80)


async def _take(subscription: Subscription, count: int) -> list[Delivered]:
    async with asyncio.timeout(PATIENCE_S):
        return [await subscription.receive() for _ in range(count)]


async def _epochs(subscription: Subscription, count: int) -> list[int]:
    epochs = []
    for item in await _take(subscription, count):
        assert isinstance(item, Received), item
        assert isinstance(item.message, Cancel)
        epochs.append(item.message.epoch)
    return epochs


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - statistics are read, not waited for
            await asyncio.sleep(0.002)


class DropMatching:
    """Loses what carries one of the given texts, while it is switched on."""

    def __init__(self, *texts: bytes, once: bool = False) -> None:
        self.texts, self.once, self.is_active, self.dropped = texts, once, True, 0

    def deliveries(self, receiver: str, frames: Sequence[Frame], now: float) -> Sequence[float]:
        whole = b"".join(bytes(frame) for frame in frames[:1] + frames[2:3])
        if self.is_active and any(text in whole for text in self.texts):
            self.dropped += 1
            self.is_active = not self.once
            return ()
        return (0.0,)


async def test_whoever_is_ready_hears_the_first_message_of_everybody(join: Join) -> None:
    peers = [await join(name) for name in ("a", "b", "ab")]
    subscriptions = [peer.subscribe(Topic.TASKS) for peer in peers]
    for number, peer in enumerate(peers):
        assert peer.publish(_cancel(number)) == 0
    for subscription in subscriptions:
        assert sorted(await _epochs(subscription, 3)) == [0, 1, 2]


async def test_a_message_arrives_with_its_context(join: Join) -> None:
    a, b = await join("a", incarnation=7), await join("b")
    subscription = b.subscribe(Topic.TASKS, Topic.RESULTS)
    a.publish(_cancel(0))
    a.publish(Accepted(task_id="t"))
    a.publish(_cancel(1))
    items = await _take(subscription, 3)
    expected = [(Topic.TASKS, 0), (Topic.RESULTS, 0), (Topic.TASKS, 1)]
    assert [(item.topic, item.sequence) for item in items if isinstance(item, Received)] == expected
    assert {(item.sender, item.incarnation) for item in items if isinstance(item, Received)} == {("a", 7)}


async def test_own_messages_come_back_exactly_once(join: Join) -> None:
    a = await join("a")
    subscription = a.subscribe(Topic.TASKS)
    for number in range(100):
        a.publish(_cancel(number))
    assert await _epochs(subscription, 100) == list(range(100))
    assert subscription.receive_nowait() is None
    assert a.statistics().topics[Topic.TASKS].duplicates == 0


async def test_each_publishers_order_is_kept_in_a_burst(join: Join) -> None:
    a, b, c = await join("a"), await join("b"), await join("c")
    subscription = c.subscribe(Topic.TASKS)
    for number in range(2_000):
        a.publish(_cancel(number))
        b.publish(_cancel(number))
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for item in await _take(subscription, 4_000):
        assert isinstance(item, Received)
        seen[item.sender].append(item.sequence)
    assert seen == {"a": list(range(2_000)), "b": list(range(2_000))}


async def test_topics_that_are_not_subscribed_do_not_arrive(join: Join) -> None:
    a, b = await join("a"), await join("b")
    subscription = b.subscribe(Topic.RESULTS)
    a.publish(_cancel(0))
    a.publish(Accepted(task_id="t"))
    (item,) = await _take(subscription, 1)
    assert isinstance(item, Received)
    assert isinstance(item.message, Accepted)


async def test_a_subscription_begins_where_it_was_made_and_retained_begins_earlier(join: Join) -> None:
    a, b = await join("a"), await join("b")
    first = b.subscribe(Topic.TASKS)
    for number in range(3):
        a.publish(_cancel(number))
    assert await _epochs(first, 3) == [0, 1, 2]
    later, whole = b.subscribe(Topic.TASKS), b.subscribe(Topic.TASKS, retained=True)
    a.publish(_cancel(3))
    assert await _epochs(later, 1) == [3]
    assert await _epochs(whole, 4) == [0, 1, 2, 3]


async def test_a_late_peer_fetches_what_is_retained_and_misses_nothing_after_it(join: Join) -> None:
    a = await join("a")
    for number in range(1_500):
        a.publish(_cancel(number))
    b = await join("b")
    subscription = b.subscribe(Topic.TASKS, retained=True)
    for number in range(1_500, 1_600):
        a.publish(_cancel(number))
    assert await _epochs(subscription, 1_600) == list(range(1_600))


async def test_a_late_peer_gets_the_last_value_of_each_key(join: Join) -> None:
    a = await join("a")
    for version in range(5):
        for owner in ("x", "y"):
            a.publish(ParameterVersion(owner=owner, version=version, digest="d"))
    b = await join("b")
    subscription = b.subscribe(Topic.PARAMETERS)
    last = {}
    for item in await _take(subscription, 2):
        assert isinstance(item, Received)
        assert isinstance(item.message, ParameterVersion)
        last[item.message.owner] = item.message.version
    assert last == {"x": 4, "y": 4}
    assert subscription.receive_nowait() is None


async def test_values_that_wait_are_replaced_by_newer_ones(join: Join) -> None:
    a = await join("a")
    subscription = a.subscribe(Topic.PARAMETERS)
    for version in range(50):
        a.publish(ParameterVersion(owner="x", version=version, digest="d"))
    await _until(lambda: a.statistics().topics[Topic.PARAMETERS].received == 50)
    (item,) = await _take(subscription, 1)
    assert isinstance(item, Received)
    assert isinstance(item.message, ParameterVersion)
    assert item.message.version == 49
    assert subscription.receive_nowait() is None


async def test_a_full_inbox_drops_the_oldest_best_effort_items_and_counts_them(join: Join) -> None:
    a = await join("a")
    subscription = a.subscribe(Topic.PRESENCE, capacity=10)
    for number in range(30):
        a.publish(Goodbye(agent="a", incarnation=number))
    await _until(lambda: a.statistics().topics[Topic.PRESENCE].received == 30)
    items = await _take(subscription, 10)
    assert [item.sequence for item in items if isinstance(item, Received)] == list(range(20, 30))
    assert a.statistics().topics[Topic.PRESENCE].dropped == 20


async def test_a_slow_reader_gets_everything_from_retention_and_hurts_nobody(join: Join) -> None:
    a, b = await join("a"), await join("b")
    slow, fast = b.subscribe(Topic.TASKS, capacity=16), b.subscribe(Topic.TASKS)
    for number in range(1_000):
        a.publish(_cancel(number))
    assert await _epochs(fast, 1_000) == list(range(1_000))
    assert b.statistics().queued <= 16
    assert await _epochs(slow, 1_000) == list(range(1_000))
    assert b.statistics().topics[Topic.TASKS].lost == 0


async def test_what_fell_out_of_retention_arrives_as_lost(join: Join) -> None:
    a = await join("a", config=BusConfig(retention_bytes=4_000))
    b = await join("b")
    slow, fast = b.subscribe(Topic.TASKS, capacity=5), b.subscribe(Topic.TASKS)
    for number in range(200):
        await a.wait_writable(Topic.TASKS)
        a.publish(_cancel(number))
    await _epochs(fast, 200)
    seen, lost = [], 0
    async with asyncio.timeout(PATIENCE_S):
        while len(seen) + lost < 200:
            item = await slow.receive()
            if isinstance(item, Lost):
                assert (item.sender, item.topic) == ("a", Topic.TASKS)
                lost += item.count
            else:
                seen.append(item.sequence)
    assert lost > 0
    assert seen == sorted(set(seen))
    assert seen[-1] == 199
    assert b.statistics().topics[Topic.TASKS].lost == lost


async def test_a_publisher_whose_reader_takes_nothing_is_told_and_can_wait(join: Join) -> None:
    loss = DropMatching(b"x" * 80)
    loss.is_active = False
    a = await join("a", config=BusConfig(retention_bytes=4_000))
    b = await join("b", faults=loss)
    subscription = b.subscribe(Topic.TASKS)
    a.publish(_cancel(0))
    await _epochs(subscription, 1)
    own = a.subscribe(Topic.TASKS)
    loss.is_active = True
    number = 0
    with pytest.raises(BusFull) as caught:  # noqa: PT012 - which call raises is found out
        while number < 1_000:
            number += 1
            a.publish(_cancel(number))
            await _epochs(own, 1)
    assert (caught.value.topic, caught.value.slowest) == ("tasks", "b")
    assert caught.value.retained_bytes >= 4_000
    loss.is_active = False
    async with asyncio.timeout(PATIENCE_S):
        await a.wait_writable(Topic.TASKS)
    a.publish(_cancel(number))
    assert await _epochs(subscription, number) == list(range(1, number + 1))
    assert loss.dropped > 0


async def test_without_readers_a_publisher_is_never_held_up(join: Join) -> None:
    a = await join("a", config=BusConfig(retention_bytes=2_000))
    for number in range(500):
        a.publish(_cancel(number))
    assert a.statistics().retained_bytes <= 2_000


async def test_a_lost_tail_is_noticed_without_any_further_message(join: Join) -> None:
    loss = DropMatching(b"the last one", once=True)
    a, b = await join("a"), await join("b", faults=loss)
    subscription = b.subscribe(Topic.TASKS)
    a.publish(Cancel(task_id="t", epoch=0, reason="first"))
    a.publish(Cancel(task_id="t", epoch=1, reason="the last one"))
    assert await _epochs(subscription, 2) == [0, 1]
    assert loss.dropped == 1
    counts = b.statistics().topics[Topic.TASKS]
    assert (counts.gaps, counts.repaired, counts.lost) == (1, 1, 0)


async def test_a_lost_last_value_is_fetched_again(join: Join) -> None:
    loss = DropMatching(b"the-last-one", once=True)
    a, b = await join("a"), await join("b", faults=loss)
    subscription = b.subscribe(Topic.PARAMETERS)
    a.publish(ParameterVersion(owner="x", version=1, digest="the-last-one"))
    (item,) = await _take(subscription, 1)
    assert isinstance(item, Received)
    assert loss.dropped == 1


@pytest.mark.parametrize("seed", range(3))
async def test_everything_arrives_once_and_in_order_over_a_bad_network(join: Join, seed: int) -> None:
    faults = FaultScript(seed, FaultRates(drop=0.1, duplicate=0.1, delay=0.2, max_delay_s=0.02))
    a, b = await join("a"), await join("b", faults=faults)
    subscription = b.subscribe(Topic.TASKS)
    faults.is_active = False  # until b knows of a: where a stream stood before that, nobody could tell b
    a.publish(_cancel(0))
    await _epochs(subscription, 1)
    faults.is_active = True
    for number in range(1, 500):
        a.publish(_cancel(number))
    assert await _epochs(subscription, 499) == list(range(1, 500))
    assert min(faults.injected[kind] for kind in ("drop", "duplicate", "delay")) > 20
    counts = b.statistics().topics[Topic.TASKS]
    assert counts.repaired > 0
    assert counts.duplicates > 0
    assert counts.lost == 0


async def test_a_higher_incarnation_begins_anew_and_the_old_one_is_dropped(make_bus: MakeBus, join: Join) -> None:
    listener = await join("listener")
    subscription = listener.subscribe(Topic.TASKS)
    old = await join("worker", incarnation=1)
    old.publish(_cancel(10))
    assert await _epochs(subscription, 1) == [10]
    new = await join("worker", incarnation=2)
    new.publish(_cancel(20))
    (item,) = await _take(subscription, 1)
    assert isinstance(item, Received)
    assert (item.incarnation, item.sequence) == (2, 0)
    old.publish(_cancel(11))
    await _until(lambda: listener.statistics().topics[Topic.TASKS].dropped == 1)
    assert subscription.receive_nowait() is None


async def test_arrays_arrive_read_only_and_unchanged_by_what_the_publisher_does_next(join: Join) -> None:
    a, b = await join("a"), await join("b")
    subscription = b.subscribe(Topic.PARAMETERS)
    large, small = np.arange(5_000, dtype=np.float32), np.arange(3, dtype=np.int64)
    a.publish(ParameterVersion(owner="x", version=1, digest="d", arrays={"large": large, "small": small}))
    large[:] = -1
    late = b.subscribe(Topic.PARAMETERS)
    for inbox in (subscription, late):
        (item,) = await _take(inbox, 1)
        assert isinstance(item, Received)
        assert isinstance(item.message, ParameterVersion)
        arrays = item.message.arrays
        np.testing.assert_array_equal(arrays["large"], np.arange(5_000, dtype=np.float32))
        np.testing.assert_array_equal(arrays["small"], small)
        assert not any(array.flags.writeable for array in arrays.values())


async def test_a_message_that_does_not_validate_is_refused_and_takes_no_number(join: Join) -> None:
    a = await join("a")
    subscription = a.subscribe(Topic.TASKS)
    with pytest.raises(CodecError, match="task_id"):
        a.publish(Cancel(task_id="../x", epoch=1, reason=""))
    assert a.publish(_cancel(1)) == 0
    assert await _epochs(subscription, 1) == [1]


async def test_a_closed_subscription_stops_and_the_others_go_on(join: Join) -> None:
    a = await join("a")
    one, two = a.subscribe(Topic.TASKS), a.subscribe(Topic.TASKS)
    one.close()
    a.publish(_cancel(0))
    assert await _epochs(two, 1) == [0]
    with pytest.raises(BusClosed):
        await one.receive()


async def test_closing_ends_iteration_after_what_waits(make_bus: MakeBus) -> None:
    async with make_bus("a") as bus:
        subscription = bus.subscribe(Topic.TASKS)
        bus.publish(_cancel(0))
        await _until(lambda: bus.statistics().queued == 1)
    assert [item.sequence async for item in subscription if isinstance(item, Received)] == [0]
    with pytest.raises(BusClosed):
        await subscription.receive()


async def test_closing_wakes_who_waits(make_bus: MakeBus) -> None:
    async with make_bus("a") as bus:
        waiting = asyncio.create_task(bus.subscribe(Topic.TASKS).receive())
        await asyncio.sleep(0)
    with pytest.raises(BusClosed):
        await waiting


async def test_only_an_open_bus_publishes(make_bus: MakeBus) -> None:
    bus = make_bus("a")
    with pytest.raises(BusClosed, match="async with"):
        bus.publish(_cancel(0))
    async with bus:
        bus.publish(_cancel(0))
    with pytest.raises(BusClosed):
        bus.publish(_cancel(1))
    with pytest.raises(BusClosed):
        bus.subscribe(Topic.TASKS)
    with pytest.raises(BusClosed, match="before"):
        await bus.__aenter__()


async def test_what_was_published_last_before_closing_arrives(make_bus: MakeBus, join: Join) -> None:
    b = await join("b")
    subscription = b.subscribe(Topic.TASKS)
    async with make_bus("a") as a:
        for number in range(200):
            a.publish(_cancel(number))
    assert await _epochs(subscription, 200) == list(range(200))


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 65, "a\n", "!all"])
def test_a_name_that_is_no_id_is_a_mistake_of_the_user(make_bus: MakeBus, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        make_bus(name)


async def test_subscribing_to_nothing_is_a_mistake_of_the_user(join: Join) -> None:
    a = await join("a")
    with pytest.raises(ConfigError, match="no topic"):
        a.subscribe()


async def test_statistics_count_what_happened(join: Join) -> None:
    a, b = await join("a"), await join("b")
    subscription = b.subscribe(Topic.TASKS)
    for number in range(10):
        a.publish(_cancel(number))
    a.publish(RoundCommitted(round_index=1, rows={"nominal": 5}, summary={}))
    await _until(lambda: b.statistics().queued == 11)
    sent, taken = a.statistics(), b.statistics()
    assert (sent.topics[Topic.TASKS].published, sent.topics[Topic.TASKS].received) == (11, 0)
    assert (taken.topics[Topic.TASKS].published, taken.topics[Topic.TASKS].received) == (0, 11)
    assert taken.topics[Topic.TASKS].received_bytes > 11 * 50
    assert sent.retained_bytes > 11 * 50
    assert taken.rejected == {}
    await _take(subscription, 11)
    assert b.statistics().queued == 0


def test_the_fault_protocol_is_what_the_script_offers() -> None:
    script: Faults = FaultScript(0, FaultRates())
    message: Message = _cancel(0)
    assert script.deliveries("a", [b"tasks", repr(message).encode()], 0.0) == [0.0]
