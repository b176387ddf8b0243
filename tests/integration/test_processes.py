from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from swarm import ConfigError, Ended, ProcessesLauncher, Submission, Swarm, TaskFailed, Topic
from swarm.agent_factory import agent_class, build_agent
from swarm.launch.sockets import socket_directory, sweep
from swarm.messages import PeerDown
from swarm.node_spec import NodeSpec
from swarm.supervisor import Exited, Restarted
from tests.integration.echo_agents import EchoAgent, RoundsAgent

ROOT = Path(__file__).parents[2]


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - files and processes of others cannot set an event
            await asyncio.sleep(0.02)


def gone(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def team() -> list[EchoAgent]:
    return [EchoAgent("first", {"value": 1.0}), EchoAgent("second", {"value": 2.0})]


async def test_work_crosses_two_worker_processes_and_the_higher_bid_wins(tmp_path: Path) -> None:
    async with Swarm(team(), launcher=ProcessesLauncher(2), run_dir=tmp_path) as swarm:
        children = [process.pid for process in psutil.Process().children()]
        ended = await swarm.submit("echo", {"text": "hello"})
        result = ended.results["second"]
        assert result["text"] == "HELLO"
        assert result["process_id"] in children
        both = await swarm.submit(
            Submission(
                task_id="two",
                kind="echo",
                submitter="launcher",
                terms={"text": "x"},
                awaited=("first", "second"),
                units=10,
            )
        )
        assert {row["process_id"] for row in both.results.values()} <= set(children)
    assert len(children) == 4  # broker, coordinator, two nodes
    assert all(gone(child) for child in children)


async def test_work_of_a_killed_node_is_auctioned_again_and_done(tmp_path: Path) -> None:
    async with Swarm(team(), launcher=ProcessesLauncher(2), run_dir=tmp_path) as swarm:
        presence = swarm.events(Topic.PRESENCE)
        waiting = asyncio.create_task(swarm.submit("hang_once", {"text": "again"}))
        marker = tmp_path / "hung"
        await until(lambda: marker.exists() and " " in marker.read_text())
        victim, process_id = marker.read_text().split()
        os.kill(int(process_id), signal.SIGKILL)
        async with asyncio.timeout(20):
            async for event in presence:
                if isinstance(event.message, PeerDown):
                    assert (event.message.agent, event.message.restarting) == (victim, True)
                    break
            ended: Ended = await waiting
        (performer,) = ended.results
        assert ended.results[performer]["text"] == "AGAIN"
        assert ended.results[performer]["process_id"] != int(process_id)
        await until(lambda: any(isinstance(entry, Restarted) for entry in swarm.process_events()))
        exited = next(entry for entry in swarm.process_events() if isinstance(entry, Exited))
        assert exited.signal == "SIGKILL"


@pytest.mark.parametrize("name", ["coordinator", "broker"])
async def test_a_killed_coordinator_or_broker_is_replaced_and_accepted_work_gets_done(
    tmp_path: Path, name: str
) -> None:
    async with Swarm(team(), launcher=ProcessesLauncher(1), run_dir=tmp_path) as swarm:
        waiting = asyncio.create_task(swarm.submit("hang_once", {"text": "still here"}))
        await until((tmp_path / "hung").exists)
        started = {event.name: event for event in swarm.process_events() if type(event).__name__ == "Started"}
        os.kill(started[name].process_id, signal.SIGKILL)  # type: ignore[union-attr]
        await until(lambda: any(isinstance(event, Restarted) for event in swarm.process_events()))
        async with asyncio.timeout(30):
            ended = await swarm.submit("echo", {"text": "afterwards"})
            assert ended.results["second"]["text"] == "AFTERWARDS"
            if name == "coordinator":
                assert (await waiting).status == "done"
        waiting.cancel()


async def test_a_coordinators_run_in_its_own_process_finishes_the_swarm(tmp_path: Path) -> None:
    async with Swarm(team(), coordinator=RoundsAgent(), launcher=ProcessesLauncher(1), run_dir=tmp_path) as swarm:
        async with asyncio.timeout(20):
            await swarm.wait_finished()
    assert (tmp_path / "rounds.txt").read_text() == "ROUND 0\nROUND 1\nROUND 2"


async def test_a_config_error_in_a_child_arrives_as_the_same_error(tmp_path: Path) -> None:
    coordinator = RoundsAgent(options={"complaint": "budget_steps is 0; expected at least 8"})
    with pytest.raises(ConfigError, match=r"^budget_steps is 0; expected at least 8$"):
        async with Swarm(team(), coordinator=coordinator, launcher=ProcessesLauncher(1), run_dir=tmp_path) as swarm:
            await swarm.wait_finished()
    log = (tmp_path / "logs" / "coordinator.log").read_text()
    assert "swarm.node coordinator: ConfigError: budget_steps is 0; expected at least 8" in log
    assert "Traceback" not in log


async def test_work_that_fails_in_a_child_raises_here_with_its_reason(tmp_path: Path) -> None:
    async with Swarm(team(), launcher=ProcessesLauncher(1), run_dir=tmp_path) as swarm:
        with pytest.raises(TaskFailed, match="ValueError: this work always fails"):
            await swarm.submit("fail")


async def test_an_agent_that_no_child_can_import_is_refused_before_anything_starts(tmp_path: Path) -> None:
    class Local(EchoAgent):
        pass

    with pytest.raises(ConfigError, match="defined inside a function"):
        async with Swarm([Local("local")], launcher=ProcessesLauncher(1), run_dir=tmp_path):
            pass
    assert not (tmp_path / "logs").exists()


async def test_options_that_are_not_json_are_refused(tmp_path: Path) -> None:
    agent = EchoAgent("echo", {"value": object()})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="cannot travel"):
        async with Swarm([agent], launcher=ProcessesLauncher(1), run_dir=tmp_path):
            pass


