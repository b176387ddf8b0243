"""`BridgeVectorEnv`: the environments of the bridge in this process, as a ``gymnasium.vector.VectorEnv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from env_bridge import vector_env
from env_bridge.robots.anatomy import Floats
from swarm.environment import EnvironmentSpec, TaskParameters
from swarm.errors import ConfigError

PENDING: Final = "pending_reset"


class BridgeVectorEnv(VectorEnv[Floats, NDArray[np.float32], NDArray[Any]]):
    """N environments of one id; autoreset in the step that follows an end (Gymnasium's ``NEXT_STEP``).

    Observations, rewards and flags equal ``gymnasium.make_vec(env_id, num_envs)`` bit for bit; infos are empty. A
    simulation that diverges is truncated.

    Args:
        env_id: a Gymnasium id.
        num_envs: how many.
        workers: stepping threads; they never change a bit.
        max_episode_steps: overrides the environment's own limit.
        tasks: task parameters per environment.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        workers: int = 1,
        max_episode_steps: int | None = None,
        tasks: Sequence[TaskParameters] | None = None,
    ) -> None:
        self._env = vector_env.VectorEnv(env_id, num_envs, workers=workers, max_episode_steps=max_episode_steps)
        if tasks is not None:
            self._env.set_tasks(tasks)
        self.num_envs = num_envs
        self.spec = gymnasium.registry[env_id]
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        simulation, size = self._env.simulation, self._env.spec.observation_size
        self.single_observation_space = Box(-np.inf, np.inf, (size,), np.float64)
        low, high = simulation.action_low.astype(np.float32), simulation.action_high.astype(np.float32)
        self.single_action_space = Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._pending = np.zeros(num_envs, dtype=np.bool_)
        self._env.seed([int(word) for word in np.random.SeedSequence().generate_state(num_envs)])
        self._env.reset()

    def describe(self) -> EnvironmentSpec:
        """Sizes and limits."""
        return self._env.spec

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Reset all; environment e gets ``seed + e`` where ``seed`` is a number. ``options`` is not used."""
        if isinstance(seed, int):
            seed = [seed + index for index in range(self.num_envs)]
        if seed is not None:
            fresh = [generator if given is None else seed_generator(given) for given, generator in self._pairs(seed)]
            self._env.generators = fresh
        self._pending[:] = False
        return self._env.reset(), {}

    def _pairs(self, seeds: Sequence[int | None]) -> list[tuple[int | None, np.random.Generator]]:
        if len(seeds) != self.num_envs:
            raise ConfigError(f"got {len(seeds)} seeds for {self.num_envs} environments")
        return list(zip(seeds, self._env.generators, strict=True))

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step what runs and reset what ended in the step before (its action is ignored, its reward 0).

        Raises:
            ActionError: an action is not finite; nothing was stepped.
        """
        pending = self._pending
        step = self._env.step(np.asarray(actions, dtype=np.float32), ~pending if pending.any() else None)
        observation, reward = step.observation, step.reward
        terminated, truncated = step.terminated & ~pending, (step.truncated | step.diverged) & ~pending
        if pending.any():
            observation = self._env.reset([int(index) for index in np.flatnonzero(pending)])
            reward = np.where(pending, 0.0, reward)
        self._pending = terminated | truncated
        return observation, reward, terminated, truncated, {}

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the future depends on, as plain arrays with leading axis E."""
        return self._env.get_state() | {PENDING: self._pending.copy()}

    def set_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Return to an earlier ``get_state``. Raises ``ConfigError`` where it does not fit."""
        pending = vector_env.take(state, PENDING, np.bool_, (self.num_envs,))
        self._env.set_state(state)
        self._pending = np.array(pending, dtype=np.bool_)

    def close_extras(self, **kwargs: object) -> None:
        """Release stepping threads (called once by ``close``)."""
        self._env.close()


def seed_generator(seed: int) -> np.random.Generator:
    """The generator that Gymnasium makes of ``seed``."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
