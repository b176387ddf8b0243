"""Environment steps a second: the physics alone, ours, EnvPool, Gymnasium; 64 environments, two stepping workers.

All of them play in turn, in slices of less than a second, each in processes of its own; a ratio is the median of the
ratios within each turn. There are as many turns as `BUDGET_S` has room for (``turns`` says how many), at least
`LEAST_TURNS`. In every mode a reset that takes the place of a step counts as a step.

=============== =====================================================================================================
candidate       what it does
=============== =====================================================================================================
``limit``       two processes of 32 environments each that only call ``mj_step``, in a plain loop, with the actions and
                resets of the script; neither observations nor rewards nor the contact forces that Gymnasium computes
                for Ant and Humanoid
``ours``        `BridgeVectorEnv` with two workers, infos built, one batch at a time
``halves``      two `BridgeVectorEnv` of 32, two workers each, one being stepped while the other's results are taken
``collect``     a collect task: one message to a bridge process, a policy of 53 K parameters beside the physics
``limit-collect``  ``limit`` with the actions and resets of that task
``envpool``     EnvPool, two threads, one batch at a time; seeds of its own
``sync``        Gymnasium's `SyncVectorEnv`, whose own trajectory is the script
``async``       Gymnasium's `AsyncVectorEnv`
=============== =====================================================================================================

Sizes 1, 4, 16 and 256: ours as it is made by default, beside both of Gymnasium's. Latency: one step of eight
environments by ``await env.step(…)``, of an `AsyncBridgeVectorEnv` with one worker and of a session in a bridge
process, beside the physics of eight environments on one core.

Processes and workers matter here, not threads: it runs once (`THREADS`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

THREADS = (1,)
FOLDER: Final = Path(__file__).resolve().parent
ENV_IDS: Final = ("HalfCheetah-v4", "Ant-v4", "Humanoid-v4")
NUM_ENVS, WORKERS = 64, 2
BUDGET_S: Final = 135.0
"""For everything, on a machine that makes ready and plays `LEAST_TURNS` in that time."""
LEAST_TURNS, MOST_TURNS = 3, 9
ENDING_S: Final = 3.0
"""What the players of one robot take to end."""
SLICE_S, PEER_SLICE_S = 0.4, 0.25
SIZES, SIZE_SLICE_S = (1, 4, 16, 256), 0.2
MOST_PROCESSES: Final = 16
"""For more environments, starting a process for each takes longer than all that is measured; it is a fourth as fast."""
LATENCY_ENVS, LATENCY_S = 8, 1.5
SINGLE: Final = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")}


class Player:
    """A process that plays when asked to; ended by ``with`` (at once after an error), and with this process."""

    def __init__(self, program: str, kind: str, env_id: str, num_envs: int, folder: Path, *rest: int) -> None:
        self._name = f"{kind} of {num_envs} {env_id}"
        command = [sys.executable, str(FOLDER / program), kind, env_id, str(num_envs), str(folder), *map(str, rest)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **SINGLE, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20 if kind is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def answer(self) -> Any:
        """Wait for the next line. Raises `RuntimeError` where the process ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def is_ready(self) -> bool:
        """Whether it can play; says why not in one line."""
        said = self.answer()
        if isinstance(said, dict):
            sys.stderr.write(f"{said['missing']}\n")
        return bool(said == "ready")

    def ask(self, seconds: float, script: str) -> None:
        """Have it play; `answer` gives the result."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds} {script}\n")
        self._process.stdin.flush()


class Side:
    """One candidate: the processes that play at the same time, the script and the length of its slices."""

    def __init__(self, players: Sequence[Player], script: str, slice_s: float) -> None:
        self._players, self._script, self._slice_s = players, script, slice_s

    def rate(self) -> float:
        """Return the environment steps a second of all its processes together, in one slice."""
        for player in self._players:
            player.ask(self._slice_s, self._script)
        answers = [player.answer() for player in self._players]
        return float(sum(steps / seconds for steps, seconds in answers))


def measure(threads: int) -> dict[str, Any]:
    """Return environment steps a second and ratios of throughputs, ours over theirs."""
    return compare(ENV_IDS, ("HalfCheetah-v4",))


def compare(env_ids: Sequence[str], sized: Sequence[str]) -> dict[str, Any]:
    """Measure robots one after the other; those of ``sized`` also in other numbers of environments."""
    measurements: dict[str, Any] = {}
    ratios: dict[str, dict[str, float | None]] = {}
    end_s = time.perf_counter() + BUDGET_S
    parts = len(env_ids) + sum(env_id in sized for env_id in env_ids)
    for env_id in env_ids:
        start_s = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            measurements[env_id], ratios[env_id] = throughput(env_id, Path(folder), share(end_s, parts))
            parts -= 1
            if env_id in sized:
                until_s = share(end_s, parts)
                measurements[env_id]["latency"] = latency(env_id, Path(folder))
                measurements[env_id]["sizes"], more = by_size(env_id, Path(folder), until_s)
                ratios[env_id] |= more
                parts -= 1
        sys.stderr.write(f"{env_id}: {time.perf_counter() - start_s:.0f} s\n")
    return {"measurements": measurements, "ratios": ratios}


def share(end_s: float, parts: int) -> float:
    """Return when the first of ``parts`` equal parts of the time until ``end_s`` is over."""
    now_s = time.perf_counter()
    return now_s + (end_s - now_s) / parts


def throughput(env_id: str, folder: Path, until_s: float) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Return the rates and ratios of all candidates with `NUM_ENVS` environments."""
    with ExitStack() as stack:

        def player(program: str, kind: str, *rest: int) -> Player:
            return stack.enter_context(Player(program, kind, env_id, NUM_ENVS, folder, *rest))

        collecting = player("bridge_clients.py", "collect", WORKERS)
        others = {
            "envpool": player("bridge_players.py", "envpool", WORKERS),
            "sync": player("bridge_players.py", "sync"),
            "async": player("bridge_players.py", "async"),
            "halves": player("bridge_players.py", "halves", WORKERS),
        }
        record(env_id, folder)
        collecting.is_ready()
        ours = player("bridge_players.py", "ours", WORKERS)
        physics = [player("bridge_players.py", "physics", part, 2) for part in range(2)]
        for one in (ours, *physics):
            one.is_ready()
        sides = {
            "limit": Side(physics, "steps", SLICE_S),
            "ours": Side([ours], "steps", SLICE_S),
            "collect": Side([collecting], "collect", SLICE_S),
            "limit-collect": Side(physics, "collect", SLICE_S),
        }
        for name, one in others.items():
            if one.is_ready():
                sides[name] = Side([one], "steps", PEER_SLICE_S if name in ("sync", "async") else SLICE_S)
        rates = take_turns(sides, until_s - ENDING_S)
    ratios = {
        "vs_limit": ratio(rates, "ours", "limit"),
        "vs_envpool": ratio(rates, "ours", "envpool"),
        "vs_gym_sync": ratio(rates, "ours", "sync"),
        "with_policy_vs_limit": ratio(rates, "collect", "limit-collect"),
        "vs_gym_async": ratio(rates, "ours", "async"),
        "halves_vs_limit": ratio(rates, "halves", "limit"),
    }
    return {"turns": len(rates["limit"]), "steps_per_s": medians(rates)}, ratios


