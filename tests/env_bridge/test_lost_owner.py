from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

BUSY = """
import gymnasium
import numpy as np


class Busy(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **given):
        super().reset(seed=given.get("seed"))
        return np.zeros(1), {}

    def step(self, action):
        while action == 1:
            pass
        return np.zeros(1), 0.0, False, False, {}


gymnasium.register("Busy-v0", entry_point=Busy)
"""
OWNER = """
from env_bridge import BridgeVectorEnv

env = BridgeVectorEnv("busy:Busy-v0", 2, workers=1)
env.reset(seed=0)
env.step_async([1, 1])
print(env.worker_pids[0], flush=True)
env.step_wait()
"""


def test_worker_that_is_busy_without_end_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}) as owner:
        assert owner.stdout is not None
        worker = psutil.Process(int(owner.stdout.readline()))
        assert worker.is_running()
        owner.kill()
    worker.wait(timeout=30)  # raises where it lives on
