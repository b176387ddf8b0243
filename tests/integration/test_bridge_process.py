"""The bridge as a process: answers, faults, kill -9 and restart, rubbish on its socket."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gymnasium
import msgpack
import numpy as np
import psutil
import pytest
import uvloop
import zmq

from env_bridge.client import BridgeClient, connect
from env_bridge.rollout import run_rollout
from env_bridge.wire import MAGIC
from swarm.environment import RolloutRequest, RolloutResult, TaskParameters
from swarm.errors import ActionError, ConfigError, PeerLost

EIGHT = (TaskParameters(),) * 8
SHORT = RolloutRequest(
    env_id="HalfCheetah-v4", tasks=EIGHT, seed=1, num_steps=20, policy="random", noise_seed=2, record_qpos=True
)
LONG = RolloutRequest(env_id="HalfCheetah-v4", tasks=EIGHT, seed=1, num_steps=1500, policy="random", noise_seed=2)


class Bridge:
    """A bridge process that the test can kill and start again."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/bridge"
        self._folder = folder
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = (sys.executable, "-m", "env_bridge.server", "--endpoint", self.endpoint, *arguments)
        self.process = await asyncio.create_subprocess_exec(
            *command, env=environment, cwd=self._folder, stderr=asyncio.subprocess.PIPE
        )
        return self.process

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def end(self) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def running(folder: Path, *arguments: str) -> AsyncIterator[tuple[Bridge, BridgeClient]]:
    bridge = Bridge(folder)
    await bridge.start(*arguments)
    client = await connect({"endpoint": bridge.endpoint, "patience_s": 60})
    try:
        yield bridge, client
    finally:
        await client.aclose()
        await bridge.end()


