"""One full update of a member (critics, actor, temperature, targets) beside Stable-Baselines3's and the matrix limit.

Sizes of HalfCheetah: 17 observed values and 32 encoder features in, 6 actions out, batch 128, one actor update a critic
update. Stable-Baselines3's critics have no LayerNorm, ours have; the layers are the same.

- ``vs_sb3``: their seconds / ours.
- ``of_flop_limit``: seconds of the update's matrix products alone, by ``torch.mm`` into buffers, / ours. More than 1
  means that ours, with everything, is faster than torch's products alone; ``of_own_limit`` compares with our products.
- ``two_cores``: updates a second of two processes that train five members in turn / of one such process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import interleave

from agents.config import SacConfig
from agents.learning.compiled import compiled_and_kept
from agents.learning.networks import NetworkSizes, init_networks
from agents.learning.replay import Replay
from agents.learning.sac import MemberState, Scalars, learn
from agents.learning.tiles import aligned, multiply, scratch_size

BATCH, INPUTS, ACTIONS = 128, 49, 6
SIZES = NetworkSizes(inputs=INPUTS, actions=ACTIONS, actor_hidden=(64, 64), critic_hidden=(112, 104))
CONFIG = SacConfig(batch_size=BATCH, target_entropy=-3.0)
ROWS, UPDATES, MEMBERS = 20_000, 25, 5
BUDGET_S, WORKER_S, TURNS = 12.0, 1.5, 7


def measure(threads: int) -> dict[str, Any]:
    """Return measurements in milliseconds an update, updates a second, and ratios."""
    torch.set_num_threads(threads)
    first_s = _first_call()
    candidates = {
        "ours": _ours(CONFIG),
        "ours_policy_delay_2": _ours(SacConfig(batch_size=BATCH, target_entropy=-3.0, policy_delay=2)),
        "products_torch": _torch_products(),
        "products_own": _own_products(),
    }
    peer = _stable_baselines()
    if peer is not None:
        candidates["sb3"] = peer
    seconds = interleave(candidates, budget_s=BUDGET_S)
    ms = {name: 1e3 * value / UPDATES for name, value in seconds.items()}
    one, two = _processes()
    return {
        "measurements": {
            **{f"{name}_ms": round(value, 4) for name, value in ms.items()},
            "mflop": round(sum(2 * m * k * n for m, k, n in _shapes()) / 1e6, 2),
            "updates_per_s_one_process": round(one),
            "updates_per_s_two_processes": round(two),
            "first_call_s": round(first_s, 2),
        },
        "ratios": {
            "vs_sb3": round(ms["sb3"] / ms["ours"], 3) if peer is not None else None,
            "of_flop_limit": round(ms["products_torch"] / ms["ours"], 3),
            "of_own_limit": round(ms["products_own"] / ms["ours"], 3),
            "two_cores": round(two / one, 3),
        },
    }


def member(seed: int) -> MemberState:
    """Return a new-born member."""
    theta = init_networks(SIZES, torch.Generator().manual_seed(seed))
    return MemberState(
        sizes=SIZES,
        theta=theta,
        m=torch.zeros_like(theta),
        v=torch.zeros_like(theta),
        targets=SIZES.split(theta)[0].clone(),
        scalars=Scalars(),
    )


def replay() -> Replay:
    """Return random rows."""
    packed = torch.randn(ROWS, 2 * (INPUTS + ACTIONS) + 2, generator=torch.Generator().manual_seed(0))
    packed[:, INPUTS : INPUTS + ACTIONS].tanh_()
    packed[:, -1] = 1
    return Replay(packed=packed, inputs=INPUTS, actions=ACTIONS)


def _first_call() -> float:
    """Seconds of the first update in this process: loads the compiled code, or compiles where there is none yet."""
    start = time.perf_counter()
    learn(member(0), None, replay(), np.arange(0), 1, np.random.default_rng(0), CONFIG)
    return time.perf_counter() - start


def _ours(config: SacConfig) -> Callable[[], object]:
    rows, state, own = replay(), member(0), np.arange(0, ROWS, 5)
    peers = torch.cat([member(seed).targets for seed in range(1, MEMBERS)])
    return lambda: learn(state, peers, rows, own, UPDATES, np.random.default_rng(0), config)


def _shapes() -> list[tuple[int, int, int]]:
    """Return (M, K, N) of all matrix products of an update, both critics' gradients at the actions included."""
    wide, (c1, c2), (a1, a2) = INPUTS + ACTIONS, SIZES.critic_hidden, SIZES.actor_hidden
    actor = [(BATCH, INPUTS, a1), (BATCH, a1, a2), (BATCH, a2, 2 * ACTIONS)]
    critic = [(BATCH, wide, c1), (BATCH, c1, c2), (BATCH, c2, 1)]
    critic_weights = [(c2, BATCH, 1), (c1, BATCH, c2), (wide, BATCH, c1), (BATCH, c2, c1)]
    at_actions = [(BATCH, c2, c1), (BATCH, c1, ACTIONS)]
    actor_weights = [(a2, BATCH, 2 * ACTIONS), (a1, BATCH, a2), (INPUTS, BATCH, a1)]
    actor_hidden = [(BATCH, 2 * ACTIONS, a2), (BATCH, a2, a1)]
    return 2 * actor + 6 * critic + 2 * critic_weights + 2 * at_actions + actor_weights + actor_hidden


