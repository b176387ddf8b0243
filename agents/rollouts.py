"""Rollout requests that the agents make of the bridge, and what they read from the results. No torch.

Letters: T steps, E environments (one block).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from agents.config import TeamConfig
from agents.curriculum import draw_tasks, trials_known
from agents.plan import NOMINAL
from agents.randomness import generator, stream_key
from agents.trials import Stretch, cut_into_trials, tasks_of_trial
from swarm.environment import EpisodeStatistics, RolloutRequest, RolloutResult, TaskParameters
from swarm.messages import Json
from swarm.policy import BLOCK_SIZE

if TYPE_CHECKING:
    from agents.pinned import Pinned

POLICY: Final = "member"
SHIFTED_FACTORS: Final = ("gravity", "mass", "friction", "damping")
TASK_SIZE: Final = len(fields(TaskParameters))


def shifted_tasks(team: TeamConfig, round_index: int) -> tuple[TaskParameters, ...]:
    """Return one training task per environment: one dynamics factor each, 1.5^U[-3, 3].

    Runs on several tasks draw from their training tasks instead. Source: the factors of RESeL, Luo et al. 2024,
    arXiv:2405.15384.
    """
    rng = generator(team.seed, round_index, "shifted-tasks")
    if team.train_tasks:
        return tuple(team.train_tasks[index] for index in rng.integers(len(team.train_tasks), size=BLOCK_SIZE))
    tasks = []
    for _ in range(BLOCK_SIZE):
        name = SHIFTED_FACTORS[rng.integers(len(SHIFTED_FACTORS))]
        tasks.append(replace(team.task, **{name: float(1.5 ** rng.uniform(-3.0, 3.0))}))  # type: ignore[arg-type]
    return tuple(tasks)


def task_vector(task: TaskParameters) -> NDArray[np.float32]:
    """Return the task as numbers in field order; NaN for ``None``."""
    values = (getattr(task, f.name) for f in fields(TaskParameters))
    return np.array([np.nan if value is None else float(value) for value in values], np.float32)


def collection_requests(pinned: Pinned, terms: Mapping[str, Json]) -> list[RolloutRequest]:
    """Return what a ``collect`` contract asks for, in order; nominal environments go on where they stopped.

    One request, or, in a run on several tasks, one for each trial that the stretch touches.
    """
    team = pinned.team
    stream, round_index = cast(str, terms["stream"]), cast(int, terms["round"])
    seats, steps = cast(Sequence[str], terms["seats"]), cast(int, terms["steps"])
    nominal = stream == NOMINAL
    # An environment that cannot be saved leaves an empty snapshot: each stretch then starts with episodes of its own.
    snapshot = (pinned.environment_snapshot() or None) if nominal else None
    fresh = not nominal or (snapshot is None and pinned.rows[stream] > 0)
    first = RolloutRequest(
        env_id=team.env_id,
        tasks=(team.task,) * BLOCK_SIZE if nominal else shifted_tasks(team, round_index),
        seed=stream_key(team.seed, stream, round_index) if fresh else stream_key(team.seed, stream),
        num_steps=steps,
        policy=POLICY,
        policy_options={"seats": list(seats), "random": cast(bool, terms["random"])},
        weights=pinned.seat_weights(seats, deployed=False),
        snapshot=snapshot,
        policy_state=None if snapshot is None else pinned.policy_state(seats),
        noise_seed=stream_key(team.seed, round_index, "explore", stream),
    )
    if not nominal or not team.train_tasks:
        return [first]
    stretches = cut_into_trials(pinned.rows[stream], steps, team.trials.steps)
    return [_trial_request(pinned, first, stretch, round_index) for stretch in stretches]


def next_tasks(pinned: Pinned, trial: int) -> tuple[TaskParameters, ...]:
    """Return the task of each environment in ``trial``: all in turn, or by the progress that the rows show."""
    team = pinned.team
    drawn = None
    if team.trials.curriculum == "progress" and trials_known(team, trial) > 0:
        drawn = draw_tasks(
            team, trial, np.stack([task_vector(task) for task in team.train_tasks]), pinned.nominal_rows()
        )
    return tasks_of_trial(team, trial) if drawn is None else tuple(team.train_tasks[index] for index in drawn)


def chosen_tasks(team: TeamConfig, requests: Sequence[RolloutRequest]) -> list[Json]:
    """Return, for each request of a run with a curriculum, which training task (from 0) each environment had."""
    return [[team.train_tasks.index(task) for task in request.tasks] for request in requests]


def _trial_request(pinned: Pinned, whole: RolloutRequest, stretch: Stretch, round_index: int) -> RolloutRequest:
    """Return the part of ``whole`` within one trial; what starts a trial starts with fresh episodes and memory."""
    team = pinned.team
    return replace(
        whole,
        tasks=next_tasks(pinned, stretch.trial),
        seed=stream_key(team.seed, NOMINAL, stretch.trial, round_index),
        num_steps=stretch.steps,
        snapshot=None if stretch.fresh else whole.snapshot,
        policy_state=None if stretch.fresh else whole.policy_state,
        carry_state=True,
        noise_seed=stream_key(team.seed, round_index, "explore", NOMINAL, stretch.trial),
        max_episode_steps=team.trials.episode_steps,
    )


def evaluation_request(pinned: Pinned, terms: Mapping[str, Json], seats: Sequence[str], block: int) -> RolloutRequest:
    """Return one block of deterministic episodes, or trials; selection and reported ones use disjoint seeds and tasks.

    Members that share a block meet the same tasks, in the same order.
    """
    team = pinned.team
    reported = terms["purpose"] in ("before", "after")
    labels: tuple[int | str, ...] = ("report",) if reported else ("selection", cast(int, terms["base"]))
    number = len(cast(Sequence[str], terms["members"]))
    tasks = team.test_tasks if reported else team.train_tasks
    indices = [(block * BLOCK_SIZE + seat) // number for seat in range(BLOCK_SIZE)]
    return _episodes_request(pinned, seats, stream_key(team.seed, *labels, block), _in_turn(team, tasks, indices))


def evaluation_blocks(pinned: Pinned, member: str, episodes: int, seed: int | None) -> list[RolloutRequest]:
    """Return blocks for ``episodes`` reported episodes (or trials) of one member; without ``seed``, the report's."""
    team = pinned.team
    base = team.seed if seed is None else seed
    return [
        _episodes_request(
            pinned,
            (member,) * BLOCK_SIZE,
            stream_key(base, "report", block),
            _in_turn(team, team.test_tasks, range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)),
        )
        for block in range(-(-episodes // BLOCK_SIZE))
    ]


def _in_turn(team: TeamConfig, tasks: Sequence[TaskParameters], indices: Sequence[int]) -> tuple[TaskParameters, ...]:
    return tuple(tasks[index % len(tasks)] if tasks else team.task for index in indices)


def video_request(pinned: Pinned, member: str) -> RolloutRequest:
    """Return a block of the first reported episodes, or trials, with positions, for a film."""
    return replace(evaluation_blocks(pinned, member, 1, None)[0], record_qpos=True)


def _episodes_request(
    pinned: Pinned, seats: Sequence[str], seed: int, tasks: tuple[TaskParameters, ...]
) -> RolloutRequest:
    """Return one episode of each environment, or a whole trial in a run on several tasks."""
    team = pinned.team
    trials = bool(team.train_tasks)
    return RolloutRequest(
        env_id=team.env_id,
        tasks=tasks,
        seed=seed,
        num_steps=team.trials.steps if trials else None,
        policy=POLICY,
        policy_options={"seats": list(seats), "random": False},
        weights=pinned.seat_weights(seats, deployed=True),
        carry_state=trials,
        max_episode_steps=team.trials.episode_steps if trials else team.rounds.evaluation_steps,
    )


def experience_columns(
    parts: Sequence[tuple[RolloutRequest, RolloutResult]], members: Sequence[int]
) -> dict[str, NDArray[np.generic]]:
    """Return the store's columns, each (T, E, …): the rollouts' own in order, who acted, under which task."""
    columns = [_columns_of(request, result, members) for request, result in parts]
    return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}


