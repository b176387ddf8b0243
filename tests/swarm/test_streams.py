"""Sequencing and retention as pure scripts."""

from __future__ import annotations

import random

import pytest

from swarm.retention import LatestValues, Readers, Ring
from swarm.streams import Gap, InOrder, NewestPerKey, Passing, RepairConfig

CONFIG = RepairConfig(grace_s=0.01, retry_s=0.25, window=4, waiting=8)


def _reader(start: int = 0, *, from_history: bool = False) -> InOrder[int]:
    return InOrder(CONFIG, start, from_history=from_history)


def test_messages_in_order_pass_at_once() -> None:
    reader = _reader()
    assert [reader.data(n, n, 0.0) for n in range(3)] == [[0], [1], [2]]
    assert reader.due is None


def test_a_gap_is_asked_about_after_the_grace_and_again_after_the_retry() -> None:
    reader = _reader()
    assert reader.data(2, 2, 0.0) == []
    assert reader.ask(0.0) == []
    assert reader.ask(0.01) == [(0, 2)]
    assert reader.ask(0.2) == []
    assert reader.ask(0.3) == [(0, 2)]
    assert reader.counts.gaps == 2


def test_a_repaired_gap_releases_what_waited_in_order() -> None:
    reader = _reader()
    reader.data(2, 2, 0.0)
    assert reader.data(0, 0, 0.1, replayed=True) == [0]
    assert reader.data(1, 1, 0.1, replayed=True) == [1, 2]
    assert reader.due is None
    assert (reader.counts.repaired, reader.counts.lost, reader.counts.duplicates) == (2, 0, 0)


def test_a_lost_tail_is_noticed_from_the_publishers_end() -> None:
    reader = _reader()
    reader.data(0, 0, 0.0)
    reader.ends_at(3, 1.0)
    assert reader.ask(1.01) == [(1, 3)]
    assert reader.counts.gaps == 2


def test_a_duplicate_is_dropped_and_counted_whether_delivered_or_waiting() -> None:
    reader = _reader()
    reader.data(0, 0, 0.0)
    reader.data(2, 2, 0.0)
    assert reader.data(0, 0, 0.0) == []
    assert reader.data(2, 2, 0.0) == []
    assert reader.counts.duplicates == 2


def test_what_fell_out_of_retention_arrives_as_a_gap_before_what_remains() -> None:
    reader = _reader()
    reader.data(5, 5, 0.0)
    reader.data(3, 3, 0.1, replayed=True)
    assert reader.answered(3, 0.1) == [Gap(3), 3]
    assert reader.data(4, 4, 0.1, replayed=True) == [4, 5]
    assert reader.counts.lost == 3


def test_what_a_publisher_forgot_before_a_late_reader_came_is_no_loss() -> None:
    reader = _reader(from_history=True)
    reader.ends_at(9, 0.0)
    reader.begin(0.0)
    assert reader.ask(0.0) == [(0, 4)]
    assert reader.answered(7, 0.1) == []
    assert reader.ask(0.1) == [(7, 9)]
    assert reader.data(7, 7, 0.2, replayed=True) == [7]
    assert reader.counts.lost == 0


def test_all_holes_of_a_window_are_asked_about_at_once() -> None:
    reader = _reader()
    reader.data(1, 1, 0.0)
    reader.data(3, 3, 0.0)
    reader.ends_at(9, 0.0)
    assert reader.ask(1.0) == [(0, 1), (2, 3)]
    assert reader.data(0, 0, 1.1, replayed=True) == [0, 1]
    assert reader.answered(0, 1.1) == []
    assert reader.ask(1.1) == []
    assert reader.data(2, 2, 1.1, replayed=True) == [2, 3]
    assert reader.answered(0, 1.1) == []
    assert reader.ask(1.1) == [(4, 8)]


def test_a_long_gap_is_repaired_window_by_window() -> None:
    reader = _reader()
    reader.ends_at(10, 0.0)
    delivered: list[int | Gap] = []
    questions = []
    now = 1.0
    while wanted := reader.ask(now):
        questions += wanted
        for sequence in range(*wanted[0]):
            delivered += reader.data(sequence, sequence, now, replayed=True)
        delivered += reader.answered(0, now)
    assert questions == [(0, 4), (4, 8), (8, 10)]
    assert delivered == list(range(10))


def test_what_waits_behind_a_gap_is_bounded() -> None:
    reader = _reader()
    for sequence in range(1, 100):
        reader.data(sequence, sequence, 0.0)
    assert len(reader.data(0, 0, 0.0, replayed=True)) == 1 + CONFIG.waiting
    assert reader.due is not None
    assert reader.ask(9.0) == [(9, 13)]


