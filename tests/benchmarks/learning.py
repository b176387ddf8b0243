"""Learning targets: one agent (or the preset's), several seeds, by the command that users run; IQM with interval.

    python tests/benchmarks/learning.py halfcheetah-1 --seeds 100 101 102 103 104 --out runs/learning

The task with a known answer, ``linear-quadratic``, is measured by its discounted cost as a multiple of the least one.

Each seed is one ``swarm run`` in its own directory. Finished seeds are kept, interrupted ones resumed, so that the
program can be stopped and started again. Results come as JSON lines on standard output, a summary last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import load_policy
from agents.export import export_policy
from env_bridge.linear_quadratic import START, A, B, Q, R, best_cost
from scenarios.run_directory import RunDirectory

RESAMPLES = 50_000
HORIZON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is run, and what the interquartile mean of a metric should reach: at least, or (costs) at most.

    Attributes:
        metric: ``return``, or ``cost_ratio`` (`cost_ratio`).
    """

    preset: str
    settings: tuple[str, ...]
    wanted: float
    metric: str = "return"
    distance_m: float = 0.0


ONE_AGENT = (
    "learners=state",
    "video=false",
    "rounds.shifted_every=0",  # the whole budget is the task's own
    "rounds.adapt_every=0",
    "rounds.evaluate_every=50",
)
TARGETS: Mapping[str, Target] = {
    "halfcheetah-1": Target(
        preset="halfcheetah",
        settings=(*ONE_AGENT, "budget_steps=50000", "rounds.updates_per_step=1"),
        wanted=3_000.0,
    ),
    "halfcheetah-5": Target(
        preset="halfcheetah",
        settings=(*ONE_AGENT, "budget_steps=50000", "rounds.updates_per_step=5", "member.feature_scale=0.02"),
        wanted=5_000.0,
    ),
    "ant-2": Target(
        preset="ant",
        settings=(
            *ONE_AGENT,
            "budget_steps=100000",
            "rounds.updates_per_step=2",
            "member.feature_scale=0.02",
            "sac.average_rate=0.0002",
        ),
        wanted=2_000.0,
        distance_m=20.0,
    ),
    "linear-quadratic": Target(preset="linear-quadratic", settings=(), wanted=1.02, metric="cost_ratio"),
}


def run_seed(target: Target, seed: int, folder: Path, extra: Sequence[str]) -> Mapping[str, Any]:
    """Train (or finish, or only read) one seed and return its reported evaluation."""
    report = folder / "evaluation.json"
    if not (report.exists() and "after" in json.loads(report.read_text())):
        swarm = [sys.executable, "-m", "scenarios"]
        settings = [part for text in (*target.settings, *extra) for part in ("--set", text)]
        fresh = [*swarm, "run", target.preset, "--seed", str(seed), "--processes", "1", "--out", str(folder), *settings]
        started = (folder / "checkpoints").exists()
        command = [*swarm, "resume", str(folder)] if started else fresh
        subprocess.run([*command, "--plain"], check=True, stdout=subprocess.DEVNULL, env=_one_thread())
    found: Mapping[str, Any] = json.loads(report.read_text())["after"]
    return found


def cost_ratio(run: Path) -> float:
    """Return the discounted cost of a run's exported policy on the linear-quadratic task, by the Riccati optimum's.

    The mean of 64 starts, the same for every run; `HORIZON` steps, after which hardly anything is left of a cost.
    """
    with tempfile.TemporaryDirectory() as folder:
        policy = load_policy(export_policy(run, Path(folder) / "policy.safetensors").path)
    discount = RunDirectory.open(run).scenario().team.sac.discount
    x = starts = np.random.default_rng(0).uniform(-START, START, (64, 2))
    cost = reward = np.zeros(len(starts))
    state = policy.initial_state(len(starts))
    for t in range(HORIZON):
        action, state = policy.step(x, state, reward=reward, reset=t == 0)
        u = action.astype(np.float64)
        reward = -(np.einsum("ni,ij,nj->n", x, Q, x) + np.einsum("ni,ij,nj->n", u, R, u))
        cost = cost - discount**t * reward
        x = x @ A.T + u @ B.T
    return float(cost.mean() / best_cost(starts, discount).mean())


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def interquartile_mean(values: NDArray[np.float64]) -> float:
    """Return the mean without the lowest and highest quarter, border values by their share.

    Source: Agarwal et al. 2021, arXiv:2108.13264; with 5 values the weights are 0, .75, 1, .75, 0, normalised.
    """
    ordered = np.sort(values, axis=-1)
    n = values.shape[-1]
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    weights = np.diff(edges) * 2
    return float(ordered @ weights)


def interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of the interquartile mean over seeds."""
    rng = np.random.default_rng(seed)
    draws = values[rng.integers(0, len(values), size=(RESAMPLES, len(values)))]
    n = len(values)
    weights = np.diff(np.clip(np.arange(n + 1) / n, 0.25, 0.75)) * 2
    low, high = np.quantile(np.sort(draws, axis=1) @ weights, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Run the seeds one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    values, distances = [], []
    for seed in arguments.seeds:
        folder = arguments.out / f"{arguments.target}-{seed}"
        found = run_seed(target, seed, folder, arguments.extra)
        value = cost_ratio(folder) if target.metric == "cost_ratio" else float(np.mean(found["returns"]))
        values.append(value)
        distances.append(float(np.mean(found["distances"])))
        row = {"target": arguments.target, "seed": seed, target.metric: value, "distance_m": distances[-1]}
        print(json.dumps(row), flush=True)
    summary = {
        "target": arguments.target,
        "seeds": len(values),
        f"iqm_{target.metric}": interquartile_mean(np.array(values)),
        "interval_95": interval(np.array(values)),
        "iqm_distance_m": interquartile_mean(np.array(distances)),
        "wanted": target.wanted,
        "wanted_distance_m": target.distance_m,
        "settings": [*target.settings, *arguments.extra],
    }
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
