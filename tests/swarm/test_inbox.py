"""The queue between a peer and one subscriber."""

from __future__ import annotations

import asyncio

import pytest

from swarm.bus import Lost
from swarm.errors import BusClosed
from swarm.inbox import Inbox
from swarm.topics import Topic


def _item(number: int) -> Lost:
    return Lost(sender="a", topic=Topic.TASKS, count=number)


async def test_a_receive_that_is_cancelled_as_its_item_comes_leaves_the_item() -> None:
    inbox = Inbox(10)
    waiting = asyncio.create_task(inbox.receive())
    await asyncio.sleep(0)
    inbox.put(_item(1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert inbox.receive_nowait() == _item(1)


async def test_the_wake_up_of_a_cancelled_receiver_goes_to_the_next_one() -> None:
    inbox = Inbox(10)
    first, second = asyncio.create_task(inbox.receive()), asyncio.create_task(inbox.receive())
    await asyncio.sleep(0)
    inbox.put(_item(1))
    first.cancel()
    async with asyncio.timeout(5):
        assert await second == _item(1)


async def test_several_receivers_share_what_comes() -> None:
    inbox = Inbox(10)
    receivers = [asyncio.create_task(inbox.receive()) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(3):
        inbox.put(_item(number))
    async with asyncio.timeout(5):
        assert [await receiver for receiver in receivers] == [_item(number) for number in range(3)]


async def test_an_inbox_that_ended_still_gives_what_waits() -> None:
    inbox = Inbox(10)
    inbox.put(_item(1))
    inbox.end()
    assert await inbox.receive() == _item(1)
    with pytest.raises(BusClosed):
        await inbox.receive()


def test_best_effort_items_never_push_out_reliable_ones() -> None:
    inbox = Inbox(2)
    inbox.put(_item(1))
    inbox.put(_item(2))
    assert inbox.put_passing(_item(3))
    assert [inbox.receive_nowait() for _ in range(3)] == [_item(1), _item(2), None]


def test_a_newer_value_takes_the_place_of_the_one_that_waits() -> None:
    inbox = Inbox(2)
    inbox.put_latest("x", _item(1))
    inbox.put(_item(9))
    inbox.put_latest("x", _item(2))
    assert [inbox.receive_nowait() for _ in range(3)] == [_item(2), _item(9), None]
    inbox.put_latest("x", _item(3))
    assert inbox.receive_nowait() == _item(3)


@pytest.mark.parametrize("capacity", [0, -1])
def test_an_inbox_without_room_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        Inbox(capacity)
