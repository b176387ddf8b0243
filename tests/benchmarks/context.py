"""Does meta-learned context lower the prediction error under dynamics that were not trained on? `shift-test`, 5 seeds.

    python tests/benchmarks/context.py [--seeds 5] [--env HalfCheetah-v4] [--steps 2000] [--jobs 1]

Random actions under tasks of the suite `shift-train` train four arms of one architecture, each on the same windows for
the same number of gradient steps; windows under tasks of `shift-test` measure them. A window is a support half and the
query half that follows it; only the query half counts.

========= ====================================================== =====================================================
arm       what it knows of a window's dynamics                   how it was trained
========= ====================================================== =====================================================
``none``  nothing: the encoder starts afresh at every step       by its prediction error on both halves
``ssm``   what the encoder remembers since the window's start    the same
``inner`` what the inner loop made of the support half           through the inner loop, on the query half (MAML)
``both``  both                                                   through the inner loop, on the query half (MAML)
========= ====================================================== =====================================================

An arm's error is the squared error of normalised change and reward. The headline is its interquartile mean over all
query windows of all seeds, the plain mean stands beside it, with a 95 % bootstrap interval over seeds for the ratios;
and the plain mean by kind of dynamics, with its share of what `none` gets wrong in all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import Columns, columns_from_arrays
from agents.learning.inner_loop import squared_error
from agents.learning.maml import adapted_outputs
from agents.learning.normalizer import Scales, normalizer_from_rows
from agents.learning.windows import Windows, cut_windows, sample_windows
from agents.learning.world_model import prepare
from agents.learning.world_state import WorldState, apply_parts, init_world
from env_bridge.rollout import run_rollout
from env_bridge.suites import suite
from swarm.environment import RolloutRequest, TaskParameters

ARMS: Final = ("none", "ssm", "inner", "both")
REMEMBERING: Final = ("ssm", "both")
ADAPTING: Final = ("inner", "both")
TRAIN_TASKS, TEST_TASKS, STRETCH = 200, 96, 200
HALF, BATCH, STEPS = 32, 16, 2_000
STARTS: Final = range(0, STRETCH - 2 * HALF + 1, 2 * HALF)
RESAMPLES: Final = 10_000
CONFIG: Final = WorldConfig(
    window=2 * HALF,
    hidden=192,
    learning_rate=3e-3,
    encoder_rate=1.0,
    adapted="ridge",
    inner_learning_rate=0.1,
    learned_rates=True,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Study:
    """What all arms of a seed share: rows to train on, windows to measure with, normalisation."""

    train: Columns
    test: Windows
    scales: Scales
    seed: int


def collect(env_id: str, suite_name: str, num_tasks: int, seed: int) -> Columns:
    """Return ``STRETCH`` rows of random actions under each of ``num_tasks`` tasks of a suite."""
    request = RolloutRequest(
        env_id=env_id,
        tasks=suite(suite_name, count=num_tasks, seed=seed),
        seed=seed,
        num_steps=STRETCH,
        policy="random",
        noise_seed=seed,
    )
    return columns_from_arrays(run_rollout(request).columns, STRETCH)


def make_study(env_id: str, seed: int) -> Study:
    """Collect what a seed needs."""
    train, test = (
        collect(env_id, name, number, seed)
        for name, number in (("shift-train", TRAIN_TASKS), ("shift-test", TEST_TASKS))
    )
    starts = np.array([[step, task] for step in STARTS for task in range(TEST_TASKS)])
    return Study(
        train=train,
        test=cut_windows(test, None, starts, 2 * HALF),
        scales=normalizer_from_rows(
            *(getattr(train, name).numpy() for name in ("observation", "reward", "next_observation"))
        ).scales(),
        seed=seed,
    )


def kinds(seed: int) -> list[str]:
    """Return what is changed in each test window, in their order, as ``gravity+``."""
    nominal = TaskParameters()
    names = []
    for task in suite("shift-test", count=TEST_TASKS, seed=seed):
        (name,) = (field.name for field in fields(task) if getattr(task, field.name) != getattr(nominal, field.name))
        value = getattr(task, name)
        names.append(name + ("" if name in ("crippled", "observation_delay") else "+" if value > 1.0 else "-"))
    return names * len(STARTS)


def forgetful(windows: Windows) -> Windows:
    """Return windows in which every step starts an episode for the encoder."""
    return replace(
        windows,
        keep=torch.zeros_like(windows.keep),
        previous_action=torch.zeros_like(windows.previous_action),
        previous_reward=torch.zeros_like(windows.previous_reward),
    )


def errors(arm: str, world: WorldState, part: Tensor, windows: Windows, scales: Scales, *, training: bool) -> Tensor:
    """Return each window's squared error (W,): of the query half, or of both where an arm without inner loop trains."""
    encoder, head = world.sizes.views(part)
    prepared = prepare(world.sizes, encoder, windows if arm in REMEMBERING else forgetful(windows), scales)
    support, query = prepared.split(HALF)
    asked = query if arm in ADAPTING or not training else prepared
    outputs = adapted_outputs(head, support, asked, CONFIG, steps=None if arm in ADAPTING else 0)
    return squared_error(outputs, asked.target.transpose(0, 1), asked.mask)


