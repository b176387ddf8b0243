"""N environments of one id with seeds, time limits, tasks and snapshots; resets are the caller's decision.

Letters: E environments, O observation, A action.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Integral
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from env_bridge import action_arrays, linear_quadratic
from env_bridge.crew import Crew, ThreadCrew
from env_bridge.generators import GENERATOR_WORDS, pack_generator, unpack_generator
from env_bridge.gym_physics import GymSimulation
from env_bridge.infos import Columns, Told
from env_bridge.physics import Outcome, RobotSimulation, Simulation
from env_bridge.robots import PICTURE_OPTIONS, robot_for
from env_bridge.robots.anatomy import Floats, Robot
from env_bridge.robots.options import PICTURES, read_options
from env_bridge.sensors import Sensors, check_sensors
from env_bridge.stepping import are_finite, count_step
from swarm.environment import EnvironmentSpec, TaskParameters
from swarm.errors import ActionError, ConfigError

linear_quadratic.register()


class Step(NamedTuple):
    """What one step gave, each (E,) but ``observation`` (E, O).

    Attributes:
        observation: after the step, before any reset.
        diverged: the simulation broke down; the rest of that row means nothing, and is zero or false.
        info: by key (E, …); only where infos were asked for.
        told: infos of environments that step through their own class, as (index, info); only where asked for.
        lost: whose worker was lost: they are at the beginning of a new episode; ``None``: none.
    """

    observation: NDArray[Any]
    reward: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    diverged: NDArray[np.bool_]
    info: Columns
    told: Told
    lost: NDArray[np.bool_] | None = None

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
    raise ConfigError(
        f"unknown environment {env_id!r}; did you mean {nearest[0]!r}? (any registered id works "
        "whose spaces are Box, Discrete, MultiDiscrete or MultiBinary)"
    )


def check_time_limit(max_episode_steps: int | None) -> int | None:
    """Return the limit. Raises ``ConfigError`` unless it is a whole number of steps above 0, or ``None``."""
    if max_episode_steps is None:
        return None
    is_whole = isinstance(max_episode_steps, Integral) and not isinstance(max_episode_steps, bool)
    if not is_whole or max_episode_steps < 1:
        raise ConfigError(f"got max_episode_steps={max_episode_steps!r}; expected a whole number of steps above 0")
    return int(max_episode_steps)


def import_id(env_id: str) -> str:
    """Import the module of ``module:Id``, which registers it, as ``gymnasium.make`` does; return the ``Id``.

    Raises:
        ConfigError: there is no such module, or this is no text.
    """
    if not isinstance(env_id, str):
        raise ConfigError(f"got an environment of type {type(env_id).__name__}; expected its id, as text")
    module, _, name = env_id.rpartition(":")
    if module.startswith("."):
        raise ConfigError(f"environment {env_id!r}: expected the whole name of the module, without a dot before it")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(f"environment {env_id!r}: {error}; put the module where Python finds it") from error
    return name


@cache
def check_environment(env_id: str, tasks: tuple[TaskParameters, ...]) -> None:
    """Make the environment once and give it each task, so that what cannot work is known before a run.

    Raises:
        ConfigError: no such id, spaces that no policy can live in, no time limit, or a task that does not fit.
    """
    env = VectorEnv(env_id, 1)
    try:
        assert env.spec
        for task in tasks:
            env.set_tasks((task,))
    finally:
        env.close()


def make_simulation(
    env_id: str, num_envs: int, workers: int, options: Mapping[str, Any] | None = None, crew: Crew | None = None
) -> Simulation:
    """Build the fastest exact simulation of ``env_id`` with its class's constructor options.

    Raises:
        ConfigError: an option that the class does not have, or Gymnasium cannot make it.
    """
    robot = find_robot(env_id, options or {})
    if robot is not None:
        return RobotSimulation(robot, num_envs, crew or ThreadCrew(workers))
    given = {name: _as_tuple(value) for name, value in (options or {}).items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*The environment .* is out of date", category=DeprecationWarning
            )
            return GymSimulation(env_id, num_envs, workers, given)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ConfigError(f"Gymnasium cannot make {env_id}: {error}") from error


def find_robot(env_id: str, options: Mapping[str, Any]) -> Robot | None:
    """The robot of ``env_id`` with its class's constructor options, if it is one. Raises ``ConfigError``."""
    name = import_id(env_id)
    find_spec(name)
    given = {name: _as_tuple(value) for name, value in options.items() if name not in PICTURE_OPTIONS}
    robot = robot_for(name, given)
    if robot is not None:
        read_options(name, PICTURES, {}, {key: options[key] for key in PICTURE_OPTIONS & options.keys()})
    return robot