def record(env_id: str, folder: Path) -> None:
    """Write the script of ``env_id``."""
    with Player("bridge_players.py", "record", env_id, NUM_ENVS, folder) as player:
        player.is_ready()


def by_size(env_id: str, folder: Path, until_s: float) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Return rates by number of environments, and ours over Gymnasium's best."""
    found: dict[str, Any] = {}
    ratios: dict[str, float | None] = {}
    for left, size in zip(range(len(SIZES), 0, -1), SIZES, strict=True):
        end_s = share(until_s, left)
        with ExitStack() as stack:
            players = {
                name: stack.enter_context(Player("bridge_players.py", kind, env_id, size, folder))
                for name, kind in (("ours", "ours-default"), ("sync", "sync"), ("async", "async"))
                if name != "async" or size <= MOST_PROCESSES
            }
            sides = {name: Side([one], "steps", SIZE_SLICE_S) for name, one in players.items() if one.is_ready()}
            rates = take_turns(sides, end_s - ENDING_S)
        rates["best"] = [max(several) for several in zip(*(rates[n] for n in rates if n != "ours"), strict=True)]
        found[str(size)] = medians({name: rates[name] for name in players})
        ratios[f"vs_gym_best_{size}"] = ratio(rates, "ours", "best")
    return found, ratios


def latency(env_id: str, folder: Path) -> dict[str, float]:
    """Return the median milliseconds of a step of `LATENCY_ENVS` environments from a coroutine, and of its physics."""
    with Player("bridge_clients.py", "latency", env_id, LATENCY_ENVS, folder, WORKERS) as player:
        player.is_ready()
        player.ask(LATENCY_S, "steps")
        found = player.answer()
    return {
        "step_p50_ms": round(1e3 * found["step"], 4),
        "physics_p50_ms": round(1e3 * found["physics"], 4),
        "above_physics_ms": round(1e3 * (found["step"] - found["physics"]), 4),
        "by_bridge_process_above_physics_ms": round(1e3 * (found["bridge"] - found["physics"]), 4),
    }


def take_turns(sides: Mapping[str, Side], until_s: float) -> dict[str, list[float]]:
    """Return the rates of slices of each side, one after the other within each turn, until there is no time left."""
    turns: list[dict[str, float]] = []
    longest_s = 0.0
    while len(turns) < LEAST_TURNS or (len(turns) < MOST_TURNS and time.perf_counter() + longest_s < until_s):
        start_s = time.perf_counter()
        turns.append({name: side.rate() for name, side in sides.items()})
        longest_s = max(longest_s, time.perf_counter() - start_s)
    return {name: [turn[name] for turn in turns] for name in sides}


def ratio(rates: Mapping[str, Sequence[float]], one: str, other: str) -> float | None:
    """Return the median over turns of ``one`` / ``other``; nothing where the other was not there."""
    if other not in rates:
        return None
    return round(statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 3)


def medians(rates: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Return steps a second."""
    return {name: round(statistics.median(values)) for name, values in rates.items()}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(ENV_IDS), choices=ENV_IDS)
    parser.add_argument("--sizes", nargs="*", default=["HalfCheetah-v4"], choices=ENV_IDS)
    given = parser.parse_args()
    sys.stdout.write(json.dumps(compare(given.env, given.sizes), indent=1) + "\n")


if __name__ == "__main__":
    main()
