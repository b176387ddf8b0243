from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from swarm.errors import BusClosed, ConfigError
from swarm.messages import Message, PeerDown
from swarm.supervisor import (
    Exited,
    GaveUp,
    ProcessEvent,
    ProcessSpec,
    RestartBudget,
    Restarted,
    RestartPolicy,
    Started,
    Supervisor,
)

FOREVER = "import sys; sys.stdin.read()"
DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(60)"
FAST = RestartPolicy(first_delay_s=0.01, max_delay_s=0.01)


class Watch:
    """Keeps events and lets a test wait for one."""

    def __init__(self) -> None:
        self.events: list[ProcessEvent] = []
        self.published: list[Message] = []
        self._changed = asyncio.Event()

    def note(self, event: ProcessEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def first(self, kind: type[ProcessEvent]) -> ProcessEvent:
        async with asyncio.timeout(20):
            while True:
                for event in self.events:
                    if isinstance(event, kind):
                        return event
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def supervisor(watch: Watch) -> AsyncIterator[Supervisor]:
    async with Supervisor(policy=FAST, publish=watch.published.append, on_event=watch.note) as opened:
        yield opened


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files and processes of others cannot set an event
            await asyncio.sleep(0.01)


def test_the_budget_allows_five_restarts_in_thirty_seconds_with_growing_delays() -> None:
    budget = RestartBudget(RestartPolicy())
    assert [budget.spend(second) for second in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.6, None]
    assert budget.spend(31.0) is not None


async def test_a_killed_process_is_mourned_and_restarted_with_a_new_incarnation(
    supervisor: Supervisor, watch: Watch
) -> None:
    prepared: list[int] = []
    await supervisor.start(
        ProcessSpec(name="n", argv=python(FOREVER), agents=("meta", "state"), prepare=prepared.append)
    )
    first = supervisor.process_id("n")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    again = await watch.first(Restarted)
    assert isinstance(again, Restarted)
    assert (again.incarnation, prepared) == (2, [1, 2])
    assert again.process_id != first
    downs = [message for message in watch.published if isinstance(message, PeerDown)]
    assert [(down.agent, down.restarting) for down in downs] == [("meta", True), ("state", True)]
    assert "SIGKILL" in downs[0].reason
    kinds = [type(event) for event in watch.events]
    assert kinds == [Started, Exited, Restarted]


async def test_a_process_that_always_fails_is_given_up_with_code_log_and_last_words(
    supervisor: Supervisor, watch: Watch, tmp_path: Path
) -> None:
    log_path = tmp_path / "logs" / "n.log"
    argv = python("import sys; sys.stderr.write('no such module\\n'); sys.exit(7)")
    await supervisor.start(ProcessSpec(name="n", argv=argv, agents=("meta",), log_path=log_path))
    gave_up = await watch.first(GaveUp)
    assert isinstance(gave_up, GaveUp)
    for part in ("exited with code 7", "restarted 5 times", "no such module", str(log_path)):
        assert part in gave_up.reason
    assert sum(isinstance(event, Restarted) for event in watch.events) == 5
    last = watch.published[-1]
    assert isinstance(last, PeerDown)
    assert not last.restarting


async def test_a_users_mistake_is_not_tried_again_and_its_status_is_the_reason(
    supervisor: Supervisor, watch: Watch, tmp_path: Path
) -> None:
    status = tmp_path / "status"
    argv = python("import sys; open(sys.argv[1], 'w').write('ConfigError: no such agent'); sys.exit(2)", str(status))
    await supervisor.start(ProcessSpec(name="n", argv=argv, status_path=status))
    gave_up = await watch.first(GaveUp)
    assert gave_up == GaveUp(name="n", reason="ConfigError: no such agent")
    assert not any(isinstance(event, Restarted) for event in watch.events)


async def test_children_run_with_one_blas_thread_and_their_own_session(supervisor: Supervisor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, sys; open(sys.argv[1], 'w').write(os.environ['OMP_NUM_THREADS'] + str(os.getsid(0) == os.getpid()))"
    )
    await supervisor.start(ProcessSpec(name="n", argv=python(code + "; sys.stdin.read()", str(out))))
    await until(lambda: out.exists() and out.read_text() != "")
    assert out.read_text() == "1True"


async def test_a_process_that_ignores_sigterm_is_killed_within_two_seconds(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    clock = asyncio.get_running_loop()
    async with Supervisor() as supervisor:
        await supervisor.start(ProcessSpec(name="n", argv=python(DEAF, str(deaf))))
        pid = supervisor.process_id("n")
        await until(deaf.exists)
        started_s = clock.time()
    assert clock.time() - started_s < 2.0
    assert not psutil.pid_exists(pid)


async def test_stopping_takes_grandchildren_along(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "import os; new = sys.argv[1] + '.new'; open(new, 'w').write(str(child.pid)); os.rename(new, sys.argv[1]);"
        "sys.stdin.read()"
    )
    async with Supervisor() as supervisor:
        await supervisor.start(ProcessSpec(name="n", argv=python(code, str(out))))
        await until(out.exists)
        grandchild = int(out.read_text())
        assert psutil.pid_exists(grandchild)
    await until(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


async def test_cancelling_the_stop_still_leaves_no_process(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    supervisor = Supervisor()
    await supervisor.start(ProcessSpec(name="n", argv=python(DEAF, str(deaf))))
    pid = supervisor.process_id("n")
    await until(deaf.exists)
    stopping = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await until(lambda: not psutil.pid_exists(pid))


async def test_a_program_that_does_not_exist_is_a_config_error(supervisor: Supervisor) -> None:
    with pytest.raises(ConfigError, match="cannot be started"):
        await supervisor.start(ProcessSpec(name="n", argv=("/no/such/program",)))


async def test_two_processes_cannot_share_a_name(supervisor: Supervisor) -> None:
    await supervisor.start(ProcessSpec(name="n", argv=python(FOREVER)))
    with pytest.raises(ConfigError, match="supervised already"):
        await supervisor.start(ProcessSpec(name="n", argv=python(FOREVER)))


async def test_a_death_that_cannot_be_published_is_supervised_all_the_same(watch: Watch) -> None:
    def closed(message: Message) -> None:
        raise BusClosed("the bus is not open")

    async with Supervisor(policy=FAST, publish=closed, on_event=watch.note) as supervisor:
        await supervisor.start(ProcessSpec(name="n", argv=python(FOREVER), agents=("meta",)))
        process_id = supervisor.process_id("n")
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        assert isinstance(await watch.first(Restarted), Restarted)