def check_undrawn(env_id: str, options: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for options about pictures of a robot, which nobody draws; other classes may need them."""
    if PICTURE_OPTIONS & options.keys() and find_robot(env_id, options) is not None:
        robot_for(import_id(env_id), options)  # which takes none of them


def _as_tuple(value: object) -> object:
    """Ranges come as lists from letters and TOML."""
    return tuple(value) if isinstance(value, list) else value


class VectorEnv:
    """N environments in this process, stepped by ``workers`` threads or a ``crew``: the same bits for any of them.

    Each environment has its own generator, equal to Gymnasium's ``np_random`` for the same seed.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        workers: int = 1,
        max_episode_steps: int | None = None,
        options: Mapping[str, Any] | None = None,
        infos: bool = False,
        crew: Crew | None = None,
    ) -> None:
        if num_envs < 1 or workers < 1:
            raise ConfigError(f"got {num_envs} environments and {workers} workers; expected at least one of each")
        self._limit = find_spec(env_id).max_episode_steps
        self._infos = infos
        self.env_id = env_id
        self.num_envs = num_envs
        self.simulation = make_simulation(env_id, num_envs, workers, options, crew)
        self._active: NDArray[np.bool_] | None = None
        self._restarted: list[int] = []
        self.generators = [np.random.Generator(np.random.PCG64(index)) for index in range(num_envs)]
        self._seeds: list[int | None] = [None] * num_envs  # to be told to the classes at their next reset
        self.elapsed = np.zeros(num_envs, dtype=np.int64)
        self.tasks: tuple[TaskParameters, ...] = (TaskParameters(),) * num_envs
        self._sensors = Sensors(num_envs)
        self._everyone, self._all = np.arange(num_envs), np.ones(num_envs, dtype=np.bool_)
        self.set_time_limit(max_episode_steps)

    def set_time_limit(self, max_episode_steps: int | None) -> None:
        """Set the time limit; ``None``: the environment's own, if it has one. Raises ``ConfigError`` below one step."""
        given = check_time_limit(max_episode_steps)
        self.max_episode_steps = self._limit if given is None else given
        self._last_step = min(self.max_episode_steps or sys.maxsize, sys.maxsize)

    @property
    def spec(self) -> EnvironmentSpec:
        """Sizes and limits. Raises ``ConfigError`` where a policy cannot live in them, or episodes need not end."""
        observation, action = _boxes(self.simulation, self.env_id)
        if self.max_episode_steps is None:
            raise ConfigError(f"{self.env_id} has no time limit; give max_episode_steps, a number of steps above 0")
        return EnvironmentSpec(
            env_id=self.env_id,
            observation_size=observation.shape[0],
            action_size=action.shape[0],
            action_low=tuple(self.simulation.action_low.tolist()),
            action_high=tuple(self.simulation.action_high.tolist()),
            max_episode_steps=self.max_episode_steps,
            timestep_s=float(self.simulation.timestep_s),
        )

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Give each environment its task, from the next step on. Raises ``ConfigError`` where one does not fit."""
        if len(tasks) != self.num_envs:
            raise ConfigError(f"got {len(tasks)} tasks for {self.num_envs} environments")
        if tuple(tasks) == self.tasks:
            return
        check_sensors(tasks, np.dtype(self.simulation.observation_space.dtype))
        before, self.tasks = self.tasks, ()  # unknown, should an interrupt come between
        try:
            self.simulation.set_tasks(tasks)
        except ConfigError:
            self.tasks = before
            raise
        self._sensors.set_tasks(tasks)
        self.tasks = tuple(tasks)

    def seed(self, seeds: Sequence[int | Sequence[int]]) -> None:
        """Give environment e the generator of ``SeedSequence(seeds[e])``, as Gymnasium's ``reset(seed)`` does."""
        self.generators = [seed_generator(seed) for seed in seeds]
        self._seeds = [seed if isinstance(seed, int) else None for seed in seeds]
        self._sensors.seed(range(self.num_envs))

    def reseed(self, seeds: Sequence[int | None]) -> None:
        """Give environment e the generator of ``seeds[e]``; where that is ``None``, it keeps the one it has."""
        for index, seed in enumerate(seeds):
            if seed is not None:
                self.generators[index], self._seeds[index] = seed_generator(seed), seed
                self._sensors.seed((index,))

    def reset(self, indices: Iterable[int] | None = None, options: Mapping[str, Any] | None = None) -> NDArray[Any]:
        """Start new episodes in ``indices`` (all, by default); return all observations (E, O).

        Args:
            options: for environments that step through their own class.
        """
        chosen = range(self.num_envs) if indices is None else list(indices)
        self._start(chosen, options)
        return self._sensors.reset(chosen, self.simulation.observe(), self.generators)

    def _start(self, indices: Iterable[int], options: Mapping[str, Any] | None = None) -> None:
        for index in indices:
            generator, seed = self.generators[index], self._seeds[index]
            self.generators[index] = self.simulation.reset(index, generator, options, seed)
            self._seeds[index] = None
            self.elapsed[index] = 0

    def observe(self) -> NDArray[Any]:
        """What is seen of all environments as they are, (E, O): what the last step or reset returned."""
        return self._sensors.last(self.simulation.observe())

    def reset_info(self) -> Columns:
        """What resets tell of all environments as they are now, by key (E, …)."""
        return self.simulation.reset_columns()

    def told(self, rows: NDArray[np.bool_]) -> Told:
        """What the last step or reset of ``rows`` told, of environments that step through their own class."""
        return self._told_of(rows)

    def check_action(self, action: NDArray[Any]) -> None:
        """Raise ``ActionError`` for a wrong shape, or naming environment and index of a value that is not finite."""
        wanted = (self.num_envs, *(self.simulation.action_space.shape or ()))
        check_action(action, wanted)

    def step(self, action: NDArray[Any], active: NDArray[np.bool_] | None = None) -> Step:
        """Step all environments, or those that are ``active`` (the others' rows then mean nothing).

        Raises:
            ActionError: a value is not finite or the shape is wrong; nothing was stepped.
        """
        self.check_action(action)
        self.send(action, active)
        return self.wait()

    def send(self, action: NDArray[Any], active: NDArray[np.bool_] | None = None) -> None:
        """Begin a `step` with checked actions. Until `wait`, only `restart` may be called."""
        self._active, self._restarted = active, []
        self.simulation.send(action, self._everyone if active is None else np.flatnonzero(active))

    def restart(self, indices: Sequence[int]) -> None:
        """Start new episodes in ``indices``, which are not active, while others are stepped; `wait` observes them."""
        self._start(indices)
        self._restarted = [*indices]

    def wait(self) -> Step:
        """Finish the step that was begun. Raises ``PeerLost`` where workers are lost again and again."""
        outcome: Outcome = self.simulation.wait()
        columns = self.simulation.step_columns() if self._infos else {}
        restarted, self._restarted = self._restarted, []
        stepped, lost = self._active, None
        if outcome.lost:
            lost = np.zeros(self.num_envs, dtype=np.bool_)
            lost[list(outcome.lost)] = True
            self._start(outcome.lost)
            restarted = [*restarted, *outcome.lost]
            stepped = ~lost if stepped is None else stepped & ~lost
        some = self._all if stepped is None else stepped
        truncated, terminated, diverged = outcome.truncated, outcome.terminated, outcome.diverged
        reward, observation = outcome.reward, self.simulation.observe()
        has_diverged, is_finite = count_step(
            self.elapsed, some, self._last_step, reward, truncated, diverged, observation
        )
        if not is_finite:
            diverged |= some & ~np.isfinite(observation).reshape(self.num_envs, -1).all(axis=1)
            has_diverged = True
        if has_diverged:  # nothing that is not finite leaves
            terminated, truncated = terminated & ~diverged, truncated & ~diverged
            reward = np.where(diverged, 0.0, reward)
            observation[diverged] = 0
        seen = self._sensors.sense(observation, stepped, self.generators)
        if restarted:
            seen = self._sensors.reset(restarted, observation, self.generators)
        told = self._told_of(stepped) if self._infos and not columns else ()
        return Step(seen, reward, terminated, truncated, diverged, columns, told, lost)

    def _told_of(self, rows: NDArray[np.bool_] | None) -> Told:
        return self.simulation.told(self._everyone.tolist() if rows is None else np.flatnonzero(rows).tolist())

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the future depends on: simulation, generators, elapsed steps. Leading axis E."""
        state: dict[str, NDArray[np.generic]] = dict(self.simulation.get_state()) | self._sensors.get_state()
        state["elapsed"] = self.elapsed.copy()
        state["generator"] = np.stack([pack_generator(generator) for generator in self.generators])
        return state

    def set_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Return to an earlier ``get_state``. Raises ``ConfigError`` where it does not fit; then nothing changes."""
        elapsed = take(state, "elapsed", np.int64, (self.num_envs,))
        words = take(state, "generator", np.uint64, (self.num_envs, GENERATOR_WORDS))
        simulated = {name: array for name, array in state.items() if name == "physics" or name.startswith("field.")}
        try:
            generators = [unpack_generator(row) for row in words]
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"snapshot array 'generator' holds no generators ({error})") from error
        sensors = self._sensors.get_state()
        self._sensors.set_state(state)
        try:
            self.simulation.set_state(simulated)  # type: ignore[arg-type]  # dtypes are checked inside
        except ConfigError:
            self._sensors.set_state(sensors)
            raise
        self.elapsed[...] = elapsed
        self.generators, self._seeds = generators, [None] * self.num_envs
        self.simulation.use_generators(generators)

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


