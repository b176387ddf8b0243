"""N environments of one id with seeds, time limits and snapshots; resets are the caller's decision.

Letters: E environments, O observation, A action.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from env_bridge import linear_quadratic
from env_bridge.gym_physics import GymSimulation
from env_bridge.physics import Outcome, RobotSimulation, Simulation, check_state
from env_bridge.robots import robot_for
from env_bridge.robots.anatomy import Floats
from swarm.environment import EnvironmentSpec, TaskParameters
from swarm.errors import ActionError, ConfigError

linear_quadratic.register()
GENERATOR_WORDS: Final = 6  # 128-bit state, 128-bit increment, and numpy's buffered half word with its flag


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """What one step gave, each (E,) but ``observation`` (E, O); all float64 and bool.

    Attributes:
        observation: after the step, before any reset.
        diverged: the simulation broke down; nothing else of that row means anything.
    """

    observation: Floats
    reward: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    diverged: NDArray[np.bool_]

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Environments that must be reset before the next step."""
        return self.terminated | self.truncated | self.diverged


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """Gymnasium's registration of ``env_id``. Raises ``ConfigError`` naming the nearest id where there is none."""
    registered = gymnasium.registry.get(env_id)
    if registered is not None:
        return registered
    nearest = difflib.get_close_matches(env_id, [str(name) for name in gymnasium.registry], n=1, cutoff=0.0)
    raise ConfigError(f"unknown environment {env_id!r}; did you mean {nearest[0]!r}? (any Gymnasium id works)")


@cache
def check_environment(env_id: str, tasks: tuple[TaskParameters, ...]) -> None:
    """Make the environment once and give it each task, so that what cannot work is known before a run.

    Raises:
        ConfigError: no such id, spaces that no policy can live in, no time limit, or a task that does not fit.
    """
    env = VectorEnv(env_id, 1)
    try:
        for task in tasks:
            env.set_tasks((task,))
    finally:
        env.close()


def make_simulation(env_id: str, num_envs: int, workers: int) -> Simulation:
    """Build the fastest exact simulation of ``env_id``. Raises ``ConfigError`` where Gymnasium cannot make it."""
    find_spec(env_id)
    robot = robot_for(env_id)
    if robot is not None:
        return RobotSimulation(robot, num_envs, workers)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*The environment .* is out of date", category=DeprecationWarning
            )
            return GymSimulation(env_id, num_envs, workers)
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"Gymnasium cannot make {env_id}: {error}") from error