KILLED_LAUNCHER = """
import asyncio, sys, psutil
from pathlib import Path
from swarm import ProcessesLauncher, Swarm
from tests.integration.echo_agents import EchoAgent

async def main():
    async with Swarm([EchoAgent()], launcher=ProcessesLauncher(1), run_dir=Path(sys.argv[1])) as swarm:
        children = " ".join(str(child.pid) for child in psutil.Process().children())
        Path(sys.argv[2]).write_text(children + " .")
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_launcher_leaves_no_orphan_and_its_sockets_are_swept(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = tmp_path_factory.mktemp("s")
    pids = tmp_path / "pids"
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        KILLED_LAUNCHER,
        str(tmp_path / "run"),
        str(pids),
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(short)},
    )
    try:
        await until(lambda: pids.exists() and pids.read_text().endswith("."))
        children = [int(word) for word in pids.read_text().split()[:-1]]
        assert len(children) == 3
    finally:
        launcher.kill()
    await until(lambda: all(gone(child) for child in children), timeout_s=3.0)
    await launcher.wait()
    left = list(short.glob("swarm-*"))
    assert len(left) == 1
    assert sweep(short) == left
    assert list(short.glob("swarm-*")) == []


def test_a_sweep_leaves_the_sockets_of_a_living_swarm_alone(tmp_path: Path) -> None:
    with socket_directory(tmp_path) as path:
        assert path.stat().st_mode & 0o777 == 0o700
        assert sweep(tmp_path) == []
        assert path.exists()
    assert not path.exists()


def test_a_socket_directory_whose_paths_would_be_too_long_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ConfigError, match="TMPDIR"), socket_directory(deep):
        pass
    assert list(deep.glob("*")) == []


HERE = "tests.integration.echo_agents"


@pytest.mark.parametrize(
    ("factory", "allow_import", "said"),
    [
        ("enviroment", False, "did you mean 'environment'"),
        (f"{HERE}:EchoAgent", False, "not an entry point"),
        ("no.such.module:Agent", True, "cannot be imported"),
        (f"{HERE}:NoSuchAgent", True, "cannot be imported"),
        (f"{HERE}:Outsider", True, "expected a subclass"),
    ],
)
def test_an_agent_factory_that_does_not_work_is_one_clear_line(factory: str, allow_import: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build_agent(factory, None, {}, allow_import=allow_import)
    assert "\n" not in str(caught.value)


def test_an_importable_agent_is_found_by_its_path() -> None:
    assert agent_class(f"{HERE}:EchoAgent", allow_import=True) is EchoAgent


def test_a_node_with_a_broken_specification_exits_with_code_2_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    for text in ("{", "[]", '{"name": "n", "agentz": []}', '{"name": 3}'):
        path.write_text(text)
        ended = subprocess.run(
            [sys.executable, "-m", "swarm.node", "--spec", str(path)], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 2
        assert ended.stderr.startswith("swarm.node: node specification")
        assert ended.stderr.count("\n") == 1


def test_a_node_specification_survives_its_json_form(tmp_path: Path) -> None:
    spec = NodeSpec.from_json(
        {
            "name": "n",
            "publish_endpoint": "ipc:///a",
            "subscribe_endpoint": "ipc:///b",
            "run_dir": str(tmp_path),
            "incarnation": 3,
            "agents": [{"name": "state", "factory": "state", "options": {"a": [1]}, "state": {}}],
            "services": {"bridge": {"endpoint": "ipc:///c"}},
            "faults": {"replace": ["gradients"], "stop": []},
        }
    )
    assert NodeSpec.from_json(spec.to_json()) == spec


def test_a_node_imports_neither_torch_nor_mujoco() -> None:
    code = (
        "import sys, swarm.node, swarm.swarm;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'mujoco', 'gymnasium')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