def mark_cut_episodes(columns: dict[str, NDArray[np.generic]], first_row: int, trial_steps: int) -> None:
    """Mark episodes that the end of their trial cut short as truncated, in place."""
    ends = (first_row + 1 + np.arange(len(columns["truncated"]))) % trial_steps == 0
    columns["truncated"] = columns["truncated"] | (ends[:, None] & ~np.asarray(columns["terminated"], bool))


def _columns_of(
    request: RolloutRequest, result: RolloutResult, members: Sequence[int]
) -> dict[str, NDArray[np.generic]]:
    shape = result.columns["reward"].shape
    vectors = np.stack([task_vector(task) for task in request.tasks])
    return {
        **{name: np.asarray(column) for name, column in result.columns.items() if name != "qpos"},
        "member": np.broadcast_to(np.array(members, np.int32), shape),
        "task": np.broadcast_to(vectors, (*shape, TASK_SIZE)),
    }


def episode_summary(episode: EpisodeStatistics, seats: Sequence[str]) -> dict[str, Json]:
    """Return what is told of a finished training episode; ``member`` is who acted at its end."""
    return {
        "return": episode.total_reward,
        "length": episode.length,
        "distance_m": episode.distance_m,
        "member": seats[episode.environment],
    }


def mean_rewards(results: Sequence[RolloutResult], seats: Sequence[str]) -> dict[str, float]:
    """Return each seated member's mean reward a step."""
    rewards = np.concatenate([np.asarray(result.columns["reward"], np.float64) for result in results])
    return {
        name: float(np.mean([rewards[:, e].mean() for e in range(len(seats)) if seats[e] == name]))
        for name in sorted(set(seats))
    }


def mean_returns(result: RolloutResult) -> NDArray[np.float64]:
    """Return the undiscounted return of the single episode of each environment, (E,)."""
    rewards = np.asarray(result.columns["reward"], np.float64)
    valid = np.asarray(result.columns["valid"], bool)
    return cast(NDArray[np.float64], np.where(valid, rewards, 0.0).sum(axis=0))
