"""`AsyncBridgeVectorEnv`: a `BridgeVectorEnv` for coroutines; its workers step while the event loop goes on.

Letters: E environments, O observation.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from env_bridge.gym_vector import BridgeVectorEnv
from env_bridge.worker_process import processors
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

ResultT = TypeVar("ResultT")
LOOK_S: Final = 0.001
"""Where a processor is free, the loop turns so long without falling asleep, since being woken takes long, too."""


class AsyncBridgeVectorEnv:
    """N environments in workers of their own. Belongs to the event loop in which it steps; one step at a time.

    Use `open`, which does not block the loop while workers start; then everything is as of `BridgeVectorEnv`.

    Attributes:
        vector: what steps. Its methods block the loop; no step may be under way while one is called.
    """

    def __init__(self, env: BridgeVectorEnv) -> None:
        self.vector = env
        self._lock = asyncio.Lock()
        self._look_s = LOOK_S if len(processors()) > len(env.worker_pids) else 0.0

    @classmethod
    async def open(
        cls,
        env_id: str,
        num_envs: int = 1,
        *,
        workers: int = 1,
        **options: Any,  # noqa: ANN401 - as BridgeVectorEnv's
    ) -> Self:
        """Start the workers; arguments as of `BridgeVectorEnv`. Raises ``ConfigError`` as it does."""
        if not isinstance(workers, Integral) or workers < 1:
            raise ConfigError(f"got workers={workers!r}; a coroutine needs at least one worker process to wait for")
        opening = asyncio.ensure_future(
            asyncio.to_thread(BridgeVectorEnv, env_id, num_envs, workers=workers, **options)
        )
        try:
            return cls(await asyncio.shield(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    @property
    def num_envs(self) -> int:
        """How many environments."""
        return self.vector.num_envs

    @property
    def single_observation_space(self) -> gymnasium.Space[Any]:
        """Of one environment."""
        return self.vector.single_observation_space

    @property
    def single_action_space(self) -> gymnasium.Space[Any]:
        """Of one environment."""
        return self.vector.single_action_space

    @property
    def observation_space(self) -> gymnasium.Space[Any]:
        """Of all environments, (E, …)."""
        return self.vector.observation_space

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """Of all environments, (E, …)."""
        return self.vector.action_space

    @property
    def num_replaced(self) -> int:
        """Workers that died or hung and were replaced."""
        return self.vector.num_replaced

    @property
    def num_diverged(self) -> int:
        """Simulations that broke down and were reset."""
        return self.vector.num_diverged

    async def __aenter__(self) -> Self:
        """Use as ``async with await AsyncBridgeVectorEnv.open(…) as env``."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the workers."""
        await self.aclose()

    async def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start new episodes; return observations (E, O) and infos. Raises as `BridgeVectorEnv.reset`."""
        async with self._lock:
            return await _to_the_end(self.vector.reset, seed=seed, options=options)

    async def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step all environments. Raises as `BridgeVectorEnv.step`.

        Cancelled, the workers finish the step, and the next call begins after it.
        """
        async with self._lock:
            if await self._answers() and self.vector.is_at_hand():  # the answers are of a step that was cancelled
                self.vector.step_async(actions)
            else:
                await _to_the_end(self.vector.step_async, actions)
            are_all_asked = len(self.vector.waits_for()) == len(self.vector.worker_pids)
            if are_all_asked and await self._answers():
                return self.vector.step_wait()
            return await _to_the_end(self.vector.step_wait)

    async def _answers(self) -> bool:
        """Wait until all workers have answered; false where one was lost, which others must not wait for."""
        give_up = asyncio.get_running_loop().time() + self.vector.patience_s
        answers = [await _readable(each, give_up, self._look_s) for each in self.vector.waits_for()]
        return all(answers)

    async def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Give each environment its task. Raises ``ConfigError`` where one does not fit."""
        async with self._lock:
            await _to_the_end(self.vector.set_tasks, tasks)

    async def get_state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the future depends on, as plain arrays with leading axis E."""
        async with self._lock:
            return await _to_the_end(self.vector.get_state)

    async def set_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Return to an earlier ``get_state``. Raises ``ConfigError`` where it does not fit."""
        async with self._lock:
            await _to_the_end(self.vector.set_state, state)

    async def aclose(self) -> None:
        """End the workers, after a step that is under way."""
        async with self._lock:
            await _to_the_end(self.vector.close)


async def _to_the_end(call: Callable[..., ResultT], *arguments: Any, **named: Any) -> ResultT:  # noqa: ANN401
    """Call in a thread, and wait for it even when cancelled: two threads must not talk to the same workers."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments, **named))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from running.exception()
    return running.result()


def _close_opened(opening: asyncio.Future[BridgeVectorEnv]) -> None:
    """Give up what was opened for a caller who has gone."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def _readable(descriptor: int, give_up: float, look_s: float) -> bool:
    """Wait until there is something to read; false after the loop's time ``give_up``, and where the stream has ended.

    Args:
        look_s: how long to go on turning the loop, which other coroutines share, instead of falling asleep.
    """
    if descriptor < 0:  # it is known to be lost
        return False
    loop = asyncio.get_running_loop()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    look_until = loop.time() + look_s
    while not (found := poll.poll(0)) and loop.time() < look_until:  # noqa: ASYNC110 - not to sleep is the point
        await asyncio.sleep(0)
    if not found:
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(descriptor, _release, ready)
        timer = loop.call_at(give_up, _release, ready)
        try:
            await ready
        finally:
            timer.cancel()
            loop.remove_reader(descriptor)
        found = poll.poll(0)
    return [events for _, events in found] == [select.POLLIN]


def _release(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
