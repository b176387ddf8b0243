from __future__ import annotations

import asyncio
from io import StringIO

import pytest
from rich.console import Console

from scenarios.live_view import LiveView, PlainView, clock_text, render, round_line
from scenarios.observer import ProcessEvent
from scenarios.scenario import load_preset
from scenarios.view_state import MessageSeen, Phase, ProcessSeen, RoundSeen, StatisticsSeen, ViewState
from swarm.bus import BusStatistics, Received, TopicStatistics
from swarm.messages import Award, Goodbye, Heartbeat, Hello, Json, Message, PeerDown
from swarm.topics import TOPIC_OF, Topic


def seen(message: Message, sender: str = "meta") -> MessageSeen:
    received = Received(sender=sender, incarnation=1, topic=TOPIC_OF[type(message)], sequence=0, message=message)
    return MessageSeen(received=received)


def committed(index: int, **more: Json) -> RoundSeen:
    summary: dict[str, Json] = {"round_index": index, "env_steps": 200 * index, "updates_total": 1_000 * index}
    return RoundSeen(summary={**summary, "returns": {"meta": None, "state": None}, **more})


def drawn(state: ViewState, now: float, width: int = 150) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(render(load_preset("halfcheetah"), state, now, width))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_rates_and_time_left_come_from_recent_rounds() -> None:
    state = ViewState(20_000)
    assert state.rates() is None
    assert state.time_left_s() is None
    state.apply(committed(0), 100.0)
    assert state.rates() is None
    state.apply(committed(10), 120.0)
    assert state.rates() == (100.0, 500.0)
    assert state.time_left_s() == pytest.approx(180.0)


def test_old_rounds_leave_the_window_of_the_rates() -> None:
    state = ViewState(20_000)
    for index in range(100):
        state.apply(committed(index), float(index if index < 50 else 50 + (index - 50) * 2))
    rates = state.rates()
    assert rates is not None
    assert rates[0] == pytest.approx(100.0)
    assert len(state.recent) < 20


def test_agent_that_misses_three_beats_is_silent_until_it_beats_again() -> None:
    state = ViewState(100)
    state.apply(seen(Hello(agent="meta", incarnation=1)), 0.0)
    assert not state.is_silent("meta", 3.0)
    assert state.is_silent("meta", 3.1)
    state.apply(seen(Heartbeat(agent="meta", incarnation=2, progress=7)), 4.0)
    assert not state.is_silent("meta", 4.0)
    assert (state.agents["meta"].restarts, state.agents["meta"].progress) == (1, 7)
    state.apply(seen(Goodbye(agent="meta", incarnation=2)), 5.0)
    assert not state.is_silent("meta", 100.0)


def test_awards_of_one_auction_add_up_and_the_next_auction_replaces_them() -> None:
    state = ViewState(100)
    for task, agent, units in (("t1", "meta", 5), ("t1", "state", 3), ("t2", "state", 8)):
        award = Award(task_id=task, epoch=1, agent=agent, kind="act", units=units, terms={}, lease_s=1.0)
        state.apply(seen(award, "coordinator"), 0.0)
        if task == "t1" and agent == "state":
            assert state.awards["act"] == ("t1", {"meta": 5, "state": 3})
    assert state.awards["act"] == ("t2", {"state": 8})


def test_deaths_and_losses_become_incidents_once() -> None:
    state = ViewState(100)
    state.apply(ProcessSeen(event=ProcessEvent(name="bridge", kind="started")), 0.0)
    state.apply(ProcessSeen(event=ProcessEvent(name="coordinator", kind="ended", detail="exited with code 0")), 0.5)
    state.apply(ProcessSeen(event=ProcessEvent(name="bridge", kind="exited", detail="ended by SIGKILL")), 1.0)
    state.apply(ProcessSeen(event=ProcessEvent(name="bridge", kind="restarted")), 1.1)
    state.apply(committed(1, lost=["round 1 was repeated"]), 2.0)
    state.apply(committed(2, lost=["round 1 was repeated"]), 3.0)
    assert list(state.incidents) == ["bridge exited: ended by SIGKILL", "bridge restarted", "round 1 was repeated"]
    assert state.process_restarts == {"bridge": 1}
    state.apply(seen(PeerDown(agent="meta", reason="killed", restarting=True)), 4.0)
    assert state.incidents[-1] == "meta is down: killed"


