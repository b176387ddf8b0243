"""`AsyncBridgeVectorEnv`: the steps of `BridgeVectorEnv`, while the event loop goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

import gymnasium
import numpy as np
import pytest

from env_bridge import AsyncBridgeVectorEnv, BridgeVectorEnv
from swarm.errors import ActionError, ConfigError
from tests.env_bridge import fragile


async def test_steps_of_a_coroutine_are_those_of_plain_code() -> None:
    plain = BridgeVectorEnv("Hopper-v5", 8, workers=0)
    expected, _ = plain.reset(seed=4)
    generator = np.random.default_rng(0)
    async with await AsyncBridgeVectorEnv.open("Hopper-v5", 8, workers=2) as env:
        observation, _ = await env.reset(seed=4)
        np.testing.assert_array_equal(observation, expected)
        for _ in range(40):
            action = generator.uniform(-1, 1, (8, 3)).astype(np.float32)
            for got, wanted in zip((await env.step(action))[:4], plain.step(action)[:4], strict=True):
                np.testing.assert_array_equal(got, wanted)
        with pytest.raises(ActionError, match="action 2 of environment 7"):
            await env.step(np.where(np.arange(24).reshape(8, 3) == 23, np.nan, 0.0))
    plain.close()


async def test_what_is_known_of_plain_environments_is_known_of_a_coroutines_too() -> None:
    plain = BridgeVectorEnv("Ant-v5", 3, workers=0)
    async with await AsyncBridgeVectorEnv.open("Ant-v5", 3) as env:
        assert env.num_envs == 3
        for name in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            assert getattr(env, name) == getattr(plain, name)
        await env.reset(seed=0)
        os.kill(env.vector.worker_pids[0], signal.SIGKILL)
        await env.step(np.zeros((3, 8), np.float32))
        assert (env.num_replaced, env.num_diverged) == (1, 0)
        state = await env.get_state()
        state["physics"][0, 20] = 1e12
        await env.set_state(state)
        for _ in range(3):
            await env.step(np.zeros((3, 8), np.float32))
        assert env.num_diverged == env.vector.num_diverged >= 1
    plain.close()


async def test_two_environments_step_at_the_same_time_and_the_loop_goes_on() -> None:
    async with (
        await AsyncBridgeVectorEnv.open("Humanoid-v4", 8) as first,
        await AsyncBridgeVectorEnv.open("Humanoid-v4", 8) as second,
    ):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await asyncio.gather(first.reset(seed=0), second.reset(seed=0))
        before = turns
        action = np.zeros((8, 17), np.float32)
        one, other = await asyncio.gather(first.step(action), second.step(action))
        counting.cancel()
        assert turns > before + 1
        np.testing.assert_array_equal(one[0], other[0])


async def test_cancelled_step_is_finished_before_the_next_one() -> None:
    async with await AsyncBridgeVectorEnv.open("HalfCheetah-v4", 4) as env:
        await env.reset(seed=0)
        action = np.ones((4, 6), np.float32)
        stepping = asyncio.create_task(env.step(action))
        await asyncio.sleep(0)
        stepping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stepping
        after_two = (await env.step(action))[0]
    plain = BridgeVectorEnv("HalfCheetah-v4", 4)
    plain.reset(seed=0)
    plain.step(action)
    np.testing.assert_array_equal(after_two, plain.step(action)[0])
    plain.close()


async def test_cancelled_reset_is_over_before_the_next_call_begins() -> None:
    async with await AsyncBridgeVectorEnv.open("HalfCheetah-v4", 4, workers=2) as env:
        expected, _ = await env.reset(seed=0)
        for _ in range(5):
            resetting = asyncio.create_task(env.reset(seed=7))
            await asyncio.sleep(0)
            resetting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await resetting
            observation, _ = await env.reset(seed=0)
            np.testing.assert_array_equal(observation, expected)
        assert env.vector.num_replaced == 0


async def test_killed_worker_is_replaced_under_a_coroutine_too() -> None:
    async with await AsyncBridgeVectorEnv.open("HalfCheetah-v4", 2) as env:
        await env.reset(seed=0)
        (pid,) = env.vector.worker_pids
        os.kill(pid, signal.SIGKILL)
        for _ in range(2):
            *_, truncated, infos = await env.step(np.zeros((2, 6), np.float32))
            assert not truncated.any()
            assert "lost" not in infos
        assert env.vector.num_replaced == 1
        assert env.vector.worker_pids != (pid,)


async def test_a_coroutine_needs_a_worker() -> None:
    with pytest.raises(ConfigError, match="workers=0"):
        await AsyncBridgeVectorEnv.open("HalfCheetah-v4", 2, workers=0)


class Watch:
    """How long the event loop stood still at most, while this is open."""

    async def __aenter__(self) -> Watch:
        self.stood_still_s = 0.0
        self._watching = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            self.stood_still_s = max(self.stood_still_s, time.monotonic() - before)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)
        self._watching.cancel()


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", fragile.ENV_ID])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sign", [signal.SIGSTOP, signal.SIGKILL])
async def test_the_loop_goes_on_while_a_lost_worker_is_replaced(
    env_id: str, workers: int, sign: signal.Signals
) -> None:
    async with await AsyncBridgeVectorEnv.open(env_id, 4, workers=workers, patience_s=1.0) as env:
        await env.reset(seed=0)
        action = np.zeros(env.vector.action_space.shape, np.float32)
        await env.step(action)
        for pid in env.vector.worker_pids:
            os.kill(pid, sign)
        async with Watch() as watch:
            await env.step(action)
        assert env.vector.num_replaced == workers
        assert watch.stood_still_s < 0.5, "shorter than a worker's patience, and its start"


async def test_the_loop_goes_on_while_the_environments_of_a_lost_worker_are_stepped_here() -> None:
    num_envs = 2048
    async with await AsyncBridgeVectorEnv.open("Humanoid-v4", num_envs, workers=1) as env:
        await env.reset(seed=0)
        action = np.zeros((num_envs, 17), np.float32)
        await env.step(action)
        os.kill(env.vector.worker_pids[0], signal.SIGKILL)
        begun = time.monotonic()
        async with Watch() as watch:
            await env.step(action)
        assert watch.stood_still_s < 0.5 * (time.monotonic() - begun)


async def test_a_call_that_is_cancelled_again_and_again_is_over_before_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with await AsyncBridgeVectorEnv.open("HalfCheetah-v4", 2) as env:
        is_free, reset = threading.Event(), env.vector.reset

        def slow_reset(**given: Any) -> Any:
            assert is_free.wait(30.0)
            return reset(**given)

        monkeypatch.setattr(env.vector, "reset", slow_reset)
        resetting = asyncio.create_task(env.reset(seed=0))
        for _ in range(3):
            await asyncio.sleep(0)
            resetting.cancel()
        await asyncio.sleep(0)
        assert not resetting.done()
        is_free.set()
        with pytest.raises(asyncio.CancelledError):
            await resetting


async def test_a_closed_environment_says_so_even_with_a_step_under_way() -> None:
    env = await AsyncBridgeVectorEnv.open(fragile.ENV_ID, 2)
    await env.reset(seed=0)
    action = np.zeros((2, 1), np.float32)
    env.vector.step_async(action)
    await env.aclose()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        await env.step(action)
