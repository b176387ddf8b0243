"""Players of `bridge` that talk to a bridge process: a collect task, and a coroutine that steps a few environments.

Started and asked as those of `bridge_players`: ``python bridge_clients.py KIND ENV_ID NUM_ENVS FOLDER WORKERS``.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gymnasium
import mujoco
import numpy as np
from bridge_players import SEED, STEPS, open_mouth, quieten, script_actions, write_script
from numpy.typing import NDArray

from env_bridge.async_env import AsyncBridgeVectorEnv
from env_bridge.client import BridgeClient, connect
from swarm.environment import EnvironmentSpec, RolloutRequest, RolloutResult, TaskParameters

RUN: Final = 25
"""Steps that each way of stepping makes in its turn: one after the other, as users do."""
COLLECT_STEPS: Final = {"HalfCheetah-v4": 200, "Ant-v4": 100, "Humanoid-v4": 100}


@asynccontextmanager
async def bridge(folder: Path, name: str, workers: int) -> AsyncIterator[BridgeClient]:
    """Start a bridge process with ``workers`` stepping workers and give its client."""
    endpoint = f"ipc://{folder}/{name}"
    command = (sys.executable, "-m", "env_bridge.server", "--endpoint", endpoint, "--workers", str(workers))
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, start_new_session=True)
    client = await connect({"endpoint": endpoint, "patience_s": 60})
    try:
        yield client
    finally:
        await client.aclose()
        if process.returncode is None:
            process.terminate()
        await process.wait()


def member_weights(spec: EnvironmentSpec) -> dict[str, NDArray[np.generic]]:
    """Return the acting weights of a new-born member of 53 K parameters."""
    from agents.config import WorldConfig
    from agents.learning.normalizer import empty_normalizer
    from agents.learning.world_state import encoder_parameters, init_world
    from agents.member import acting_weights, default_member_config, init_member

    sizes = (spec.observation_size, spec.action_size)
    config = default_member_config(*sizes)
    encoder = encoder_parameters(init_world(WorldConfig(), config, *sizes, seed=0))
    return {**acting_weights(init_member(config, *sizes, 0), encoder, empty_normalizer(spec.observation_size).scales())}


def collect_request(spec: EnvironmentSpec, num_envs: int) -> RolloutRequest:
    """Return a collect task that explores."""
    return RolloutRequest(
        env_id=spec.env_id,
        tasks=(TaskParameters(),) * num_envs,
        seed=SEED,
        num_steps=COLLECT_STEPS[spec.env_id],
        policy="member",
        weights=member_weights(spec),
        noise_seed=SEED,
    )


def record_rollout(spec: EnvironmentSpec, result: RolloutResult, path: Path) -> None:
    """Write the script of a rollout: the actions that its environments got, and the states that they were reset to."""
    columns = result.columns
    resets = np.asarray(columns["reset"], np.bool_).copy()
    resets[0] = False  # the script starts there
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    actions = (low + (columns["action"].astype(np.float64) + 1.0) * 0.5 * (high - low)).astype(np.float32)
    single: Any = gymnasium.make(spec.env_id).unwrapped
    states = np.zeros((len(actions) + 1, actions.shape[1], single.model.nq + single.model.nv))
    for e in range(actions.shape[1]):
        single.np_random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((SEED, e))))
        for row in (0, *(np.flatnonzero(resets[:, e]) + 1)):
            mujoco.mj_resetData(single.model, single.data)
            single.reset_model()
            states[row, e] = np.concatenate((single.data.qpos, single.data.qvel))
    check = np.asarray(columns["qpos"], np.float64)[-1]
    last = np.asarray(columns["next_observation"], np.float32)[-1]
    write_script(path, actions, resets, states, check, is_step=True, observation=last)


async def collect(env_id: str, num_envs: int, folder: Path, workers: int, say: Callable[[object], None]) -> None:
    """Send the same collect task again and again; whole tasks only."""
    async with bridge(folder, "collect", workers) as client:
        spec = await client.describe(env_id)
        request = collect_request(spec, num_envs)
        record_rollout(spec, await client.rollout(replace(request, record_qpos=True)), folder / "collect.npz")
        await client.rollout(request)
        say("ready")
        async for seconds in lines():
            steps, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                steps += (await client.rollout(request)).num_steps
            say((steps, time.perf_counter() - start))


async def latency(env_id: str, num_envs: int, folder: Path, workers: int, say: Callable[[object], None]) -> None:
    """Step from a coroutine in two ways and, in turns, the physics alone in a loop of one core; answer the medians."""
    single: Any = gymnasium.make(env_id).unwrapped
    datas = [mujoco.MjData(single.model) for _ in range(num_envs)]
    actions = script_actions(env_id, num_envs)

    async def physics(action: NDArray[np.float32]) -> None:
        for data, row in zip(datas, action, strict=True):
            data.ctrl[:] = row
            mujoco.mj_step(single.model, data, nstep=single.frame_skip)

    async with (
        bridge(folder, "latency", workers) as client,
        await AsyncBridgeVectorEnv.open(env_id, num_envs, workers=1) as own,
    ):
        env = await client.make(env_id, num_envs)
        await env.reset(seed=SEED)
        await own.reset(seed=SEED)
        say("ready")
        async for seconds in lines():
            taken: dict[str, list[float]] = {"step": [], "bridge": [], "physics": []}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                first = len(taken["step"]) % (STEPS[env_id] - RUN + 1)
                for name, step in (("step", own.step), ("bridge", env.step), ("physics", physics)):
                    for action in actions[first : first + RUN]:
                        start = time.perf_counter()
                        await step(action)
                        taken[name].append(time.perf_counter() - start)
            say({name: statistics.median(values) for name, values in taken.items()})
        await env.close()


async def lines() -> AsyncIterator[float]:
    """Give the seconds of each line of standard input, which is read beside the loop."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield float(line.split()[0])


def main(kind: str, env_id: str, size: str, folder: str, workers: str) -> None:
    """Play."""
    say = open_mouth()
    quieten()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    play = {"collect": collect, "latency": latency}[kind]
    asyncio.run(play(env_id, int(size), Path(folder), int(workers), say))


if __name__ == "__main__":
    main(*sys.argv[1:])
