"""What agents and the bridge say to each other about environments.

Letters: T steps, E environments, O observation, A action. A rollout is a pure function of its request: the same request
gives the same bits, whatever the number of stepping workers and whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from swarm.messages import Arrays, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskParameters:
    """What one environment is asked to do, under which dynamics.

    Attributes:
        velocity: target forward velocity in m/s; the reward's velocity term becomes −|v − target|. ``None``: the
            environment's own reward.
        direction: target heading in radians in the x-y plane, 0 = +x (for planar robots 0 or π).
        gravity: factor on gravity.
        mass: factor on all body masses and inertias.
        friction: factor on all geom sliding frictions.
        damping: factor on all joint dampings.
        actuator_gain: factor on all actuator gains.
        crippled: index of the actuator that has no effect; ``None``: none.
        goal_x: target position in metres in the x-y plane, from the origin; the reward's velocity term becomes minus
            the distance to it. ``None``: 0 where ``goal_y`` is given, else no target position. Goes with neither
            ``velocity`` nor ``direction``.
        goal_y: likewise (for planar robots 0 or ``None``).
        observation_delay: how many environment steps old an observation is; the first ones of an episode are that of
            its reset.
        sensor_noise: standard deviation of the normal noise on each observation, in units of that observation.
    """

    velocity: float | None = None
    direction: float | None = None
    gravity: float = 1.0
    mass: float = 1.0
    friction: float = 1.0
    damping: float = 1.0
    actuator_gain: float = 1.0
    crippled: int | None = None
    goal_x: float | None = None
    goal_y: float | None = None
    observation_delay: int = 0
    sensor_noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """Sizes and limits of one environment id; ``action_low`` and ``action_high`` have one limit per action."""

    env_id: str
    observation_size: int
    action_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    max_episode_steps: int
    timestep_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutRequest:
    """Step ``len(tasks)`` environments (a multiple of `BLOCK_SIZE`) with a policy.

    Attributes:
        env_id: a Gymnasium id.
        tasks: task parameters per environment.
        seed: seeds resets (environment e uses ``SeedSequence([seed, e])``) where ``snapshot`` is ``None``.
        num_steps: steps per environment; finished episodes restart at once (the stored next observation is the true
            last one). ``None``: run each environment for exactly one episode and mask what follows it as invalid.
        snapshot: continue from the ``snapshot`` of an earlier result.
        policy: entry-point name of the group ``swarm.policies``.
        policy_options: passed to its factory.
        weights: passed to its factory.
        policy_state: (E, S) to continue from; ``None``: zeros (and ``reset`` true on the first step of an episode).
        carry_state: the policy remembers across episodes: its state and the previous reward carry over, ``reset`` is
            true only on the first step of a rollout that has neither ``snapshot`` nor ``policy_state``.
        noise_seed: exploration noise is drawn from a Philox stream with this key; ``None``: noise is zero.
        max_episode_steps: overrides the environment's own limit.
        record_qpos: also return generalised positions (T, E, Q), for rendering.
    """

    env_id: str
    tasks: tuple[TaskParameters, ...]
    seed: int
    num_steps: int | None
    policy: str
    weights: Arrays = field(default_factory=dict)
    policy_options: Mapping[str, Json] = field(default_factory=dict)
    snapshot: Arrays | None = None
    policy_state: NDArray[np.float32] | None = None
    carry_state: bool = False
    noise_seed: int | None = None
    max_episode_steps: int | None = None
    record_qpos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeStatistics:
    """One finished episode: which environment, undiscounted return, steps, forward distance in metres."""

    environment: int
    total_reward: float
    length: int
    distance_m: float
    terminated: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutResult:
    """What a rollout gave.

    Attributes:
        columns: arrays with leading shape (T, E): ``observation`` (T, E, O) float32, ``action`` (T, E, A) float32 as
            the policy gave it (the bridge scales [-1, 1] to the environment's limits), ``reward`` (T, E) float32,
            ``next_observation`` (T, E, O) float32, ``terminated``, ``truncated``, ``reset`` (true where the policy's
            state was reset: where this row starts an episode, see ``carry_state``), ``valid`` (T, E) bool; and
            ``qpos`` where asked for.
        snapshot: state of all environments after the last step: continuing from it equals not having stopped.
        policy_state: (E, S) after the last step.
        episodes: the episodes that ended, ordered by step and environment.
        num_steps: environment steps really taken, summed over environments.
    """

    columns: Arrays
    snapshot: Arrays
    policy_state: NDArray[np.float32]
    episodes: tuple[EpisodeStatistics, ...]
    num_steps: int


class Bridge(Protocol):
    """The client side of a bridge process (`env_bridge.client.BridgeClient`)."""

    async def describe(self, env_id: str) -> EnvironmentSpec:
        """Sizes and limits of ``env_id``. Raises ``ConfigError`` for an unknown id."""
        ...

    async def rollout(self, request: RolloutRequest) -> RolloutResult:
        """Perform ``request``; a bridge that dies meanwhile is waited for and asked again.

        Raises:
            ConfigError: the request does not fit the environment.
            PeerLost: no bridge answered within the client's patience.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection."""
        ...
