from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import structlog
import uvloop

from swarm import ConfigError, ExtraProcess, PeerLost, Submission, Swarm, SwarmOptions, TaskFailed, Topic
from swarm.agent import Agent, AgentContext
from swarm.errors import SwarmError, TaskImpossible
from swarm.launch.processes import error_of
from swarm.messages import Announcement, Award, Done, Json, Proposal, Refusal
from swarm.supervisor import Started
from swarm.swarm import Auctioneer


class Adder(Agent):
    role: ClassVar[str] = "adder"
    skills: ClassVar[frozenset[str]] = frozenset({"add", "never"})
    performed: int = 0

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        return Proposal(task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, values=(1.0,))

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        if award.kind == "never":
            await asyncio.Event().wait()
        terms = award.terms["terms"]
        assert isinstance(terms, list | tuple)
        self.performed += 1
        return {"sum": await context.compute(sum, terms), "run_dir": str(context.run_dir)}


class Rounds(Auctioneer):
    """A coordinator whose run does two additions, or fails as it is told."""

    async def run(self, context: AgentContext) -> None:
        if "complaint" in self.options:
            raise ConfigError(str(self.options["complaint"]))
        for index in range(2):
            await context.submit(
                Submission(task_id=f"r{index}.add", kind="add", submitter=self.name, terms={"terms": [index, 1]})
            )


class Careful(Adder):
    """Refuses terms that its user got wrong, and counts how often it was asked."""

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        self.performed += 1
        raise ConfigError("terms['terms'] is empty; give at least one number")


async def test_work_that_only_the_user_can_mend_is_performed_once_and_says_so() -> None:
    careful = Careful()
    async with Swarm([careful]) as swarm:
        with pytest.raises(TaskImpossible, match="give at least one number") as caught:
            await swarm.submit("add", {"terms": []})
    assert isinstance(caught.value, ConfigError)
    assert careful.performed == 1


async def test_such_work_ends_a_coordinators_run_as_the_users_error() -> None:
    async with Swarm([Careful()], coordinator=Rounds("coordinator")) as swarm:
        with pytest.raises(ConfigError, match="give at least one number"):
            await swarm.wait_finished()


def test_the_error_that_a_process_leaves_behind_is_still_the_users() -> None:
    assert isinstance(error_of("TaskImpossible: round 3 cannot be performed"), ConfigError)
    assert not isinstance(error_of("TaskFailed: 5 holders were lost"), ConfigError)


async def test_work_submitted_to_an_embedded_swarm_comes_back_done() -> None:
    async with Swarm([Adder()]) as swarm:
        ended = await swarm.submit("add", {"terms": [1, 2, 3]})
        assert ended.results["adder"]["sum"] == 6


async def test_events_are_those_of_the_topic_from_the_call_on() -> None:
    async with Swarm([Adder()]) as swarm:
        events = swarm.events(Topic.RESULTS)
        await swarm.submit("add", {"terms": [1]})
        async for event in events:
            if isinstance(event.message, Done):
                assert (event.sender, event.message.result["sum"]) == ("adder", 1)
                break
        await events.aclose()


async def test_an_event_stream_ends_when_the_swarm_is_left() -> None:
    async with Swarm([Adder()]) as swarm:
        events = swarm.events(Topic.TASKS)
        listener = asyncio.create_task(_count(events))
    async with asyncio.timeout(2):
        assert await listener == 0


async def _count(events: object) -> int:
    return sum([1 async for _ in events])  # type: ignore[attr-defined]


async def test_a_task_that_fails_raises_with_the_reason() -> None:
    async with Swarm([Adder()]) as swarm:
        with pytest.raises(TaskFailed, match="KeyError: 'terms'"):
            await swarm.submit("add", {})


async def test_two_swarms_in_one_process_do_not_hear_each_other(tmp_path: Path) -> None:
    dirs = [tmp_path / "one", tmp_path / "two"]
    async with Swarm([Adder()], run_dir=dirs[0]) as one, Swarm([Adder()], run_dir=dirs[1]) as two:
        overheard = asyncio.create_task(_first(two.events(Topic.TASKS)))
        ended = await asyncio.gather(one.submit("add", {"terms": [1]}), one.submit("add", {"terms": [2]}))
        assert [row.results["adder"] for row in ended] == [
            {"sum": 1, "run_dir": str(dirs[0])},
            {"sum": 2, "run_dir": str(dirs[0])},
        ]
        assert not overheard.done()
        await two.submit("add", {"terms": [3]})
        assert (await overheard) == "Submission"