def assert_same(left: RolloutResult, right: RolloutResult) -> None:
    for ours, theirs in ((left.columns, right.columns), (left.snapshot, right.snapshot)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert left.episodes == right.episodes
    assert left.num_steps == right.num_steps


async def test_rollout_through_the_process_equals_the_one_in_process_and_continues(tmp_path: Path) -> None:
    async with running(tmp_path, "--workers", "2") as (_, client):
        spec = await client.describe("HalfCheetah-v4")
        assert (spec.observation_size, spec.action_size, spec.max_episode_steps) == (17, 6, 1000)
        assert spec.timestep_s == pytest.approx(0.05)
        remote = await client.rollout(SHORT)
        local = run_rollout(SHORT)
        assert_same(remote, local)
        # A snapshot that came from another process continues to the same bits.
        further = RolloutRequest(
            env_id="HalfCheetah-v4", tasks=EIGHT, seed=0, num_steps=10, policy="random", snapshot=remote.snapshot
        )
        assert_same(await client.rollout(further), run_rollout(further))


async def test_user_errors_come_back_as_their_text_and_the_bridge_lives_on(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        with pytest.raises(ConfigError, match="did you mean 'HalfCheetah-v4'"):
            await client.describe("HalfCheeta-v4")
        broken = RolloutRequest(env_id="Ant-v4", tasks=EIGHT, seed=1, num_steps=5, policy="nobody")
        with pytest.raises(ConfigError, match="unknown policy 'nobody'"):
            await client.rollout(broken)
        with pytest.raises(ConfigError, match="unknown request 'dance'"):
            await client.call("dance", {})
        assert (await client.describe("Ant-v4")).action_size == 8


async def test_several_clients_are_answered_each_with_its_own(tmp_path: Path) -> None:
    async with running(tmp_path) as (bridge, first), await connect({"endpoint": bridge.endpoint}) as second:
        names = ("HalfCheetah-v4", "Ant-v4", "HalfCheetah-v4", "Humanoid-v4")
        asked = [client.describe(name) for name in names for client in (first, second)]
        got = [spec.env_id for spec in await asyncio.gather(*asked)]
        assert got == [name for name in names for _ in range(2)]


async def test_killed_bridge_that_restarts_during_a_rollout_still_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as (bridge, client):
        await client.describe("HalfCheetah-v4")
        asked = asyncio.create_task(client.rollout(LONG))
        while (await client.statistics())["waiting"] == 0:
            pass
        await bridge.kill()
        assert not asked.done(), "the bridge was killed too late for this test to mean anything"
        await bridge.start()
        result = await asked
        statistics = await client.statistics()
        assert statistics["performed"] == 1
        assert_same(result, run_rollout(LONG))


async def test_long_rollout_outlives_patience_while_the_bridge_shows_life(tmp_path: Path) -> None:
    async with running(tmp_path) as (bridge, calm):
        await calm.describe("HalfCheetah-v4")
        async with await connect({"endpoint": bridge.endpoint, "patience_s": 2}) as client:
            many = RolloutRequest(env_id="Humanoid-v4", tasks=EIGHT, seed=1, num_steps=2500, policy="random")
            assert (await client.rollout(many)).num_steps == 20_000
            await client.describe("HalfCheetah-v4")
            assert (await client.statistics())["performed"] == 3, "asking again must not repeat the work"


async def test_absent_bridge_is_peer_lost_after_patience(tmp_path: Path) -> None:
    async with await connect({"endpoint": f"ipc://{tmp_path}/nobody", "patience_s": 0.3}) as client:
        with pytest.raises(PeerLost, match=r"no bridge answered .* for 0\.3 s"):
            await client.describe("Ant-v4")


async def test_request_given_up_is_not_performed(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        await client.describe("HalfCheetah-v4")
        asked = asyncio.create_task(client.rollout(LONG))
        while (await client.statistics())["waiting"] == 0:
            pass
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        while (await client.statistics())["waiting"] != 0:
            pass
        assert (await client.rollout(SHORT)).num_steps == 160


async def test_session_equals_gymnasium_and_returns_to_a_saved_state(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        env = await client.make("Ant-v5", 3)
        theirs = gymnasium.make_vec("Ant-v5", 3, vectorization_mode="sync")
        np.testing.assert_array_equal((await env.reset(seed=7))[0], theirs.reset(seed=7)[0])
        generator = np.random.default_rng(0)
        for _ in range(60):
            action = generator.uniform(-1, 1, size=(3, 8)).astype(np.float32)
            step = await env.step(action)
            observation, reward, terminated, truncated, _ = theirs.step(action)
            np.testing.assert_array_equal(step.observation, observation)
            np.testing.assert_array_equal(step.reward, reward)
            np.testing.assert_array_equal(step.terminated, terminated)
            np.testing.assert_array_equal(step.truncated, truncated)
        theirs.close()
        saved = await env.get_state()
        first = await env.step(action)
        await env.set_state(saved)
        second = await env.step(action)
        np.testing.assert_array_equal(first.observation, second.observation)
        with pytest.raises(ActionError, match="action 1 of environment 2 is nan"):
            await env.step(np.where(np.arange(24).reshape(3, 8) == 17, np.nan, 0.0))
        await env.close()
        with pytest.raises(PeerLost, match="does not know this session"):
            await env.step(action)


async def test_session_of_a_killed_bridge_is_lost_with_a_clear_error(tmp_path: Path) -> None:
    async with running(tmp_path) as (bridge, client):
        env = await client.make("HalfCheetah-v4", 2)
        await env.reset(seed=0)
        await bridge.kill()
        await bridge.start()
        with pytest.raises(PeerLost, match="restarted"):
            await env.step(np.zeros((2, 6), dtype=np.float32))


def header(**changes: object) -> bytes:
    base: dict[str, object] = {"kind": "describe", "id": 1, "body": {"env_id": "Ant-v4"}, "arrays": []}
    return bytes(msgpack.packb(base | changes))


RUBBISH = {
    "no frames": [b""],
    "other magic": [b"bridge1", header()],
    "not msgpack": [MAGIC, b"\xc1"],
    "claimed array of 4 billion": [MAGIC, b"\xdd\xff\xff\xff\xff"],
    "deep nesting": [MAGIC, b"\x91" * 100_000],
    "list header": [MAGIC, msgpack.packb([1, 2])],
    "number keys": [MAGIC, msgpack.packb({1: 2})],
    "trailing bytes": [MAGIC, header() + b"\x00"],
    "boolean id": [MAGIC, header(id=True)],
    "missing frame": [MAGIC, header(arrays=[["a", "float32", [2]]])],
    "extra frame": [MAGIC, header(), b"1234"],
    "object dtype": [MAGIC, header(arrays=[["a", "O", [1]]]), b"12345678"],
    "big-endian dtype": [MAGIC, header(arrays=[["a", ">f4", [1]]]), b"1234"],
    "negative shape": [MAGIC, header(arrays=[["a", "float32", [-1]]]), b"1234"],
    "huge shape": [MAGIC, header(arrays=[["a", "float32", [1 << 62, 4]]]), b"1234"],
    "64 dimensions": [MAGIC, header(arrays=[["a", "float32", [1] * 64]]), b"1234"],
    "one byte short": [MAGIC, header(arrays=[["a", "float32", [1]]]), b"123"],
    "bool of 2": [MAGIC, header(arrays=[["a", "bool", [1]]]), b"\x02"],
    "array twice": [MAGIC, header(arrays=[["a", "bool", [1]], ["a", "bool", [1]]]), b"\x01", b"\x01"],
}


async def test_rubbish_is_counted_and_ignored(tmp_path: Path) -> None:
    async with running(tmp_path) as (bridge, client):
        await client.describe("Ant-v4")
        with zmq.Context() as context, context.socket(zmq.DEALER) as foreign:
            foreign.connect(bridge.endpoint)
            for frames in RUBBISH.values():
                await asyncio.to_thread(foreign.send_multipart, frames)
            counts: dict[str, int] = {}
            while sum(counts.values()) < len(RUBBISH):
                counts = dict((await client.statistics())["rejected"])  # type: ignore[arg-type]
        assert sum(counts.values()) == len(RUBBISH)
        assert {"bad-magic", "bad-msgpack", "bad-shape", "bad-dtype", "bad-length", "bad-frames"} <= counts.keys()
        assert (await client.describe("Ant-v4")).action_size == 8


async def test_sigterm_during_a_rollout_ends_cleanly_and_removes_the_socket(tmp_path: Path) -> None:
    async with running(tmp_path) as (bridge, client):
        await client.describe("HalfCheetah-v4")
        asked = asyncio.create_task(client.rollout(LONG))
        while (await client.statistics())["waiting"] == 0:
            pass
        async with asyncio.timeout(5):
            assert await bridge.end() == 0
        assert not (tmp_path / "bridge").exists()
        asked.cancel()


async def test_bridge_leaves_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'env_bridge.server', '--endpoint',"
        "sys.argv[1]]); print(child.pid, flush=True); child.wait()"
    )
    endpoint = f"ipc://{tmp_path}/bridge"
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, endpoint, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    bridge = psutil.Process(int(await parent.stdout.readline()))
    async with await connect({"endpoint": endpoint}) as client:
        await client.describe("HalfCheetah-v4")
    parent.kill()
    await parent.communicate()  # ends when the bridge, which inherited the pipe, has closed it too
    await asyncio.to_thread(psutil.wait_procs, [bridge], 3)
    assert not bridge.is_running() or bridge.status() == psutil.STATUS_ZOMBIE
    assert not (tmp_path / "bridge").exists()


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tcp://0.0.0.0:5555", "expected ipc:///absolute/path or tcp://127.0.0.1:port"),
        ("ipc:///nowhere-at-all/bridge", "the folder /nowhere-at-all does not exist"),
        ("ipc:///" + "x" * 200, "longer than 107 bytes"),
    ],
)
def test_bad_endpoint_is_one_line_and_exit_code_two(endpoint: str, message: str) -> None:
    command = [sys.executable, "-m", "env_bridge.server", "--endpoint", endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


async def test_wrong_client_options_are_refused(tmp_path: Path) -> None:
    for options in ({}, {"endpoint": 3}, {"endpoint": "ipc:///x", "patience_s": -1}, {"endpoint": "ipc:///x", "p": 1}):
        with pytest.raises(ConfigError):
            await connect(options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected ipc:///path or tcp"):
        await connect({"endpoint": "nonsense"})


def test_client_works_on_uvloop(tmp_path: Path) -> None:
    async def use() -> int:
        async with running(tmp_path) as (_, client):
            return (await client.rollout(SHORT)).num_steps

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(use()) == 160
