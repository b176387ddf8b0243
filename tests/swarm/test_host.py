from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import pytest
from structlog.testing import capture_logs

from swarm.ablation import Ablation, Faults
from swarm.agent import Agent, AgentContext
from swarm.bus import Received
from swarm.context import NodeResources, compute_thread
from swarm.errors import ConfigError, PeerLost, TaskFailed
from swarm.gathering import TopicStore
from swarm.host import AgentHost
from swarm.journal import Journal
from swarm.memory_bus import MemoryBus, MemoryHub
from swarm.messages import (
    Announcement,
    Award,
    Done,
    Ended,
    Evaluation,
    Failed,
    Goodbye,
    Hello,
    Json,
    Message,
    Proposal,
    Refusal,
    Submission,
)
from swarm.swarm import Auctioneer
from swarm.topics import Topic

Work = Callable[[Award, AgentContext], Awaitable[Mapping[str, Json]]]


class Worker(Agent):
    """Bids 1.0 on ``work`` and performs it with the given function."""

    role: ClassVar[str] = "worker"
    skills: ClassVar[frozenset[str]] = frozenset({"work"})
    listens: ClassVar[frozenset[Topic]] = frozenset({Topic.EVALUATIONS})
    bid: float = 1.0
    work: Work
    lives: int = 0

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        return Proposal(task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, values=(self.bid,))

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        self.lives += 1
        return await self.work(award, context)

    def save(self) -> Mapping[str, Json]:
        return {"lives": self.lives}


class Cell:
    """A hub with hosts on it, an observer's record of all messages, and a peer to publish on."""

    def __init__(self, hub: MemoryHub, node: NodeResources, bus: MemoryBus) -> None:
        self.hub = hub
        self.node = node
        self.bus = bus
        self.heard: list[Received] = []
        self.hosts: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def host(self, agent: Agent, node: NodeResources | None = None) -> asyncio.Task[None]:
        host = AgentHost(agent, MemoryBus(agent.name, self.hub), node or self.node)
        self.hosts.append(asyncio.create_task(host.serve()))
        async with asyncio.timeout(5):
            await host.ready.wait()
        return self.hosts[-1]

    async def listen(self) -> None:
        async for item in self.bus.subscribe(*Topic):
            assert isinstance(item, Received)
            self.heard.append(item)
            self._changed.set()

    def of(self, kind: type[Message]) -> list[Message]:
        return [item.message for item in self.heard if isinstance(item.message, kind)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def ended(self, task: Submission) -> Ended:
        self.bus.publish(task)
        await self.until(lambda: bool(self.of(Ended)))
        ended = self.of(Ended)[0]
        assert isinstance(ended, Ended)
        return ended


def node_resources(run_dir: Path, stack: AsyncExitStack, **changes: object) -> NodeResources:
    compute = compute_thread()
    stack.callback(compute.shutdown)
    return NodeResources(run_dir=run_dir, compute=compute, **changes)  # type: ignore[arg-type]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def cell(tmp_path: Path, stack: AsyncExitStack) -> AsyncIterator[Cell]:
    hub = MemoryHub()
    async with MemoryBus("observer", hub) as bus:
        opened = Cell(hub, node_resources(tmp_path, stack), bus)
        listener = asyncio.create_task(opened.listen())
        await asyncio.sleep(0)
        yield opened
        tasks = [*opened.hosts, listener]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def task(kind: str = "work", task_id: str = "t1") -> Submission:
    return Submission(task_id=task_id, kind=kind, submitter="observer", deadline_s=2.0)


def worker(work: Work, name: str = "worker") -> Worker:
    agent = Worker(name)
    agent.work = work
    return agent


async def answer(award: Award, context: AgentContext) -> Mapping[str, Json]:
    return {"answer": await context.compute(sum, (40, 2))}


async def test_a_submitted_task_is_announced_bid_for_awarded_and_done_with_state(cell: Cell) -> None:
    await cell.host(Auctioneer())
    await cell.host(worker(answer))
    ended = await cell.ended(task())
    assert (ended.status, ended.results) == ("done", {"worker": {"answer": 42}})
    kinds = [type(item.message).__name__ for item in cell.heard]
    steps = [kinds.index(name) for name in ("Submission", "Announcement", "Proposal", "Award", "Done", "Ended")]
    assert steps == sorted(steps)
    done = cell.of(Done)[0]
    assert isinstance(done, Done)
    assert done.state == {"lives": 1}


async def test_the_higher_bid_wins(cell: Cell) -> None:
    await cell.host(Auctioneer())
    for name, bid in (("low", 1.0), ("high", 2.0)):
        agent = worker(answer, name)
        agent.bid = bid
        await cell.host(agent)
    await cell.until(lambda: {item.sender for item in cell.heard} >= {"low", "high", "coordinator"})
    assert list((await cell.ended(task())).units) == ["high"]


async def test_an_error_in_perform_is_a_failed_award_with_type_and_text(cell: Cell) -> None:
    async def broken(award: Award, context: AgentContext) -> Mapping[str, Json]:
        raise ValueError("no data")

    await cell.host(Auctioneer())
    await cell.host(worker(broken))
    with capture_logs() as logs:
        ended = await cell.ended(task())
    failure = next(entry for entry in logs if entry["event"] == "perform_failed")
    assert 'raise ValueError("no data")' in failure["stack"]
    assert "exc_info" not in failure  # drawing every variable of every frame would hold up the loop
    assert ended.status == "failed"
    failed = cell.of(Failed)[0]
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.retryable) == ("ValueError: no data", True)


