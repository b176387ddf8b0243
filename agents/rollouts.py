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
from agents.plan import NOMINAL
from agents.randomness import generator, stream_key
from swarm.environment import EpisodeStatistics, RolloutRequest, RolloutResult, TaskParameters
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE

if TYPE_CHECKING:
    from agents.pinned import Pinned

ENVIRONMENT_FILE: Final = "environment.safetensors"
POLICY: Final = "member"
SHIFTED_FACTORS: Final = ("gravity", "mass", "friction", "damping")
TASK_SIZE: Final = len(fields(TaskParameters))


def shifted_tasks(team: TeamConfig, round_index: int) -> tuple[TaskParameters, ...]:
    """Return one training task per environment: one dynamics factor each, 1.5^U[-3, 3].

    Source: the factors of RESeL, Luo et al. 2024, arXiv:2405.15384.
    """
    rng = generator(team.seed, round_index, "shifted-tasks")
    tasks = []
    for _ in range(BLOCK_SIZE):
        name = SHIFTED_FACTORS[rng.integers(len(SHIFTED_FACTORS))]
        tasks.append(replace(team.task, **{name: float(1.5 ** rng.uniform(-3.0, 3.0))}))  # type: ignore[arg-type]
    return tuple(tasks)


def task_vector(task: TaskParameters) -> NDArray[np.float32]:
    """Return the task as numbers in field order; NaN for ``None``."""
    values = (getattr(task, f.name) for f in fields(TaskParameters))
    return np.array([np.nan if value is None else float(value) for value in values], np.float32)


def collection_request(pinned: Pinned, terms: Mapping[str, Json]) -> RolloutRequest:
    """Return the stretch that a ``collect`` contract asks for; nominal environments go on where they stopped."""
    team = pinned.team
    stream, round_index = cast(str, terms["stream"]), cast(int, terms["round"])
    seats = cast(Sequence[str], terms["seats"])
    nominal = stream == NOMINAL
    snapshot = pinned.environment_snapshot() if nominal else None
    return RolloutRequest(
        env_id=team.env_id,
        tasks=(team.task,) * BLOCK_SIZE if nominal else shifted_tasks(team, round_index),
        seed=stream_key(team.seed, stream) if nominal else stream_key(team.seed, stream, round_index),
        num_steps=cast(int, terms["steps"]),
        policy=POLICY,
        policy_options={"seats": list(seats), "random": cast(bool, terms["random"])},
        weights=pinned.seat_weights(seats),
        snapshot=snapshot,
        policy_state=None if snapshot is None else pinned.policy_state(seats),
        noise_seed=stream_key(team.seed, round_index, "explore", stream),
    )


def evaluation_request(pinned: Pinned, terms: Mapping[str, Json], seats: Sequence[str], block: int) -> RolloutRequest:
    """Return one block of deterministic episodes; selection and reported episodes use disjoint seeds."""
    reported = terms["purpose"] in ("before", "after")
    labels: tuple[int | str, ...] = ("report",) if reported else ("selection", cast(int, terms["base"]))
    return _episodes_request(pinned, seats, stream_key(pinned.team.seed, *labels, block))


def evaluation_blocks(pinned: Pinned, member: str, episodes: int, seed: int | None) -> list[RolloutRequest]:
    """Return blocks for ``episodes`` reported episodes of one member; without ``seed``, those of the run's report."""
    base = pinned.team.seed if seed is None else seed
    return [
        _episodes_request(pinned, (member,) * BLOCK_SIZE, stream_key(base, "report", block))
        for block in range(-(-episodes // BLOCK_SIZE))
    ]


def video_request(pinned: Pinned, member: str) -> RolloutRequest:
    """Return a block of the first reported episodes with positions, for a film."""
    return replace(evaluation_blocks(pinned, member, 1, None)[0], record_qpos=True)


def _episodes_request(pinned: Pinned, seats: Sequence[str], seed: int) -> RolloutRequest:
    return RolloutRequest(
        env_id=pinned.team.env_id,
        tasks=(pinned.team.task,) * BLOCK_SIZE,
        seed=seed,
        num_steps=None,
        policy=POLICY,
        policy_options={"seats": list(seats), "random": False},
        weights=pinned.seat_weights(seats),
        max_episode_steps=pinned.team.rounds.evaluation_steps,
    )


def experience_columns(
    result: RolloutResult, members: Sequence[int], tasks: Sequence[TaskParameters]
) -> dict[str, NDArray[np.generic]]:
    """Return the store's columns, each (T, E, …): the rollout's own, who acted, and under which task."""
    shape = result.columns["reward"].shape
    vectors = np.stack([task_vector(task) for task in tasks])
    return {
        **{name: column for name, column in result.columns.items() if name != "qpos"},
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


def mean_rewards(result: RolloutResult, seats: Sequence[str]) -> dict[str, float]:
    """Return each seated member's mean reward a step."""
    rewards = np.asarray(result.columns["reward"], np.float64)
    return {
        name: float(np.mean([rewards[:, e].mean() for e in range(len(seats)) if seats[e] == name]))
        for name in sorted(set(seats))
    }


def mean_returns(result: RolloutResult) -> NDArray[np.float64]:
    """Return the undiscounted return of the single episode of each environment, (E,)."""
    rewards = np.asarray(result.columns["reward"], np.float64)
    valid = np.asarray(result.columns["valid"], bool)
    return cast(NDArray[np.float64], np.where(valid, rewards, 0.0).sum(axis=0))


def prefixed(weights: Arrays, name: str) -> dict[str, NDArray[np.generic]]:
    """Return ``weights`` with ``name/`` before each key, as the rollout policy expects them."""
    return {f"{name}/{key}": value for key, value in weights.items()}
