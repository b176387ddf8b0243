"""Which training tasks a run on several tasks meets next: by learning progress. Pure functions; no torch.

Letters: N attempts (one environment through one trial), K tasks, F numbers that tell a task from another.

A task is worth another attempt while returns near it change, up or down: what is mastered and what is out of reach
stands still. Source: absolute learning progress, Portelas et al. 2019, arXiv:1910.07224; over a list of tasks, Matiisen
et al. 2017, arXiv:1707.00183. Differs from Portelas: progress is averaged over the nearest attempts instead of fitted
by a Gaussian mixture, because a run has tens of attempts, not thousands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.config import TeamConfig
from agents.randomness import generator
from swarm.environment import TaskParameters
from swarm.messages import Arrays
from swarm.policy import BLOCK_SIZE

NEIGHBOURS: Final = 3
FACTORS: Final = ("gravity", "mass", "friction", "damping")
NUMBERS: Final = ("velocity", "goal_x", "goal_y", "actuator_gain", "observation_delay", "sensor_noise")
WARM_UP: Final = 2 * BLOCK_SIZE
"""Attempts, two trials of the block, before progress counts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempts:
    """Completed trials in the order of their rows: when (N,), which task of the list (N,), its return (N,)."""

    trial: NDArray[np.int64]
    task: NDArray[np.int64]
    total: NDArray[np.float64]


def trials_known(team: TeamConfig, trial: int) -> int:
    """How many trials are complete and committed when the round in which ``trial`` starts begins.

    A function of ``trial`` alone, so that every round that the trial touches comes to the same tasks.
    """
    round_rows = team.rounds.steps // BLOCK_SIZE
    first_row = trial * team.trials.steps
    return first_row // round_rows * round_rows // team.trials.steps


def attempts_from_rows(team: TeamConfig, vectors: NDArray[np.float32], rows: Arrays, num_trials: int) -> Attempts:
    """Attempts of the first ``num_trials`` trials.

    Args:
        vectors: (K, number of task parameters), each training task as the column ``task`` holds it.
        rows: committed nominal columns ``task``, ``reward`` and ``valid``, at least the rows of those trials.
    """
    steps = team.trials.steps
    shape = (num_trials, steps, BLOCK_SIZE)
    end = num_trials * steps
    first = np.asarray(rows["task"][:end:steps], np.float32).reshape(num_trials * BLOCK_SIZE, -1)
    same = (first[:, None] == vectors) | (np.isnan(first)[:, None] & np.isnan(vectors))
    paid = np.where(np.asarray(rows["valid"][:end], bool), np.asarray(rows["reward"][:end], np.float64), 0.0)
    return Attempts(
        trial=np.repeat(np.arange(num_trials), BLOCK_SIZE),
        task=same.all(axis=2).argmax(axis=1),
        total=paid.reshape(shape).sum(axis=1).reshape(-1) / team.trials.episodes,
    )


def embed(tasks: Sequence[TaskParameters]) -> NDArray[np.float64]:
    """Tasks as points (K, F), each coordinate scaled to a range of one; factors by their logarithm."""
    columns = [[float(getattr(task, name) or 0.0) for task in tasks] for name in NUMBERS]
    columns += [[math.log(max(getattr(task, name), 1e-3)) for task in tasks] for name in FACTORS]
    for actuator in sorted({task.crippled for task in tasks if task.crippled is not None}):
        columns.append([float(task.crippled == actuator) for task in tasks])
    points = np.array(columns, np.float64).T
    extent = np.ptp(points, axis=0)
    headings = [(0.0, 0.0) if t.direction is None else (math.cos(t.direction), math.sin(t.direction)) for t in tasks]
    return np.concatenate((points[:, extent > 0.0] / extent[extent > 0.0], np.array(headings) / 2), axis=1)


def learning_progress(points: NDArray[np.float64], attempts: Attempts) -> NDArray[np.float64]:
    """Absolute learning progress at each task, (K,).

    Of an attempt: |return − return of the nearest attempt of an earlier trial|. Of a task: the mean of its nearest
    attempts that have one. Of several as near, the latest counts.
    """
    distance = np.sqrt(np.square(points[:, None] - points[None]).sum(axis=2))
    age = attempts.trial.max(initial=0) - attempts.trial
    changed = []
    for index in np.flatnonzero(attempts.trial > attempts.trial.min(initial=0)).tolist():
        earlier = np.flatnonzero(attempts.trial < attempts.trial[index])
        order = np.lexsort((age[earlier], distance[attempts.task[index], attempts.task[earlier]]))
        changed.append((index, abs(attempts.total[index] - attempts.total[earlier[order[0]]])))
    if not changed:
        return np.zeros(len(points))
    indices = np.array([index for index, _ in changed])
    changes = np.array([change for _, change in changed])
    progress = np.zeros(len(points))
    for task in range(len(points)):
        order = np.lexsort((age[indices], distance[task, attempts.task[indices]]))[:NEIGHBOURS]
        progress[task] = changes[order].mean()
    return progress


def chances(progress: NDArray[np.float64], exploration: float) -> NDArray[np.float64]:
    """Probability of each task, (K,): proportional to its progress, but for a share that is the same for all."""
    total = progress.sum()
    even = np.full(len(progress), 1.0 / len(progress))
    return exploration * even + (1.0 - exploration) * progress / total if total > 0.0 else even


def draw_tasks(
    team: TeamConfig, trial: int, vectors: NDArray[np.float32], rows: Mapping[str, NDArray[np.generic]]
) -> tuple[int, ...] | None:
    """Indices of the tasks of ``trial``, one for each environment; ``None`` while there is too little to go by.

    A pure function of the committed rows before the round in which the trial starts, and of the run's seed.
    """
    known = trials_known(team, trial)
    if known * BLOCK_SIZE < WARM_UP:
        return None
    attempts = attempts_from_rows(team, vectors, rows, known)
    probability = chances(learning_progress(embed(team.train_tasks), attempts), team.trials.exploration)
    drawn = generator(team.seed, "curriculum", trial).choice(len(probability), size=BLOCK_SIZE, p=probability)
    return tuple(int(index) for index in drawn)