async def test_a_lost_peer_in_perform_is_retried_until_it_succeeds(cell: Cell) -> None:
    attempts = []

    async def second_time_lucky(award: Award, context: AgentContext) -> Mapping[str, Json]:
        attempts.append(award.epoch)
        if len(attempts) == 1:
            raise PeerLost("the bridge is gone")
        return {"attempt": len(attempts)}

    await cell.host(Auctioneer())
    await cell.host(worker(second_time_lucky))
    ended = await cell.ended(task())
    assert ended.results == {"worker": {"attempt": 2}}
    assert attempts[1] > attempts[0]


async def test_a_users_mistake_in_perform_is_not_retried(cell: Cell) -> None:
    attempts = []

    async def mistaken(award: Award, context: AgentContext) -> Mapping[str, Json]:
        attempts.append(award.epoch)
        context.service("brigde")
        return {}

    await cell.host(Auctioneer())
    await cell.host(worker(mistaken))
    ended = await cell.ended(task())
    assert (ended.status, len(attempts)) == ("failed", 1)
    assert "asked for service 'brigde'; this node has: none" in ended.reason


async def test_a_result_that_cannot_travel_fails_the_award_not_the_host(cell: Cell) -> None:
    async def strange(award: Award, context: AgentContext) -> Mapping[str, Json]:
        return {"answer": object()}  # type: ignore[dict-item]

    await cell.host(Auctioneer())
    host = await cell.host(worker(strange))
    ended = await cell.ended(task())
    assert ended.status == "failed"
    assert "not a valid message" in ended.reason
    assert not host.done()


async def test_an_error_in_propose_is_a_refusal(cell: Cell) -> None:
    class Confused(Worker):
        async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
            raise KeyError("strength")

    await cell.host(Auctioneer())
    await cell.host(Confused())
    cell.bus.publish(task())
    await cell.until(lambda: bool(cell.of(Refusal)))
    refusal = cell.of(Refusal)[0]
    assert isinstance(refusal, Refusal)
    assert "KeyError" in refusal.reason


async def test_a_cancelled_host_says_goodbye(cell: Cell) -> None:
    host = await cell.host(worker(answer))
    host.cancel()
    await cell.until(lambda: bool(cell.of(Goodbye)))
    with pytest.raises(asyncio.CancelledError):
        await host


async def test_a_manager_that_appears_is_greeted_at_once(cell: Cell) -> None:
    await cell.host(worker(answer))
    await cell.until(lambda: len(cell.of(Hello)) == 1)
    await cell.host(Auctioneer())
    await cell.until(
        lambda: [item.sender for item in cell.heard if isinstance(item.message, Hello)].count("worker") == 2
    )


