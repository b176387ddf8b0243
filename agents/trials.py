"""Trials of a run on several tasks: which task an environment has when, and what its episodes came to. No torch.

Letters: E environments (one block), K episodes of a trial.

A trial is a fixed number of steps under one task, so that all environments of the block change tasks together. Where
robots fall early it holds more than K episodes, of which the first K count; the last one may be cut at its end.
Source: Duan et al. 2016, arXiv:1611.02779 (RL²): the memory of the policy lasts over the episodes of a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from agents.config import TeamConfig
from agents.randomness import generator
from swarm.environment import EpisodeStatistics, TaskParameters
from swarm.policy import BLOCK_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Consecutive steps of the block within one trial.

    Attributes:
        trial: index of the trial, from 0.
        steps: steps of each environment.
        fresh: whether it starts the trial.
        ends: whether it ends the trial.
    """

    trial: int
    steps: int
    fresh: bool
    ends: bool


def cut_into_trials(first_row: int, num_rows: int, trial_steps: int) -> list[Stretch]:
    """Return rows [first_row, first_row + num_rows) of the block, cut where trials of ``trial_steps`` rows end."""
    stretches = []
    row, end = first_row, first_row + num_rows
    while row < end:
        trial, inside = divmod(row, trial_steps)
        steps = min(trial_steps - inside, end - row)
        stretches.append(Stretch(trial=trial, steps=steps, fresh=inside == 0, ends=inside + steps == trial_steps))
        row += steps
    return stretches


def tasks_of_trial(team: TeamConfig, trial: int) -> tuple[TaskParameters, ...]:
    """Return the task of each environment; the list is gone through in ever new orders, each of them to its end."""
    number = len(team.train_tasks)
    tasks = []
    for index in range(trial * BLOCK_SIZE, (trial + 1) * BLOCK_SIZE):
        order = generator(team.seed, "trials", index // number).permutation(number)
        tasks.append(team.train_tasks[order[index % number]])
    return tuple(tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What one environment came to: the first K episodes under its task, in order (K = 1: a single episode)."""

    environment: int
    returns: tuple[float, ...]
    distances: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean_return(self) -> float:
        """Mean undiscounted return of an episode."""
        return fmean(self.returns)

    @property
    def mean_distance_m(self) -> float:
        """Mean forward distance of an episode."""
        return fmean(self.distances)

    @property
    def mean_length(self) -> int:
        """Mean length of an episode, rounded."""
        return round(fmean(self.lengths))


def episodes_played(episodes: Sequence[EpisodeStatistics], num_episodes: int) -> list[Played]:
    """Return the first ``num_episodes`` episodes of each environment of a block, in order of environments.

    An environment that ended fewer is left out: within a trial, that is one whose physics diverged.
    """
    played = []
    for environment in range(BLOCK_SIZE):
        rows = [row for row in episodes if row.environment == environment][:num_episodes]
        if len(rows) < num_episodes:
            continue
        played.append(
            Played(
                environment=environment,
                returns=tuple(row.total_reward for row in rows),
                distances=tuple(row.distance_m for row in rows),
                lengths=tuple(row.length for row in rows),
            )
        )
    return played
