"""What steps: a simulation of N environments behind one seam, and its fast form for the robots of `env_bridge.robots`.

Letters: E environments, O observation, A action, S integration state, Q generalised positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from env_bridge.dynamics import ModelPool
from env_bridge.goals import make_goals
from env_bridge.infos import Columns, Told
from env_bridge.models import load_robot_model
from env_bridge.robots.anatomy import Floats, Judgement, Robot, Transition
from env_bridge.stepping import STATE, Track
from swarm.environment import TaskParameters
from swarm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What one step of all environments gave; rows of environments that were not stepped mean nothing.

    Attributes:
        reward: (E,) float64.
        terminated: (E,).
        truncated: (E,): cut off by the environment itself (the time limit is the vector environment's business).
        diverged: (E,): MuJoCo met a state that is not finite and reset it, or the result is not finite.
    """

    reward: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    diverged: NDArray[np.bool_]


class Simulation(Protocol):
    """N environments of one id, stepped together; knows nothing of episodes' lengths or autoreset."""

    num_envs: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    action_low: Floats
    """(A,) limits in double precision; empty where actions are not numbers in a box."""
    action_high: Floats
    timestep_s: float
    model: mujoco.MjModel | None
    """With nominal dynamics; ``None`` where the environment is not MuJoCo's."""

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Change what the environments ask for and their dynamics; simulation states stay. Raises ``ConfigError``."""
        ...

    def reset(self, index: int, generator: np.random.Generator, options: Mapping[str, Any] | None = None) -> None:
        """Draw an initial state for environment ``index``; ``options`` are those of its class's ``reset``."""
        ...

    def step(self, action: NDArray[Any], indices: NDArray[np.int64]) -> Outcome:
        """Step the environments of ``indices`` with their rows of ``action`` (E, A)."""
        ...

    def observe(self) -> NDArray[Any]:
        """Current observations (E, O), a new array."""
        ...

    def step_columns(self) -> Columns:
        """Infos of the last step of all environments, by key (E, …); empty where they are told one by one."""
        ...

    def reset_columns(self) -> Columns:
        """Infos that a reset of each environment would tell now, by key (E, …)."""
        ...

    def told(self, indices: Sequence[int]) -> Told:
        """Infos of the last step or reset of ``indices``, of environments that step through their own class."""
        ...

    def distance(self) -> Floats:
        """Position along each environment's heading, (E,), in metres."""
        ...

    def qpos(self) -> Floats:
        """Generalised positions (E, Q), a new array. Raises ``ConfigError`` where the environment has none."""
        ...

    def get_state(self) -> dict[str, Floats]:
        """Everything that the next step depends on, leading axis E. Raises ``ConfigError`` where it cannot be read."""
        ...

    def set_state(self, state: Mapping[str, Floats]) -> None:
        """Return to an earlier ``get_state``. Raises ``ConfigError`` where names or shapes do not fit."""
        ...

    def close(self) -> None:
        """Release threads."""
        ...