def train_arm(arm: str, study: Study, steps: int) -> WorldState:
    """Return a world model trained as ``arm``; every arm sees the same windows in the same order."""
    observation_size, action_size = study.train.observation.shape[-1], study.train.action.shape[-1]
    world = init_world(CONFIG, MemberConfig(), observation_size, action_size, seed=study.seed)
    rng = np.random.default_rng(study.seed)
    for step in range(steps):
        windows = sample_windows(study.train, None, rng, BATCH, 2 * HALF)
        part = world.sizes.part(world.theta, 0).requires_grad_()
        loss = errors(arm, world, part, windows, study.scales, training=True).mean()
        (gradient,) = torch.autograd.grad(loss, part)
        gradient *= min(1.0, CONFIG.max_gradient_norm / max(float(gradient.norm()), 1e-12))
        now = replace(CONFIG, learning_rate=CONFIG.learning_rate * (1 - step / steps))
        world = apply_parts(world, gradient[None].numpy(), now)
    return world


@torch.no_grad()
def judge_arm(arm: str, study: Study, world: WorldState) -> NDArray[np.float64]:
    """Return the error on each query window of the test tasks, (W,)."""
    part = world.sizes.part(world.theta, 0)
    return errors(arm, world, part, study.test, study.scales, training=False).double().numpy()


def interquartile_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the middle half."""
    ordered, quarter = np.sort(values, axis=None), values.size // 4
    return float(ordered[quarter : values.size - quarter].mean())


def summary(found: Mapping[str, Sequence[NDArray[np.float64]]]) -> dict[str, Any]:
    """Return errors of each arm and its share of what `none` has, over windows and seeds."""
    rng = np.random.default_rng(0)
    num_seeds = len(found["none"])
    draws = rng.integers(0, num_seeds, size=(RESAMPLES, num_seeds))
    stacked = {arm: np.stack(values) for arm, values in found.items()}
    by_seed = {
        "iqm": {arm: np.array([interquartile_mean(row) for row in rows]) for arm, rows in stacked.items()},
        "mean": {arm: rows.mean(axis=1) for arm, rows in stacked.items()},
    }
    result: dict[str, Any] = {"measurements": {}, "ratios": {}}
    for name, pooled in (("iqm", interquartile_mean), ("mean", lambda rows: float(rows.mean()))):
        for arm in ARMS:
            result["measurements"][f"{arm}_{name}"] = pooled(stacked[arm])
            if arm == "none":
                continue
            sampled = by_seed[name][arm][draws].mean(axis=1) / by_seed[name]["none"][draws].mean(axis=1)
            low, high = np.quantile(sampled, [0.025, 0.975])
            result["ratios"][f"{arm}_of_none_{name}"] = pooled(stacked[arm]) / pooled(stacked["none"])
            result["ratios"][f"{arm}_of_none_{name}_interval"] = [float(low), float(high)]
    return result


def by_kind(found: Mapping[str, Sequence[NDArray[np.float64]]], kind: NDArray[np.str_]) -> dict[str, Any]:
    """Return, by kind of dynamics: windows, mean errors of `none` and `both`, and the share of all errors of `none`.

    Args:
        kind: (seeds, W) of each test window.
    """
    none, both = (np.stack(found[arm]) for arm in ("none", "both"))
    return {
        str(name): {
            "windows": int((kind == name).sum()),
            "none": float(none[kind == name].mean()),
            "both": float(both[kind == name].mean()),
            "both_of_none": float(both[kind == name].mean() / none[kind == name].mean()),
            "share_of_none": float(none[kind == name].sum() / none.sum()),
        }
        for name in np.unique(kind)
    }


def measure(threads: int) -> dict[str, Any]:
    """Return a glimpse for ``swarm bench``: one seed, a tenth of the training, always one thread.

    The result file comes from the whole.
    """
    return compare("HalfCheetah-v4", range(1), STEPS // 10)


def compare(env_id: str, seeds: Sequence[int], steps: int, jobs: int = 1) -> dict[str, Any]:
    """Train and test all arms for all seeds, ``jobs`` seeds at a time."""
    if jobs == 1:
        found = [one_seed(env_id, seed, steps) for seed in seeds]
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(partial(one_seed, env_id, steps=steps), seeds))
    errors_of = {arm: [errors_by_arm[arm] for errors_by_arm in found] for arm in ARMS}
    result = summary(errors_of)
    result["measurements"]["by_kind"] = by_kind(errors_of, np.array([kinds(seed) for seed in seeds]))
    return result


def one_seed(env_id: str, seed: int, steps: int) -> dict[str, NDArray[np.float64]]:
    """Train and test all arms for one seed; progress goes to stderr."""
    torch.set_num_threads(1)
    study = make_study(env_id, seed)
    found = {}
    for arm in ARMS:
        start = time.process_time()
        found[arm] = judge_arm(arm, study, train_arm(arm, study, steps))
        line = f"seed {seed} {arm:5} IQM {interquartile_mean(found[arm]):.4f} mean {found[arm].mean():.4f}"
        sys.stderr.write(f"{line} ({time.process_time() - start:.0f} s of one core)\n")
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v4")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    arguments = parser.parse_args()
    sys.stdout.write(
        json.dumps(compare(arguments.env, range(arguments.seeds), arguments.steps, arguments.jobs), indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