async def _first(events: object) -> str:
    async for event in events:  # type: ignore[attr-defined]
        return type(event.message).__name__
    return ""


async def test_wait_finished_returns_when_the_coordinators_run_has_ended() -> None:
    adder = Adder()
    async with Swarm([adder, Rounds()]) as swarm, asyncio.timeout(10):
        await swarm.wait_finished()
    assert adder.performed == 2


async def test_wait_finished_raises_what_the_run_raised() -> None:
    async with Swarm([Adder()], coordinator=Rounds(options={"complaint": "no budget"})) as swarm:
        with pytest.raises(ConfigError, match="no budget"):
            await swarm.wait_finished()


async def test_a_submission_to_a_swarm_that_has_ended_says_so_instead_of_waiting() -> None:
    async with Swarm([Adder()], coordinator=Rounds()) as swarm:
        await swarm.wait_finished()
        with pytest.raises(SwarmError, match="finished before task"):
            await swarm.submit("never")


async def test_waiting_for_a_coordinator_without_a_run_is_refused() -> None:
    async with Swarm([Adder()]) as swarm:
        with pytest.raises(ConfigError, match="no run"):
            await swarm.wait_finished()


async def test_leaving_ends_every_task_thread_and_process_that_was_started(tmp_path: Path) -> None:
    tasks_before = asyncio.all_tasks()
    sleeper = ExtraProcess(name="sleeper", argv=(sys.executable, "-c", "import sys; sys.stdin.read()"))
    async with Swarm([Adder()], run_dir=tmp_path, options=SwarmOptions(processes=(sleeper,))) as swarm:
        await swarm.submit("add", {"terms": [1]})
        started = swarm.process_events()[0]
        assert isinstance(started, Started)
        assert psutil.pid_exists(started.process_id)
    assert asyncio.all_tasks() == tasks_before
    assert not psutil.pid_exists(started.process_id)


async def test_a_cancelled_embedder_is_released_within_two_seconds() -> None:
    entered = asyncio.Event()

    async def embed() -> None:
        async with Swarm([Adder()]) as swarm:
            entered.set()
            await swarm.submit("never")

    tasks_before = asyncio.all_tasks()
    embedder = asyncio.create_task(embed())
    await entered.wait()
    await asyncio.sleep(0)
    embedder.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await embedder
    assert asyncio.all_tasks() == tasks_before


async def test_nothing_global_is_touched() -> None:
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    logging_before, policy = list(logging.getLogger().handlers), asyncio.get_event_loop_policy()
    structlog_before = structlog.is_configured()
    async with Swarm([Adder()]) as swarm:
        await swarm.submit("add", {"terms": [1]})
    assert {signum: signal.getsignal(signum) for signum in handlers} == handlers
    assert logging.getLogger().handlers == logging_before
    assert asyncio.get_event_loop_policy() is policy
    assert structlog.is_configured() == structlog_before


def test_a_swarm_lives_under_uvloop_too() -> None:
    async def embed() -> object:
        sleeper = ExtraProcess(name="sleeper", argv=(sys.executable, "-c", "import sys; sys.stdin.read()"))
        async with Swarm([Adder()], options=SwarmOptions(processes=(sleeper,))) as swarm:
            return (await swarm.submit("add", {"terms": [20, 22]})).results["adder"]["sum"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(embed()) == 42


async def test_a_process_that_cannot_stay_up_ends_the_swarm_with_its_reason() -> None:
    broken = ExtraProcess(name="bridge", argv=(sys.executable, "-c", "raise SystemExit('no display')"))
    async with Swarm([Adder()], options=SwarmOptions(processes=(broken,))) as swarm:
        with pytest.raises(PeerLost, match=r"bridge exited with code 1 .* no display"):
            await swarm.submit("never")


@pytest.mark.parametrize(
    ("agents", "said"),
    [
        ([Adder(), Adder()], "two agents are called 'adder'"),
        ([Adder("coordinator")], "two agents are called 'coordinator'"),
        ([Adder("../x")], "'../x' is not valid"),
        ([Adder("launcher")], "'launcher' is not valid"),
        ([Rounds("a"), Rounds("b")], "both 'a' and 'b' manage"),
    ],
)
def test_a_team_that_cannot_be_is_refused_in_one_line(agents: list[Agent], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Swarm(agents)


async def test_a_swarm_is_used_inside_its_context_and_once() -> None:
    swarm = Swarm([Adder()])
    with pytest.raises(ConfigError, match="not running"):
        await swarm.submit("add")
    async with swarm:
        pass
    with pytest.raises(ConfigError, match="entered before"):
        await swarm.__aenter__()