class Director(Auctioneer):
    """A managing agent whose run is given."""

    directing: Callable[[AgentContext], Awaitable[None]]

    async def run(self, context: AgentContext) -> None:
        await self.directing(context)


def director(directing: Callable[[AgentContext], Awaitable[None]]) -> Director:
    agent = Director()
    agent.directing = directing
    return agent


async def test_a_managing_agents_run_submits_directly_and_its_end_ends_the_host(cell: Cell) -> None:
    results: list[Ended] = []

    async def one_task(context: AgentContext) -> None:
        results.append(await context.submit(task()))

    await cell.host(worker(answer))
    host = await cell.host(director(one_task))
    async with asyncio.timeout(10):
        await host
    assert results[0].results == {"worker": {"answer": 42}}
    assert not any(isinstance(item.message, Submission) for item in cell.heard)


async def test_what_a_run_raises_ends_the_host_with_that_very_error(cell: Cell) -> None:
    async def hopeless(context: AgentContext) -> None:
        await asyncio.sleep(0)
        raise ConfigError("budget_steps is 0; expected at least 8")

    host = await cell.host(director(hopeless))
    with pytest.raises(ConfigError, match="budget_steps is 0"):
        await host


async def test_a_contract_whose_submitter_stops_waiting_is_withdrawn(cell: Cell) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def endless(award: Award, context: AgentContext) -> Mapping[str, Json]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return {}

    async def impatient(context: AgentContext) -> None:
        waiting = asyncio.create_task(context.submit(task()))
        await begun.wait()
        waiting.cancel()
        await asyncio.Event().wait()

    await cell.host(worker(endless))
    await cell.host(director(impatient))
    async with asyncio.timeout(10):
        await stopped.wait()


async def test_an_agent_elsewhere_submits_over_the_bus_and_learns_of_failure(cell: Cell) -> None:
    async def broken(award: Award, context: AgentContext) -> Mapping[str, Json]:
        raise ConfigError("no such robot")

    caught: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Client(Worker):
        skills: ClassVar[frozenset[str]] = frozenset()

        async def run(self, context: AgentContext) -> None:
            try:
                await context.submit(task())
            except TaskFailed as error:
                caught.set_result(str(error))

    client = Client("client")
    await cell.host(worker(broken))
    await cell.host(client)
    await cell.host(Auctioneer())
    async with asyncio.timeout(10):
        assert "no such robot" in await caught


def vote(judge: str, round_index: int, score: float = 1.0) -> Evaluation:
    return Evaluation(judge=judge, round_index=round_index, kind="vote", scores={"meta": score})


def judge_of(message: Message) -> tuple[str, int] | None:
    return (message.judge, message.round_index) if isinstance(message, Evaluation) else None


async def test_gather_takes_what_came_before_and_waits_for_the_rest(cell: Cell) -> None:
    gathered: list[list[tuple[str, int]]] = []

    async def collect(award: Award, context: AgentContext) -> Mapping[str, Json]:
        found = await context.gather(Topic.EVALUATIONS, judge_of, [("b", 1), ("a", 1)], 5.0)
        gathered.append(list(found))
        return {}

    cell.bus.publish(vote("a", 1))  # before anybody listens: retained by its publisher
    await cell.host(Auctioneer())
    await cell.host(worker(collect))
    cell.bus.publish(task())
    await cell.until(lambda: any(isinstance(item.message, Award) for item in cell.heard))
    cell.bus.publish(vote("b", 1))
    await cell.until(lambda: bool(cell.of(Ended)))
    assert gathered == [[("b", 1), ("a", 1)]]


async def test_gather_on_a_topic_that_the_agent_does_not_listen_to_is_refused(cell: Cell) -> None:
    async def deaf(award: Award, context: AgentContext) -> Mapping[str, Json]:
        await context.gather(Topic.GRADIENTS, judge_of, [("a", 1)], 5.0)
        return {}

    await cell.host(Auctioneer())
    await cell.host(worker(deaf))
    assert "add it to its 'listens'" in (await cell.ended(task())).reason


