"""A rollout: a policy next to the physics, as `swarm.environment.RolloutRequest` specifies it.

Letters: T steps, E environments, O observation, A action, S policy state.

Everything is a pure function of the request. The policy acts on blocks of `BLOCK_SIZE` environments, so that the shape
of its kernels never depends on how many environments or stepping workers there are. Policies answer in [−1, 1], which
the columns keep; the environment is given that action scaled to its own limits.

On its way, a result is packed; see `packed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from env_bridge.neighbours import Share
from env_bridge.packed import unpack
from env_bridge.precision import scale_actions, to_float32, write_float32
from env_bridge.stepping import are_finite
from env_bridge.tasks import check_task
from env_bridge.vector_env import Step, VectorEnv, take
from swarm.environment import EpisodeStatistics, RolloutRequest, RolloutResult
from swarm.errors import ActionError, ConfigError, SwarmError
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE, Policy, PolicyFactory, PolicyInput

MAX_RESULT_BYTES: Final = 2 << 30
Columns = dict[str, NDArray[np.generic]]


class RolloutCancelled(SwarmError):
    """The rollout was told to stop; what it did has no effect."""


def load_policy(name: str, weights: Arrays, options: Mapping[str, Json]) -> Policy:
    """Build the policy of entry point ``name``. Raises ``ConfigError``: unknown name, or weights do not fit."""
    if name not in _installed_policies():
        _installed_policies.cache_clear()  # it may have been installed since
    found = _installed_policies()
    if name not in found:
        raise ConfigError(f"unknown policy {name!r}; installed policies: {', '.join(sorted(found))}")
    factory: PolicyFactory = found[name].load()
    return factory(weights, options)


@cache
def _installed_policies() -> Mapping[str, EntryPoint]:
    """Entry points by name; reading them takes as long as a hundred steps."""
    return {point.name: point for point in entry_points(group="swarm.policies")}


def check_request(request: RolloutRequest) -> None:
    """Raise ``ConfigError`` for counts and tasks that no environment accepts."""
    if not request.tasks or len(request.tasks) % BLOCK_SIZE:
        raise ConfigError(f"got {len(request.tasks)} tasks; expected a multiple of {BLOCK_SIZE} environments")
    if request.num_steps is not None and request.num_steps < 1:
        raise ConfigError(f"got num_steps={request.num_steps}; expected at least 1, or none for one episode each")
    for name, key in (("seed", request.seed), ("noise_seed", request.noise_seed)):
        if key is not None and not 0 <= key < 1 << 64:
            raise ConfigError(f"got {name}={key}; expected a whole number from 0 to 2^64 - 1")
    for task in request.tasks:
        check_task(task)


@dataclass(slots=True, kw_only=True, eq=False)
class Progress:
    """Where each environment stands in its episode: what a policy is told next, and the running statistics.

    Attributes:
        reward: (E,) float32, of the previous step.
        reset: (E,) whether the policy starts anew with the next row.
        total_reward: (E,) undiscounted return so far, float64.
        start: (E,) position along the heading where the episode began, in metres.
        state: (E, S) policy state.
    """

    reward: NDArray[np.float32]
    reset: NDArray[np.bool_]
    total_reward: NDArray[np.float64]
    start: NDArray[np.float64]
    state: NDArray[np.float32]


class Rollout:
    """One rollout over a vector environment that it may use freely. Call ``run`` once."""

    def __init__(self, request: RolloutRequest, env: VectorEnv, policy: Policy, share: Share | None = None) -> None:
        self._request = request
        self._share = share or Share(place=0, sizes=(env.num_envs,))
        self._env = env
        self._policy = policy
        self._takes_blocks = bool(getattr(policy, "takes_blocks", False))
        env.set_time_limit(request.max_episode_steps)
        env.set_tasks(request.tasks)
        spec = env.spec
        self._low = env.simulation.action_low
        self._high = env.simulation.action_high
        self._is_unit = bool((self._low == -1.0).all() and (self._high == 1.0).all())
        self._one_episode = request.num_steps is None
        self._length = spec.max_episode_steps if request.num_steps is None else request.num_steps
        self._active = np.ones(env.num_envs, dtype=np.bool_)
        self._everyone = True
        self._episodes: list[EpisodeStatistics] = []
        self._ended_observations: list[NDArray[np.float32]] = [np.zeros((0, spec.observation_size), dtype=np.float32)]
        self._columns = self._allocate(spec.observation_size, spec.action_size)
        self._observations = cast(NDArray[np.float32], self._columns["observation"])
        self._now = self._begin()

    def _allocate(self, observation_size: int, action_size: int) -> Columns:
        rows = (self._length, self._env.num_envs)
        row_bytes = 4 * (2 * observation_size + action_size + 2)
        if rows[0] * rows[1] * row_bytes > MAX_RESULT_BYTES:
            raise ConfigError(f"{rows[0]} steps of {rows[1]} environments do not fit into one answer; ask for fewer")
        columns: Columns = {
            "observation": np.zeros((rows[0] + 1, rows[1], observation_size), dtype=np.float32),
            "action": np.zeros((*rows, action_size), dtype=np.float32),
            "reward": np.zeros(rows, dtype=np.float32),
        }
        columns |= {name: np.zeros(rows, dtype=np.bool_) for name in ("terminated", "truncated", "reset", "valid")}
        return columns

    def _begin(self) -> Progress:
        """Reset everything, or return to the request's snapshot."""
        env, request, count = self._env, self._request, self._env.num_envs
        state = self._given_policy_state()
        if request.snapshot is None:
            env.seed([(request.seed, self._share.first + index) for index in range(count)])
            write_float32(env.reset(), self._observations[0])
            return Progress(
                reward=np.zeros(count, dtype=np.float32),
                reset=np.full(count, not (request.carry_state and request.policy_state is not None)),
                total_reward=np.zeros(count),
                start=env.simulation.distance(),
                state=state,
            )
        if not request.snapshot:
            raise ConfigError(f"{env.env_id} cannot be saved, so a rollout cannot be continued from a snapshot of it")
        env.set_state(request.snapshot)
        snapshot = request.snapshot
        write_float32(env.observe(), self._observations[0])
        return Progress(
            reward=np.array(take(snapshot, "reward", np.float32, (count,)), dtype=np.float32),
            reset=np.array(take(snapshot, "reset", np.bool_, (count,)), dtype=np.bool_),
            total_reward=np.array(take(snapshot, "total_reward", np.float64, (count,)), dtype=np.float64),
            start=np.array(take(snapshot, "start", np.float64, (count,)), dtype=np.float64),
            state=state,
        )

    def _given_policy_state(self) -> NDArray[np.float32]:
        shape = (self._env.num_envs, self._policy.state_size)
        given = self._request.policy_state
        if given is None:
            return np.zeros(shape, dtype=np.float32)
        if given.shape != shape or given.dtype != np.float32:
            raise ConfigError(f"policy_state: got {given.dtype} {given.shape}, expected float32 {shape}")
        return given.copy()

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> RolloutResult:
        """Step to the end; the result is packed.

        Raises:
            ActionError: the policy gave an action that is not finite.
            RolloutCancelled: ``should_stop`` said so.
        """
        seed = self._request.noise_seed
        noise = None if seed is None else np.random.Generator(np.random.Philox(key=seed))
        num_rows = num_steps = 0
        while num_rows < self._length and (self._everyone or self._active.any()):
            if should_stop():
                raise RolloutCancelled(f"stopped after {num_rows} steps")
            num_steps += self._env.num_envs if self._everyone else int(self._active.sum())
            self._step(num_rows, noise)
            num_rows += 1
        columns = {name: column[:num_rows] for name, column in self._columns.items()}
        columns["observation"] = self._observations[: num_rows + 1]
        columns["ended_observation"] = np.concatenate(self._ended_observations)
        return RolloutResult(
            columns=columns,
            snapshot=self._snapshot(),
            policy_state=self._now.state,
            episodes=tuple(self._episodes),
            num_steps=num_steps,
        )

    def _step(self, row: int, noise: np.random.Generator | None) -> None:
        now = self._now
        action = self._act(row, noise)
        self._write(row, "action", action)
        self._write(row, "reset", now.reset)
        if self._request.record_qpos:
            self._record_qpos(row)
        step = self._env.step(self._scale(action), None if self._everyone else self._active)
        is_finite, reward = write_float32(step.observation, self._observations[row + 1]), to_float32(step.reward)
        if self._everyone and is_finite and are_finite(reward) and not step.diverged.any():
            self._keep(row, step, reward)
        else:
            self._sort_out(row, step, reward)
        if not self._everyone:
            self._observations[row + 1][~self._active] = 0

    def _keep(self, row: int, step: Step, reward: NDArray[np.float32]) -> None:
        """Write a row of which everything is valid, and go on from there."""
        now, columns = self._now, self._columns
        columns["reward"][row] = reward
        columns["terminated"][row] = step.terminated
        columns["truncated"][row] = step.truncated
        columns["valid"][row] = True
        now.total_reward += step.reward
        now.reward = reward
        now.reset = np.zeros(len(reward), dtype=np.bool_)
        ended = step.terminated | step.truncated
        if ended.any():
            self._finish(row, step, ended, np.zeros_like(ended))

    def _sort_out(self, row: int, step: Step, reward: NDArray[np.float32]) -> None:
        """Write a row in which environments diverged or are through, and go on from there."""
        now, columns = self._now, self._columns
        following = self._observations[row + 1]
        diverged = step.diverged | ~np.isfinite(following).all(axis=1) | ~np.isfinite(reward)
        reward = np.where(diverged, np.float32(0.0), reward)
        self._write(row, "reward", reward)
        self._write(row, "terminated", step.terminated & ~diverged)
        self._write(row, "truncated", step.truncated & ~diverged)
        columns["valid"][row] = self._active & ~diverged
        now.total_reward += np.where(self._active & ~diverged, step.reward, 0.0)
        now.reward = np.where(self._active, reward, np.float32(0.0))
        now.reset = now.reset & ~self._active
        ended = (step.terminated | step.truncated | diverged) & self._active
        if ended.any():
            self._finish(row, step, ended, diverged)

    def _write(self, row: int, name: str, values: NDArray[np.generic]) -> None:
        """Write a row of a column; environments that are through keep zeros."""
        if self._one_episode:
            self._columns[name][row][self._active] = values[self._active]
        else:
            self._columns[name][row] = values

    def _record_qpos(self, row: int) -> None:
        qpos = self._env.simulation.qpos()
        if "qpos" not in self._columns:
            self._columns["qpos"] = np.zeros((self._length, *qpos.shape))
        self._write(row, "qpos", qpos)

    def _act(self, row: int, noise: np.random.Generator | None) -> NDArray[np.float32]:
        """Ask the policy; return its actions (E, A). Raises ``ActionError`` unless all are finite."""
        now = self._now
        given = PolicyInput(
            reset=now.reset,
            observation=self._observations[row],
            reward=now.reward,
            state=now.state,
            noise=self._draw((self._env.num_envs, len(self._low)), noise),
            started=self._env.elapsed == 0,
        )
        if self._takes_blocks:
            action, state = self._policy.act(given)
        else:
            blocks = [slice(first, first + BLOCK_SIZE) for first in range(0, self._env.num_envs, BLOCK_SIZE)]
            answers = [self._policy.act(given.rows(block)) for block in blocks]
            action, state = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        now.state = state if self._everyone else np.where(self._active[:, None], state, now.state)
        if not are_finite(action):
            environment, index = (int(place) for place in np.argwhere(~np.isfinite(action))[0])
            raise ActionError(
                f"the policy's action {index} of environment {environment} is {action[environment, index]}; "
                "nothing was stepped"
            )
        return action

    def _draw(self, shape: tuple[int, int], noise: np.random.Generator | None) -> NDArray[np.float32]:
        """Noise (E, A) of these environments."""
        if noise is None:
            return np.zeros(shape, dtype=np.float32)
        whole = noise.standard_normal((self._share.of, shape[1]), dtype=np.float32)
        return whole[self._share.first : self._share.first + shape[0]]

    def _scale(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map [−1, 1] to the limits of the environment; where they are the same, not a bit changes."""
        return action if self._is_unit else scale_actions(action, self._low, self._high)

    def _finish(self, row: int, step: Step, ended: NDArray[np.bool_], diverged: NDArray[np.bool_]) -> None:
        """Close the episodes that ended and start the next ones."""
        now, following = self._now, self._observations[row + 1]
        self._ended_observations.append(following[ended & ~diverged])
        indices = [int(index) for index in np.flatnonzero(ended)]
        distance = self._env.simulation.distance() - now.start
        for index in indices:
            if not diverged[index]:
                self._episodes.append(
                    EpisodeStatistics(
                        environment=index,
                        total_reward=float(now.total_reward[index]),
                        length=int(self._env.elapsed[index]),
                        distance_m=float(distance[index]),
                        terminated=bool(step.terminated[index]),
                    )
                )
        following[indices] = to_float32(self._env.reset(indices)[indices])
        if not self._request.carry_state:
            now.reward[indices] = 0.0
            now.reset[indices] = True
        now.total_reward[indices] = 0.0
        now.start[indices] = self._env.simulation.distance()[indices]
        if self._one_episode:
            self._active &= ~ended
            self._everyone = False

    def _snapshot(self) -> Columns:
        """State of everything but the policy; empty where the environment's own state cannot be read."""
        state = self._env.get_state()
        if "physics" not in state:
            return {}
        now = self._now
        return state | {
            "reward": now.reward.copy(),
            "reset": now.reset.copy(),
            "total_reward": now.total_reward.copy(),
            "start": now.start.copy(),
        }


def run_rollout(
    request: RolloutRequest,
    *,
    env: VectorEnv | None = None,
    workers: int = 1,
    policy: Policy | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RolloutResult:
    """Perform ``request`` in this process.

    Args:
        request: what to do.
        env: a vector environment of the right id and size to use; ``None``: a new one.
        workers: stepping threads of a new environment; they never change a bit of the result.
        policy: use this object instead of the request's entry point.
        should_stop: asked before each step.

    Raises:
        ConfigError: the request does not fit.
        ActionError: the policy gave an action that is not finite.
        RolloutCancelled: ``should_stop`` said so.
    """
    check_request(request)
    used = env or VectorEnv(request.env_id, len(request.tasks), workers=workers)
    try:
        return unpack(run_packed(request, used, policy=policy, should_stop=should_stop))
    finally:
        if env is None:
            used.close()


def run_packed(
    request: RolloutRequest,
    env: VectorEnv,
    *,
    policy: Policy | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    share: Share | None = None,
) -> RolloutResult:
    """`run_rollout` of a checked request, or of a ``share`` of a larger one; the result is packed."""
    chosen = policy or load_policy(request.policy, request.weights, request.policy_options)
    return Rollout(request, env, chosen, share).run(should_stop)
