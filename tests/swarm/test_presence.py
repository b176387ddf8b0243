from __future__ import annotations

import asyncio

from swarm.contract_events import PeerGone, PeerUp
from swarm.machine_loop import MachineLoop
from swarm.messages import Goodbye, Heartbeat, Hello, PeerDown
from swarm.presence import PresenceTracker


def beat(incarnation: int = 1) -> Heartbeat:
    return Heartbeat(agent="meta", incarnation=incarnation, progress=0, skills=("learn",), capacity=2)


UP = [PeerUp("meta", frozenset({"learn"}), 2, 1)]


def test_a_hello_or_a_heartbeat_brings_a_peer_up() -> None:
    tracker = PresenceTracker(0.0)
    assert tracker.hear(Hello(agent="meta", incarnation=1, skills=("learn",), capacity=2), 0.0) == UP
    assert tracker.hear(beat(), 1.0) == UP
    assert tracker.incarnation_of("meta") == 1


def test_three_missed_beats_are_a_death_reported_once_and_a_later_beat_a_return() -> None:
    tracker = PresenceTracker(0.0)
    tracker.hear(beat(), 0.0)
    silence = [tracker.check(float(second)) for second in range(1, 7)]
    assert [len(gone) for gone in silence] == [0, 0, 0, 1, 0, 0]
    assert tracker.hear(beat(), 7.0) == UP


def test_the_time_that_this_loop_hung_counts_against_nobody() -> None:
    tracker = PresenceTracker(0.0)
    tracker.hear(beat(), 0.0)
    assert tracker.check(60.0) == []
    assert [len(tracker.check(60.0 + second)) for second in (1, 2, 3)] == [0, 0, 1]


def test_who_was_reported_down_stays_gone_until_its_next_life() -> None:
    tracker = PresenceTracker(0.0)
    tracker.hear(beat(), 0.0)
    down = PeerDown(agent="meta", reason="ended by SIGKILL", restarting=True)
    assert tracker.hear(down, 1.0) == [PeerGone("meta", "ended by SIGKILL")]
    assert tracker.hear(down, 1.0) == []
    assert tracker.hear(beat(), 1.1) == []
    assert len(tracker.hear(beat(2), 2.0)) == 1


def test_a_goodbye_of_a_former_life_changes_nothing() -> None:
    tracker = PresenceTracker(0.0)
    tracker.hear(beat(2), 0.0)
    assert tracker.hear(Goodbye(agent="meta", incarnation=1), 0.1) == []
    assert tracker.hear(beat(1), 0.2) == []
    assert len(tracker.hear(Goodbye(agent="meta", incarnation=2), 0.3)) == 1


async def test_a_machine_gets_its_tick_at_the_newest_due_time_and_events_before_it() -> None:
    clock = asyncio.get_running_loop()
    handled: list[str] = []
    ticked = asyncio.Event()

    def handle(event: str, now_s: float) -> list[float]:
        handled.append(event)
        if event == "tick":
            ticked.set()
            return []
        return [now_s + 60.0, now_s + 0.02]

    async def execute(instructions: object) -> None:
        for due_s in instructions:  # type: ignore[attr-defined]
            machine.wake_at(due_s)

    machine: MachineLoop[str, float] = MachineLoop(handle, execute, "tick")
    running = asyncio.create_task(machine.run())
    await machine.put("first")
    machine.put_soon("second")
    started_s = clock.time()
    async with asyncio.timeout(5):
        await ticked.wait()
    assert clock.time() - started_s >= 0.019
    assert handled == ["first", "second", "tick"]
    running.cancel()