def _torch_products() -> Callable[[], object]:
    operands = [(torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)) for m, k, n in _shapes()]

    def run() -> None:
        for _ in range(UPDATES):
            for a, b, out in operands:
                torch.mm(a, b, out=out)

    return run


@compiled_and_kept
def _multiply_often(
    times: int,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    bias: NDArray[np.float32],
    out: NDArray[np.float32],
    scratch: NDArray[np.float32],
) -> None:
    for _ in range(times):
        multiply(a, b, bias, out, scratch)


def _own_products() -> Callable[[], object]:
    single = np.dtype(np.float32)
    operands = [
        [aligned(shape, single) for shape in ((m, k), (k, n), (n,), (m, n), (scratch_size(m, k, n),))]
        for m, k, n in _shapes()
    ]

    def run() -> None:
        for arrays in operands:
            _multiply_often(UPDATES, *arrays)

    return run


def _stable_baselines() -> Callable[[], object] | None:
    try:
        import gymnasium
        from stable_baselines3 import SAC
        from stable_baselines3.common.logger import Logger
    except ImportError:
        sys.stderr.write(
            "stable-baselines3 is not installed, so nothing is compared with it: pip install -e '.[bench]'\n"
        )
        return None

    class Spaces(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
        """Spaces without dynamics: only what an agent is built from."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (INPUTS,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    layers = {"pi": list(SIZES.actor_hidden), "qf": list(SIZES.critic_hidden)}
    agent = SAC(
        "MlpPolicy",
        Spaces(),
        batch_size=BATCH,
        buffer_size=ROWS,
        policy_kwargs={"net_arch": layers, "n_critics": 2},
        device="cpu",
        seed=0,
    )
    agent.set_logger(Logger(None, []))
    rows, buffer = replay().packed.numpy(), agent.replay_buffer
    assert buffer is not None
    wide = INPUTS + ACTIONS
    buffer.observations[:, 0], buffer.actions[:, 0] = rows[:, :INPUTS], rows[:, INPUTS:wide]
    buffer.next_observations[:, 0], buffer.rewards[:, 0] = rows[:, wide : wide + INPUTS], rows[:, -2]
    buffer.full = True
    return lambda: agent.train(gradient_steps=UPDATES, batch_size=BATCH)


def _processes() -> tuple[float, float]:
    """Return updates a second of one process, and of two at the same time, in medians over alternating turns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(seed)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    for worker in workers:
        assert _pipes(worker)[1].readline() == "ready\n"
    turns = [(_turn(workers[:1]), _turn(workers)) for _ in range(TURNS)]
    for worker in workers:
        worker.communicate("end\n")
    one, two = np.median(np.array(turns), axis=0)
    return float(one), float(two)


def _pipes(worker: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    return worker.stdin, worker.stdout


def _turn(workers: list[subprocess.Popen[str]]) -> float:
    """Return the updates a second of all given workers together, while all of them work."""
    for worker in workers:
        pipe = _pipes(worker)[0]
        pipe.write("go\n")
        pipe.flush()
    return sum(float(_pipes(worker)[1].readline()) for worker in workers)


def _work(seed: int) -> None:
    """Train five members in turn, 50 updates each, for a while each time that a line says so; answer with the rate."""
    rows, members = replay(), [member(seed * MEMBERS + k) for k in range(MEMBERS)]
    generator = np.random.default_rng(seed)
    learn(members[0], None, rows, np.arange(0), 1, generator, CONFIG)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin.readline() == "go\n":
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < WORKER_S:
            k = done // 50 % MEMBERS
            peers = torch.cat([other.targets for j, other in enumerate(members) if j != k])
            members[k], _ = learn(members[k], peers, rows, np.arange(0), 50, generator, CONFIG)
            done += 50
        sys.stdout.write(f"{done / (time.perf_counter() - start)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _work(int(sys.argv[1]))
