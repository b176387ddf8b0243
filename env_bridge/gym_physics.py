"""The general form of a simulation: any Gymnasium id with box spaces, stepped through its own class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from env_bridge.dynamics import ModelPool
from env_bridge.infos import Columns, Told
from env_bridge.models import make_environments
from env_bridge.physics import Outcome, check_state
from env_bridge.robots.anatomy import Floats
from env_bridge.stepping import FIRST_WARNING, LAST_WARNING, STATE
from env_bridge.tasks import has_nominal_dynamics, has_own_reward
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

NO_WARNINGS: Final = np.zeros(0, dtype=np.int32)
ARRAYS: Final = (Box, Discrete, MultiBinary, MultiDiscrete)
DERIVED: Final = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "subtree_com",
    "cinert", "cvel", "cacc", "cfrc_int", "cfrc_ext", "qacc", "qfrc_actuator", "qfrc_bias", "qfrc_constraint",
    "actuator_force", "actuator_length", "actuator_velocity", "ten_length", "ten_velocity", "sensordata",
    "cam_xpos", "cam_xmat", "light_xpos", "light_xdir",
)  # fmt: skip
"""Arrays of ``MjData`` that observations, rewards and pictures are made of; they lag the state by one physics step."""


class Threads:
    """W threads (this one included) that share the environments of a step in contiguous pieces.

    Stepping hardly needs the interpreter's lock, so that threads scale until Python's share of a step is the limit.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers - 1, thread_name_prefix="stepping") if workers > 1 else None

    def share(self, work: Callable[[NDArray[np.int64]], None], indices: NDArray[np.int64]) -> None:
        """Call ``work`` with pieces of ``indices``; who does which never changes a bit."""
        if self._pool is None:
            work(indices)
            return
        pieces = [piece for piece in np.array_split(indices, self._workers) if len(piece)]
        futures = [self._pool.submit(work, piece) for piece in pieces[1:]]
        try:
            if pieces:
                work(pieces[0])
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown()


