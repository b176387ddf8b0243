"""What starts without being able to draw, because it never does; and what says why it cannot start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from env_bridge import BridgeClient, BridgeVectorEnv


async def test_a_bridge_starts_where_what_should_draw_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    endpoint = f"ipc://{tmp_path}/bridge"
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "env_bridge.server", "--endpoint", endpoint)
    async with BridgeClient(endpoint, patience_s=30.0) as client:
        assert (await client.describe("HalfCheetah-v4")).action_size == 6
    server.terminate()
    await server.wait()


def test_workers_of_robots_start_where_what_should_draw_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    env = BridgeVectorEnv("HalfCheetah-v4", 4, workers=2)
    env.reset(seed=0)
    assert env.num_replaced == 0
    env.close()


def test_a_library_that_mujoco_does_not_find_is_named_by_the_import_that_fails(tmp_path: Path) -> None:
    (tmp_path / "mujoco.py").write_text("raise AttributeError(\"'NoneType' object has no attribute 'glGetError'\")\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "MUJOCO_GL": "osmesa"}
    program = "from env_bridge import BridgeVectorEnv"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: cannot import 'BridgeVectorEnv' from 'env_bridge': 'NoneType' object has no")
    assert "MUJOCO_GL=osmesa: install its library, or unset it" in last


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    import env_bridge

    with pytest.raises(AttributeError, match="has no attribute 'Bridge'"):
        env_bridge.Bridge  # noqa: B018
