"""What only a bus across processes has: a broker that is missing, dies, comes back; other event loops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from swarm.bus import Received
from swarm.bus_config import BusConfig
from swarm.errors import ConfigError, PeerLost
from swarm.messages import Cancel
from swarm.testing.broker_process import BrokerProcess
from swarm.topics import Topic
from swarm.zmq_bus import ZmqBus


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # tmp_path may be too long for a socket
        yield Path(name)


def _cancel(number: int) -> Cancel:
    return Cancel(task_id="t", epoch=number, reason="x")


async def _exchange(endpoints: tuple[str, str], count: int) -> list[int]:
    async with ZmqBus("a", *endpoints) as a, ZmqBus("b", *endpoints) as b, asyncio.timeout(30):
        subscription = b.subscribe(Topic.TASKS)
        for number in range(count):
            a.publish(_cancel(number))
        return [
            item.sequence for item in [await subscription.receive() for _ in range(count)] if isinstance(item, Received)
        ]


async def test_peers_repair_what_they_missed_while_the_broker_was_dead(folder: Path) -> None:
    with BrokerProcess.over_ipc(folder) as broker:
        async with ZmqBus("a", *broker.endpoints) as a, ZmqBus("b", *broker.endpoints) as b, asyncio.timeout(60):
            subscription = b.subscribe(Topic.TASKS)
            a.publish(_cancel(0))
            received, sent = [await subscription.receive()], 1  # from here on b knows that there is a
            for _ in range(3):
                for _ in range(200):
                    a.publish(_cancel(sent))
                    sent += 1
                broker.kill()
                for _ in range(200):
                    a.publish(_cancel(sent))
                    sent += 1
                broker.start()
            received += [await subscription.receive() for _ in range(sent - 1)]
            assert [item.sequence for item in received if isinstance(item, Received)] == list(range(sent))
            assert b.statistics().topics[Topic.TASKS].lost == 0


async def test_a_missing_broker_is_named_after_the_patience(folder: Path) -> None:
    endpoints = (f"ipc://{folder}/f", f"ipc://{folder}/b")
    with pytest.raises(PeerLost, match="is the broker running"):
        await ZmqBus("a", *endpoints, config=BusConfig(patience_s=0.2)).__aenter__()


async def test_a_peer_may_come_before_its_broker(folder: Path) -> None:
    broker = BrokerProcess.over_ipc(folder)
    joining = asyncio.create_task(_exchange(broker.endpoints, 3))
    await asyncio.sleep(0)
    with broker:
        assert await joining == [0, 1, 2]


@pytest.mark.parametrize("endpoint", ["nowhere", "tcp://", "ipc://" + "x" * 200, "http://127.0.0.1:80"])
async def test_an_endpoint_that_cannot_be_is_a_mistake_of_the_user(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="cannot connect"):
        await ZmqBus("a", endpoint, "ipc:///nowhere/b").__aenter__()


def test_the_bus_runs_under_uvloop(folder: Path) -> None:
    with BrokerProcess.over_ipc(folder) as broker, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(_exchange(broker.endpoints, 3_000)) == list(range(3_000))


def test_a_broker_replaces_stale_sockets_and_removes_its_own_on_sigterm(folder: Path) -> None:
    broker = BrokerProcess.over_ipc(folder)
    broker.start()
    assert asyncio.run(_exchange(broker.endpoints, 1)) == [0]
    broker.kill()
    assert len(list(folder.iterdir())) == 2
    with broker:
        assert asyncio.run(_exchange(broker.endpoints, 1)) == [0]
    assert broker.process.returncode == 0
    assert list(folder.iterdir()) == []


def test_the_broker_ends_with_its_parent(folder: Path) -> None:
    endpoints = (f"ipc://{folder}/f", f"ipc://{folder}/b")
    script = (
        "import os, subprocess, sys, time\n"
        f"ends = ['--frontend', {endpoints[0]!r}, '--backend', {endpoints[1]!r}]\n"
        "command = [sys.executable, '-m', 'swarm.broker', *ends]\n"
        "broker = subprocess.Popen([*command, '--parent-pid', str(os.getpid())])\n"
        "print(broker.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdin is not None
    broker_pid = int(parent.stdout.readline())
    assert asyncio.run(_exchange(endpoints, 1)) == [0]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    deadline = time.monotonic() + 10
    while _is_running(broker_pid):
        assert time.monotonic() < deadline
    assert list(folder.iterdir()) == []


def _is_running(process_id: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("frontend", "expected"),
    [
        ("tcp://0.0.0.0:5555", "loopback"),
        ("tcp://*:5555", "loopback"),
        ("tcp://192.0.2.1:5555", "loopback"),
        ("nonsense", "expected ipc"),
        ("ipc:///nowhere/at/all", "cannot bind"),
        (f"ipc://{os.path.realpath(__file__)}", "is no socket"),
    ],
)
def test_the_broker_refuses_with_one_line_where_it_must_not_bind(frontend: str, expected: str, folder: Path) -> None:
    command = [sys.executable, "-m", "swarm.broker", "--frontend", frontend, "--backend", f"ipc://{folder}/b"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