class Crew:
    """W threads (this one included) that share the environments of a step in contiguous pieces.

    Stepping hardly needs the interpreter's lock, so that threads scale until Python's share of a step is the limit.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers - 1, thread_name_prefix="stepping") if workers > 1 else None

    def share(self, work: Callable[[NDArray[np.int64], int], None], indices: NDArray[np.int64]) -> None:
        """Call ``work`` with pieces of ``indices`` and their number, below W; who does which never changes a bit."""
        if self._pool is None:
            work(indices, 0)
            return
        pieces = [piece for piece in np.array_split(indices, self.workers) if len(piece)]
        futures = [self._pool.submit(work, piece, number) for number, piece in enumerate(pieces[1:], start=1)]
        try:
            if pieces:
                work(pieces[0], 0)
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown()


class RobotSimulation:
    """The fast form: MuJoCo is called directly, and observation and reward are computed for all environments at once.

    Equal to Gymnasium's class of the same robot to the last bit. Environments with nominal dynamics share one model
    and all that one thread steps share one ``mjData``: of each, only its integration state is kept.
    """

    def __init__(self, robot: Robot, num_envs: int, workers: int) -> None:
        self._robot = robot
        self.model: mujoco.MjModel = load_robot_model(robot)
        self._pool = ModelPool(self.model)
        self._models = [self.model] * num_envs
        self._crew = Crew(workers)
        self._goals = make_goals([TaskParameters()] * num_envs, planar=robot.planar)
        self.num_envs = num_envs
        self.timestep_s = self.model.opt.timestep * robot.frame_skip
        self._read_fields()
        self.action_low, self.action_high = self.model.actuator_ctrlrange.T.copy()
        low, high = self.action_low.astype(np.float32), self.action_high.astype(np.float32)
        self.action_space: gymnasium.Space[Any] = Box(low, high, dtype=np.float32)
        size = robot.observe(self._fields).shape[1]
        self.observation_space: gymnasium.Space[Any] = Box(-np.inf, np.inf, (size,), np.float64)
        self._transition: Transition | None = None
        self._judgement: Judgement | None = None

    def _read_fields(self) -> None:
        """Allocate states and batched fields, and connect them with one ``mjData`` for each thread."""
        datas = [mujoco.MjData(self.model) for _ in range(self._crew.workers)]
        self._initial = (datas[0].qpos.copy(), datas[0].qvel.copy())
        self._states = np.zeros((self.num_envs, mujoco.mj_stateSize(self.model, STATE)))
        mujoco.mj_getState(self.model, datas[0], self._states[0], STATE)
        self._states[:] = self._states[0]
        self._diverged = np.zeros(self.num_envs, dtype=np.bool_)
        sources = self._robot.views()
        views = [{name: read(self.model, data) for name, read in sources.items()} for data in datas]
        self._copied = {name: np.zeros((self.num_envs, *view.shape)) for name, view in views[0].items()}
        addresses = np.full(self.num_envs, self.model._address, np.int64)
        self._tracks = [
            Track(addresses, data, seen, self._copied, self._states) for data, seen in zip(datas, views, strict=True)
        ]
        self._addresses = addresses
        self._constants = {
            name: np.stack([read(self.model)] * self.num_envs) for name, read in self._robot.constants().items()
        }
        self._fields = self._copied | self._constants

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Change goals and dynamics; simulation states stay."""
        goals = make_goals(tasks, planar=self._robot.planar)
        for index, model in enumerate(self._pool.assign(tasks)):
            self._use_model(index, model)
        self._goals = goals

    def _use_model(self, index: int, model: mujoco.MjModel) -> None:
        self._models[index] = model
        self._addresses[index] = model._address
        for name, read in self._robot.constants().items():
            self._constants[name][index] = read(model)

    def reset(self, index: int, generator: np.random.Generator, options: Mapping[str, Any] | None = None) -> None:
        """Draw an initial state, as Gymnasium's ``reset_model`` does; there are no options to it."""
        model, track = self._models[index], self._tracks[0]
        mujoco.mj_resetData(model, track.data)
        track.data.qpos[:], track.data.qvel[:] = self._robot.draw_state(generator, *self._initial)
        mujoco.mj_forward(model, track.data)
        track.gather(index)
        mujoco.mj_getState(model, track.data, self._states[index], STATE)

    def step(self, action: NDArray[Any], indices: NDArray[np.int64]) -> Outcome:
        """Step with Gymnasium's reward and termination, or those of the goals."""
        robot, tracks, diverged = self._robot, self._tracks, self._diverged
        before = robot.locate(self._fields)

        def work(piece: NDArray[np.int64], thread: int) -> None:
            reads_forces = robot.reads_contact_forces
            tracks[thread].step(action, piece, diverged, robot.frame_skip, post_constraint=reads_forces)

        self._crew.share(work, indices)
        position = robot.locate(self._fields)
        velocity, goals = (position - before) / self.timestep_s, self._goals.at(position)
        self._transition = Transition(
            fields=self._fields, position=position, velocity=velocity, action=action, goals=goals
        )
        self._judgement = judgement = robot.judge(self._transition)
        diverged = diverged.copy()
        if not np.isfinite(judgement.reward).all():
            diverged |= ~np.isfinite(judgement.reward)
        return Outcome(
            reward=judgement.reward,
            terminated=judgement.terminated,
            truncated=np.zeros(self.num_envs, dtype=np.bool_),
            diverged=diverged,
        )

    def step_columns(self) -> Columns:
        """Infos of the last step. Call it before any reset."""
        assert self._transition is not None and self._judgement is not None, "a step comes first"  # noqa: PT018
        return self._robot.info(self._transition, self._judgement)

    def reset_columns(self) -> Columns:
        """Infos of environments that were just reset."""
        return self._robot.reset_info(self._fields)

    def told(self, indices: Sequence[int]) -> Told:
        """Nothing: infos come in columns."""
        return ()

    def observe(self) -> Floats:
        """Current observations (E, O)."""
        return self._robot.observe(self._fields)

    def distance(self) -> Floats:
        """Position of the robot's reference point along each heading, (E,)."""
        return self._goals.speed(self._robot.locate(self._fields)).copy()

    def qpos(self) -> Floats:
        """Generalised positions (E, Q)."""
        return self._fields["qpos"].copy()

    def get_state(self) -> dict[str, Floats]:
        """Integration state (warm start included), and the fields: MuJoCo's derived arrays lag by one physics step."""
        fields = {f"field.{name}": field.copy() for name, field in self._copied.items()}
        return {"physics": self._states.copy()} | fields

    def set_state(self, state: Mapping[str, Floats]) -> None:
        """Return to an earlier ``get_state``; fits any simulation of the same robot and size."""
        fields = {f"field.{name}": field.shape for name, field in self._copied.items()}
        check_state(state, {"physics": self._states.shape} | fields)
        self._states[...] = state["physics"]
        for name, field in self._copied.items():
            field[...] = state[f"field.{name}"]

    def close(self) -> None:
        """End the stepping threads."""
        self._crew.close()


def check_state(state: Mapping[str, NDArray[np.generic]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``ConfigError`` unless ``state`` has the ``expected`` arrays with their shapes, of finite float64."""
    for name, shape in expected.items():
        array = state.get(name)
        if array is None:
            raise ConfigError(f"snapshot without {name!r}: it belongs to another environment id or version")
        if array.shape != shape or array.dtype != np.float64:
            raise ConfigError(
                f"snapshot array {name!r}: got {array.dtype} {array.shape}, expected float64 {shape}; "
                "continue with as many environments of the same id as were saved"
            )
        if not np.isfinite(array).all():
            raise ConfigError(f"snapshot array {name!r} is not finite: it was not saved by a rollout")