class GymSimulation:
    """N environments made by ``gymnasium.make``, without its time limit; spaces of arrays only. Reset them first.

    MuJoCo's can be saved, restored and given other dynamics (not another reward). What a class keeps in Python besides
    MuJoCo's state is not saved; none of Gymnasium's own keeps any that a step depends on. Other classes can be saved
    where they have ``get_state`` and ``set_state`` (an array that holds everything a step depends on).
    """

    def __init__(self, env_id: str, num_envs: int, workers: int, options: Mapping[str, Any]) -> None:
        self._envs = make_environments(env_id, num_envs, options)
        self._is_started = [False] * num_envs
        self.metadata: Mapping[str, Any] = self._envs[0].metadata
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        for space in (self.observation_space, self.action_space):
            if not isinstance(space, ARRAYS):
                raise ConfigError(
                    f"{env_id} has a space {type(space).__name__}; expected one of arrays: Box, Discrete, "
                    "MultiDiscrete or MultiBinary"
                )
        is_box = isinstance(self.action_space, Box)
        self.action_low, self.action_high = (
            np.array(limit if is_box else (), dtype=np.float64)
            for limit in (getattr(self.action_space, "low", ()), getattr(self.action_space, "high", ()))
        )
        self._env_id = env_id
        self._threads = Threads(workers)
        self.num_envs = num_envs
        self._mujoco = [env.unwrapped for env in self._envs if isinstance(env.unwrapped, MujocoEnv)]
        self._saveable: list[Any] = [
            env.unwrapped for env in self._envs if hasattr(env.unwrapped, "get_state") and not self._mujoco
        ]
        self.model: mujoco.MjModel | None = self._mujoco[0].model if self._mujoco else None
        self._pool = None if self.model is None else ModelPool(self.model)
        self.timestep_s = float(self._mujoco[0].dt) if self._mujoco else 1.0
        self._observation = np.zeros((num_envs, *(self.observation_space.shape or ())), self.observation_space.dtype)
        self._reward = np.zeros(num_envs)
        self._distance = np.zeros(num_envs)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._diverged = np.zeros(num_envs, dtype=np.bool_)
        self._warnings = [env.data.warning.number[FIRST_WARNING : LAST_WARNING + 1] for env in self._mujoco]
        self._told: list[dict[str, Any]] = [{} for _ in range(num_envs)]

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Change dynamics. Raises ``ConfigError`` for a goal, or where it is not MuJoCo."""
        if not all(has_own_reward(task) for task in tasks):
            raise ConfigError(
                f"{self._env_id} has no target velocity, direction or position; "
                "HalfCheetah, Ant, Humanoid, Walker2d and Hopper (v4, v5) have"
            )
        if self._pool is None:
            if not all(has_nominal_dynamics(task) for task in tasks):
                raise ConfigError(f"{self._env_id} is not a MuJoCo environment: its dynamics cannot be shifted")
            return
        for env, model in zip(self._mujoco, self._pool.assign(tasks), strict=True):
            env.model = model

    def reset(
        self,
        index: int,
        generator: np.random.Generator,
        options: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> np.random.Generator:
        """Reset through the class, which makes its generators of ``seed``, or goes on with ``generator``."""
        env = self._envs[index]
        if env.unwrapped.np_random is not generator:
            env.unwrapped.np_random = generator
        given = None if options is None else dict(options)
        self._observation[index], info = env.reset(seed=seed, options=given)
        self._is_started[index] = True
        self._distance[index] = info.get("x_position", 0.0)
        self._told[index] = info
        return env.unwrapped.np_random

    def _start_all(self) -> None:
        """Reset what never was: Gymnasium refuses to step that, and a class may have no state yet."""
        for index, env in enumerate(self._envs):
            if not self._is_started[index]:
                env.reset()
                self._is_started[index] = True

    @property
    def members(self) -> Sequence[gymnasium.Env[Any, Any]]:
        """The environments themselves."""
        return self._envs

    def use_generators(self, generators: Sequence[np.random.Generator]) -> None:
        """Make them the classes' own."""
        for env, generator in zip(self._envs, generators, strict=True):
            env.unwrapped.np_random = generator

    def send(self, action: NDArray[Any], indices: NDArray[np.int64]) -> None:
        """Keep the actions: this process steps when it is waited for."""
        self._sent = (action, indices)

    def settle(self) -> None:
        """Nothing: `wait` steps."""

    def wait(self) -> Outcome:
        """Step through the class."""
        action, indices = self._sent

        def work(piece: NDArray[np.int64]) -> None:
            for index in piece.tolist():
                warnings = self._warnings[index] if self._mujoco else NO_WARNINGS
                warnings[...] = 0
                self._observation[index], reward, terminated, truncated, info = self._envs[index].step(action[index])
                self._diverged[index] = warnings.any()  # MuJoCo resets what diverged: its numbers are finite
                self._reward[index] = reward
                self._terminated[index], self._truncated[index] = terminated, truncated
                self._distance[index] = info.get("x_position", self._distance[index])
                self._told[index] = info

        self._threads.share(work, indices)
        finite = np.isfinite(self._reward) & np.isfinite(self._observation).reshape(self.num_envs, -1).all(axis=1)
        return Outcome(
            reward=self._reward.copy(),
            terminated=self._terminated.copy(),
            truncated=self._truncated.copy(),
            diverged=self._diverged | ~finite,
        )

    def observe(self) -> NDArray[Any]:
        """Current observations (E, O), in the environment's own type."""
        return self._observation.copy()

    def step_columns(self) -> Columns:
        """Nothing: infos are told one by one."""
        return {}

    def reset_columns(self) -> Columns:
        """Nothing: infos are told one by one."""
        return {}

    def told(self, indices: Sequence[int]) -> Told:
        """Infos of the last step or reset of ``indices``."""
        return tuple((index, self._told[index]) for index in indices)

    def distance(self) -> Floats:
        """``x_position`` of the info where the environment reports it, else zeros."""
        return self._distance.copy()

    def qpos(self) -> Floats:
        """Generalised positions (E, Q)."""
        self._require_mujoco()
        return np.stack([env.data.qpos for env in self._mujoco])

    def _require_mujoco(self) -> None:
        if self.model is None:
            raise ConfigError(f"{self._env_id} is not a MuJoCo environment: its state cannot be read")

    def get_state(self) -> dict[str, Floats]:
        """Integration state and derived arrays of MuJoCo, or the class's own state; empty where it has none."""
        if self.model is None:
            return self._own_state()
        physics = np.zeros((self.num_envs, mujoco.mj_stateSize(self.model, STATE)))
        for row, env in zip(physics, self._mujoco, strict=True):
            mujoco.mj_getState(env.model, env.data, row, STATE)
        state = {"physics": physics, "field.observation": self._observation.astype(np.float64)}
        state["field.distance"] = self._distance.copy()
        for name in DERIVED:
            state[f"field.{name}"] = np.stack([getattr(env.data, name) for env in self._mujoco])
        return state

    def set_state(self, state: Mapping[str, Floats]) -> None:
        """Return to an earlier ``get_state``."""
        self._start_all()
        if self.model is None and self._saveable:
            self._set_own_state(state)
            return
        self._require_mujoco()
        check_state(state, {name: array.shape for name, array in self.get_state().items()})
        for index, env in enumerate(self._mujoco):
            mujoco.mj_resetData(env.model, env.data)
            mujoco.mj_setState(env.model, env.data, state["physics"][index], STATE)
            for name in DERIVED:
                getattr(env.data, name)[...] = state[f"field.{name}"][index]
        self._observation[...] = state["field.observation"]
        self._distance[...] = state["field.distance"]

    def _own_state(self) -> dict[str, Floats]:
        if not self._saveable:
            return {}
        self._start_all()
        physics = np.stack([env.get_state() for env in self._saveable])
        return {
            "physics": physics,
            "field.observation": self._observation.astype(np.float64),
            "field.distance": self._distance.copy(),
        }

    def _set_own_state(self, state: Mapping[str, Floats]) -> None:
        check_state(state, {name: array.shape for name, array in self._own_state().items()})
        for env, row in zip(self._saveable, state["physics"], strict=True):
            env.set_state(row)
        self._observation[...] = state["field.observation"]
        self._distance[...] = state["field.distance"]

    def close(self) -> None:
        """Close the environments and end the stepping threads."""
        self._threads.close()
        for env in self._envs:
            env.close()