async def test_a_gather_names_what_is_missing() -> None:
    store = TopicStore(Topic.EVALUATIONS)
    store.add(vote("a", 1))
    with pytest.raises(PeerLost, match=r"\('b', 1\)"):
        await store.gather(judge_of, [("a", 1), ("b", 1)], 0.0)


async def test_the_first_message_for_a_key_wins() -> None:
    store = TopicStore(Topic.EVALUATIONS)
    store.add(vote("a", 1, 1.0))
    store.add(vote("a", 1, 2.0))
    found = (await store.gather(judge_of, [("a", 1)], 1.0))["a", 1]
    assert isinstance(found, Evaluation)
    assert found.scores == {"meta": 1.0}


async def test_an_error_in_the_key_function_reaches_its_caller_only() -> None:
    store = TopicStore(Topic.EVALUATIONS)

    def explode(message: Message) -> str:
        raise LookupError("no key")

    waiting = asyncio.create_task(store.gather(explode, ["a"], 5.0))
    await asyncio.sleep(0)
    store.add(vote("a", 1))
    with pytest.raises(LookupError, match="no key"):
        await waiting


def test_a_topic_store_drops_its_oldest_messages_and_counts_them() -> None:
    store = TopicStore(Topic.EVALUATIONS, max_messages=3)
    for index in range(5):
        store.add(vote("a", index))
    assert store.dropped == 2


async def test_a_stopped_topic_stays_empty_while_everything_else_travels(
    cell: Cell, tmp_path: Path, stack: AsyncExitStack
) -> None:
    async def evaluate(award: Award, context: AgentContext) -> Mapping[str, Json]:
        context.publish(vote("worker", 1))
        return {}

    faults = Ablation(Faults(stop=frozenset({Topic.EVALUATIONS})))
    await cell.host(Auctioneer())
    await cell.host(worker(evaluate), node_resources(tmp_path, stack, ablation=faults))
    assert (await cell.ended(task())).status == "done"
    assert cell.of(Evaluation) == []
    assert faults.stopped == {Topic.EVALUATIONS: 1}


async def test_an_accepted_task_survives_its_manager(cell: Cell, tmp_path: Path, stack: AsyncExitStack) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.open(path) as journal:
        manager = await cell.host(Auctioneer(), node_resources(tmp_path, stack, journal=journal))
        cell.bus.publish(task())
        await cell.until(lambda: any(type(item.message).__name__ == "Accepted" for item in cell.heard))
        manager.cancel()
        await asyncio.gather(manager, return_exceptions=True)
    await cell.host(worker(answer))
    with Journal.open(path) as journal:
        await cell.host(Auctioneer(), node_resources(tmp_path, stack, journal=journal))
        await cell.until(lambda: bool(cell.of(Ended)))
        ended = cell.of(Ended)[0]
        assert isinstance(ended, Ended)
        assert ended.results == {"worker": {"answer": 42}}
        for host in cell.hosts:
            host.cancel()
        await asyncio.gather(*cell.hosts, return_exceptions=True)


async def test_what_a_managers_former_life_contracted_itself_is_withdrawn(
    cell: Cell, tmp_path: Path, stack: AsyncExitStack
) -> None:
    async def unanswerable(context: AgentContext) -> None:
        own = Submission(task_id="life1.t", kind="work", submitter="coordinator", deadline_s=None)
        await context.submit(own)

    path = tmp_path / "journal.sqlite"
    with Journal.open(path) as journal:
        manager = await cell.host(director(unanswerable), node_resources(tmp_path, stack, journal=journal))
        await cell.until(lambda: any(isinstance(item.message, Announcement) for item in cell.heard))
        journal.close()  # as if killed: the end of the contract is not written any more
        manager.cancel()
        await asyncio.gather(manager, return_exceptions=True)
    with Journal.open(path) as journal:
        successor = await cell.host(Auctioneer(), node_resources(tmp_path, stack, journal=journal))
        await cell.until(lambda: bool(cell.of(Ended)))
        ended = cell.of(Ended)[0]
        assert isinstance(ended, Ended)
        assert (ended.task_id, ended.status) == ("life1.t", "cancelled")
        successor.cancel()
        await asyncio.gather(successor, return_exceptions=True)