class VectorEnv:
    """N environments in this process, stepped by ``workers`` threads: the same bits for any number of them.

    Each environment has its own generator, equal to Gymnasium's ``np_random`` for the same seed.
    """

    def __init__(self, env_id: str, num_envs: int, *, workers: int = 1, max_episode_steps: int | None = None) -> None:
        if num_envs < 1 or workers < 1:
            raise ConfigError(f"got {num_envs} environments and {workers} workers; expected at least one of each")
        registered = find_spec(env_id)
        self._limit = registered.max_episode_steps
        self.env_id = env_id
        self.num_envs = num_envs
        self.simulation = make_simulation(env_id, num_envs, workers)
        self.generators = [np.random.Generator(np.random.PCG64(index)) for index in range(num_envs)]
        self.elapsed = np.zeros(num_envs, dtype=np.int64)
        self.tasks: tuple[TaskParameters, ...] = (TaskParameters(),) * num_envs
        self.set_time_limit(max_episode_steps)

    def set_time_limit(self, max_episode_steps: int | None) -> None:
        """Set the time limit; ``None``: the environment's own. Raises ``ConfigError`` where there is neither."""
        limit = self._limit if max_episode_steps is None else max_episode_steps
        if limit is None or limit < 1:
            raise ConfigError(f"{self.env_id}: got max_episode_steps={limit}, expected a number of steps above 0")
        self.max_episode_steps = limit

    @property
    def spec(self) -> EnvironmentSpec:
        """Sizes and limits."""
        return EnvironmentSpec(
            env_id=self.env_id,
            observation_size=self.simulation.observe().shape[1],
            action_size=len(self.simulation.action_low),
            action_low=tuple(self.simulation.action_low.tolist()),
            action_high=tuple(self.simulation.action_high.tolist()),
            max_episode_steps=self.max_episode_steps,
            timestep_s=float(self.simulation.timestep_s),
        )

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Give each environment its task, from the next step on. Raises ``ConfigError`` where one does not fit."""
        if len(tasks) != self.num_envs:
            raise ConfigError(f"got {len(tasks)} tasks for {self.num_envs} environments")
        if tuple(tasks) != self.tasks:
            self.simulation.set_tasks(tasks)
            self.tasks = tuple(tasks)

    def seed(self, seeds: Sequence[int | Sequence[int]]) -> None:
        """Give environment e the generator of ``SeedSequence(seeds[e])``, as Gymnasium's ``reset(seed)`` does."""
        self.generators = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))) for seed in seeds]

    def reset(self, indices: Iterable[int] | None = None) -> Floats:
        """Start new episodes in ``indices`` (all, by default); return all observations (E, O)."""
        for index in range(self.num_envs) if indices is None else indices:
            self.simulation.reset(index, self.generators[index])
            self.elapsed[index] = 0
        return self.simulation.observe()

    def check_action(self, action: NDArray[np.float32]) -> None:
        """Raise ``ActionError`` naming environment and index of the first value that is not finite."""
        if action.shape != (self.num_envs, len(self.simulation.action_low)):
            wanted = (self.num_envs, len(self.simulation.action_low))
            raise ActionError(f"actions have shape {action.shape}, expected {wanted}; nothing was stepped")
        if not np.isfinite(action).all():
            environment, index = (int(place) for place in np.argwhere(~np.isfinite(action))[0])
            value = action[environment, index]
            raise ActionError(f"action {index} of environment {environment} is {value}; nothing was stepped")

    def step(self, action: NDArray[np.float32], active: NDArray[np.bool_] | None = None) -> Step:
        """Step all environments, or those that are ``active`` (the others' rows then mean nothing).

        Raises:
            ActionError: a value is not finite or the shape is wrong; nothing was stepped.
        """
        self.check_action(action)
        indices = range(self.num_envs) if active is None else [int(index) for index in np.flatnonzero(active)]
        outcome: Outcome = self.simulation.step(action, indices)
        self.elapsed[indices] += 1
        observation = self.simulation.observe()
        return Step(
            observation=observation,
            reward=outcome.reward,
            terminated=outcome.terminated & ~outcome.diverged,
            truncated=(outcome.truncated | (self.elapsed >= self.max_episode_steps)) & ~outcome.diverged,
            diverged=outcome.diverged | ~np.isfinite(observation).all(axis=1),
        )

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the future depends on: simulation, generators, elapsed steps. Leading axis E."""
        state: dict[str, NDArray[np.generic]] = dict(self.simulation.get_state())
        state["elapsed"] = self.elapsed.copy()
        state["generator"] = np.array([_pack(generator) for generator in self.generators], dtype=np.uint64)
        return state

    def set_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Return to an earlier ``get_state``. Raises ``ConfigError`` where it does not fit; then nothing changes."""
        elapsed = take(state, "elapsed", np.int64, (self.num_envs,))
        words = take(state, "generator", np.uint64, (self.num_envs, GENERATOR_WORDS))
        simulated = {name: array for name, array in state.items() if name == "physics" or name.startswith("field.")}
        check_state(simulated, {})
        self.simulation.set_state(simulated)  # type: ignore[arg-type]  # dtypes are checked inside
        self.elapsed[...] = elapsed
        self.generators = [_unpack(row) for row in words]

    def close(self) -> None:
        """Release the simulation."""
        self.simulation.close()


def take(
    state: Mapping[str, NDArray[np.generic]], name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """The array ``name`` of a snapshot. Raises ``ConfigError`` unless it has ``dtype`` and ``shape``."""
    array = state.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        got = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise ConfigError(f"snapshot array {name!r}: got {got}, expected {np.dtype(dtype)} {shape}")
    return array


_WORD = 1 << 64


def _pack(generator: np.random.Generator) -> tuple[int, ...]:
    state = generator.bit_generator.state
    inner = state["state"]
    words = (*divmod(inner["state"], _WORD), *divmod(inner["inc"], _WORD), state["has_uint32"], state["uinteger"])
    return tuple(int(word) for word in words)


def _unpack(words: NDArray[np.generic]) -> np.random.Generator:
    high, low, inc_high, inc_low, has_half, half = (int(word) for word in words)
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high * _WORD + low, "inc": inc_high * _WORD + inc_low},
        "has_uint32": has_half,
        "uinteger": half,
    }
    return generator