def test_a_paused_stream_takes_nothing_and_goes_on_where_it_stopped() -> None:
    reader = _reader()
    reader.data(0, 0, 0.0)
    reader.pause()
    assert reader.data(1, 1, 0.0) == []
    assert reader.ask(9.0) == []
    reader.resume(10.0)
    assert reader.ask(10.0) == [(1, 2)]


def test_a_dead_publishers_stream_ends_with_what_waited_and_what_is_missing() -> None:
    reader = _reader()
    reader.data(2, 2, 0.0)
    reader.ends_at(5, 0.0)
    assert reader.abandon() == [Gap(2), 2, Gap(2)]
    assert reader.abandon() == []


def test_asking_in_vain_becomes_futile() -> None:
    reader = _reader()
    reader.ends_at(1, 0.0)
    now = 0.0
    while not reader.is_futile:
        assert reader.due is not None
        now = reader.due
        assert reader.ask(now) == [(0, 1)]
    assert now < 60.0


@pytest.mark.parametrize("seed", range(50))
def test_any_order_and_number_of_copies_delivers_everything_once_and_in_order(seed: int) -> None:
    generator = random.Random(seed)
    reader = _reader()
    arrivals = [n for n in range(40) for _ in range(generator.choice((0, 1, 1, 3)))]
    generator.shuffle(arrivals)
    delivered: list[int | Gap] = []
    for sequence in arrivals:
        delivered += reader.data(sequence, sequence, 0.0)
    reader.ends_at(40, 0.0)
    now = 1.0
    while wanted := reader.ask(now):
        for first, until in wanted:
            for sequence in range(first, until):
                if generator.random() < 0.6:
                    delivered += reader.data(sequence, sequence, now, replayed=True)
            delivered += reader.answered(0, now)
        now += 10.0
    assert delivered == list(range(40))


def test_a_ring_forgets_the_oldest_first_and_keeps_within_its_bytes() -> None:
    ring: Ring[str] = Ring(100)
    for n in range(10):
        assert ring.append(f"m{n}", 30, taken=None) == n
    assert (ring.oldest, ring.next, ring.num_bytes) == (7, 10, 90)
    assert [entry.sequence for entry in ring.between(0, 9)] == [7, 8]
    assert [entry.sequence for entry in ring.between(8, 99)] == [8, 9]


def test_a_ring_is_full_only_of_what_a_reader_has_not_taken() -> None:
    ring: Ring[str] = Ring(100)
    for _ in range(4):
        ring.append("m", 30, taken=0)
    assert ring.num_bytes == 120
    assert ring.is_full(taken=0)
    assert not ring.is_full(taken=1)
    assert ring.oldest == 1


def test_the_slowest_living_reader_decides() -> None:
    readers = Readers()
    readers.acknowledge("fast", 9)
    readers.acknowledge("slow", 2)
    assert readers.slowest(lambda _: True) == ("slow", 2)
    assert readers.slowest(lambda name: name != "slow") == ("fast", 9)
    readers.waive("fast")
    assert readers.slowest(lambda _: True) is None


def test_latest_values_keep_one_message_per_key() -> None:
    values: LatestValues[str] = LatestValues()
    for item in ("a1", "b1", "a2"):
        values.append(item[0], item, 10)
    assert [entry.item for entry in values.between(0, 9)] == ["b1", "a2"]
    assert values.num_bytes == 20


def test_latest_values_are_bounded_in_keys() -> None:
    values: LatestValues[int] = LatestValues(max_keys=3)
    for key in range(5):
        values.append(key, key, 10)
    assert [entry.item for entry in values.between(0, 9)] == [2, 3, 4]
    assert values.num_bytes == 30


def test_an_older_value_never_follows_a_newer_one_of_its_key() -> None:
    reader: NewestPerKey[str] = NewestPerKey(CONFIG)
    assert reader.data(3, "a", 0.0)
    assert reader.data(1, "b", 0.0)
    assert not reader.data(2, "a", 0.0)
    assert reader.ask(1.0) == [(0, 4)]
    reader.answered(4, 1.0)
    assert reader.ask(9.0) == []


def test_best_effort_counts_what_it_missed() -> None:
    stream = Passing(0)
    assert [stream.data(n) for n in (0, 3, 2, 3, 4)] == [True, True, False, False, True]
    assert (stream.counts.lost, stream.counts.duplicates) == (2, 2)
