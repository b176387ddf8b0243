"""What tests of workers share."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from env_bridge import BridgeVectorEnv

ROBOT = "HalfCheetah-v4"
OWN_CLASS = "Pusher-v5"
"""Steps through Gymnasium's class, in workers that each have their own rows."""
NUM_ENVS = 4


def make(env_id: str, num_envs: int = NUM_ENVS, **options: Any) -> BridgeVectorEnv:
    return BridgeVectorEnv(env_id, num_envs, **{"workers": 2, **options})


def random_actions(env: BridgeVectorEnv, steps: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-0.4, 0.4, (steps, *env.action_space.shape)).astype(np.float32)


def kill(env: BridgeVectorEnv, index: int, sign: signal.Signals = signal.SIGKILL) -> None:
    """Return when the signal has done its work."""
    process = psutil.Process(env.worker_pids[index])
    process.send_signal(sign)
    if sign == signal.SIGKILL:
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)


def wait_for_both(env: BridgeVectorEnv, plain: BridgeVectorEnv, actions: Iterator[NDArray[np.float32]]) -> None:
    """Step both until all workers of the first have joined."""
    deadline, all_asked = time.monotonic() + 60.0, False
    while not all_asked:
        assert time.monotonic() < deadline, "a replacement does not join"
        action = next(actions)
        env.step_async(action)
        all_asked = len(env.waits_for()) == len(env.worker_pids)
        env.step_wait()
        plain.step(action)