def seed_generator(seed: int | Sequence[int]) -> np.random.Generator:
    """The generator that Gymnasium makes of ``seed``."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def check_action(action: NDArray[Any], wanted: tuple[int, ...]) -> None:
    """Raise ``ActionError`` unless actions have the ``wanted`` shape (E, …) and are finite."""
    if action.shape != wanted:
        action_arrays.check_shape(action, wanted)
    if action.dtype.kind == "f" and not are_finite(action):
        place = action_arrays.first(~np.isfinite(action))
        raise ActionError(f"{action_arrays.name(place)} is {action[place]}; {action_arrays.NOTHING}")


def _boxes(simulation: Simulation, env_id: str) -> tuple[Box, Box]:
    """Return the spaces of observations and of actions. Raises ``ConfigError`` where a policy cannot live in them."""
    observation, action = simulation.observation_space, simulation.action_space
    if isinstance(observation, Box) and isinstance(action, Box) and len(observation.shape) == len(action.shape) == 1:
        if np.isfinite([action.low, action.high]).all():
            return observation, action
        raise ConfigError(f"{env_id} has actions without limits; expected a Box with finite limits")
    found = [f"{type(space).__name__}{space.shape}" for space in (action, observation)]
    raise ConfigError(
        f"{env_id} has actions {found[0]} and observations {found[1]}; expected a one-dimensional Box of each"
    )