def test_what_learning_skips_is_an_incident_once_and_counted_in_each_round() -> None:
    state = ViewState(20_000)
    state.apply(committed(1, losses={"meta": {"skipped": 0}}, world={"error": 1.0, "skipped": []}), 1.0)
    assert (list(state.incidents), state.skips.total()) == ([], 0)
    assert "skips" not in round_line(state) + drawn(state, 1.0)
    wrong = committed(2, losses={"meta": {"skipped": 7}}, world={"skipped": ["state:meta:not-finite"]})
    for now in (2.0, 3.0):  # a coordinator that starts again tells its newest round again
        state.apply(wrong, now)
    state.apply(committed(3, losses={"meta": {"skipped": 5}}, world={"troubles": ["set back"]}), 4.0)
    assert list(state.incidents) == [
        "an update of member meta was skipped: not finite",
        "the meta gradients of state were refused: not-finite",
        "set back",
    ]
    assert "14 skips" in round_line(state)
    assert "14 skips" in drawn(state, 4.0)


def test_return_is_of_training_episodes_until_a_member_is_evaluated() -> None:
    state = ViewState(100)
    assert state.mean_return() is None
    state.apply(committed(1, episodes=[{"return": 10.0}, {"return": 20.0}]), 0.0)
    assert state.mean_return() == (15.0, "training episodes")
    state.apply(committed(2, best={"member": "meta", "return": 99.0}), 1.0)
    assert state.mean_return() == (99.0, "meta, evaluated")


def test_panel_shows_progress_winners_bids_health_and_losses() -> None:
    state = ViewState(20_000)
    state.apply(Phase(text="starting the broker"), 0.0)
    assert "starting the broker" in drawn(state, 0.0)
    state.apply(seen(Heartbeat(agent="meta", incarnation=1, progress=1)), 0.0)
    state.apply(committed(1), 0.0)
    auction: dict[str, Json] = {"act": {"meta": 1.75}, "compute": {"state": 0.5}}
    state.apply(committed(50, seats={"meta": 5}, lots={"state": 20}, bids=auction), 10.0)
    topics = {Topic.GRADIENTS: TopicStatistics(received=77, lost=3)}
    state.apply(StatisticsSeen(statistics=BusStatistics(topics=topics, rejected={"truncated": 4})), 10.0)
    for width in (80, 150):
        text = drawn(state, 10.0, width)
        for wanted in ("10 000/20 000 steps", "left", "5 @ 1.75", "20 @ 0.50", "silent 10 s ago", "77", "4 inputs"):
            assert wanted in text, (width, wanted)


async def test_live_view_draws_before_the_first_event_and_stops_its_ticker() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True)
    async with LiveView(load_preset("smoke"), console):
        await asyncio.sleep(0)
    assert isinstance(console.file, StringIO)
    assert "steps" in console.file.getvalue()
    assert len(asyncio.all_tasks()) == 1


async def test_plain_view_writes_phases_incidents_and_the_first_and_last_round() -> None:
    stream = StringIO()
    async with PlainView(load_preset("halfcheetah"), stream) as view:
        view.on_phase("starting")
        for index in (0, 1, 2, 100):
            view.on_round(committed(index).summary)
        view.on_process(ProcessEvent(name="bridge", kind="exited", detail="code 1"))
    lines = [line.split("] ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines[0] == "starting"
    assert lines[1] == "round 0 | 0/20000 steps"
    assert lines[2].startswith("round 100 | 20000/20000 steps")
    assert lines[3] == "incident: bridge exited: code 1"


def test_round_line_names_lots_and_time_left() -> None:
    state = ViewState(4_000)
    state.apply(committed(0), 0.0)
    state.apply(committed(10, lots={"meta": 3, "state": 0}), 20.0)
    assert round_line(state) == "round 10 | 2000/4000 steps | 100 steps/s, 500 updates/s | 0:20 left | lots: meta 3"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3_725, "1:02:05")])
def test_clock_text(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
