"""What steps: a simulation of N environments behind one seam, and its fast form for the robots of `env_bridge.robots`.

Letters: E environments, O observation, A action, S integration state, Q generalised positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from env_bridge.dynamics import dynamics_key, load_model, shifted_model
from env_bridge.robots.anatomy import Floats, Goals, Robot, Transition
from env_bridge.tasks import has_own_reward
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

STATE: Final = mujoco.mjtState.mjSTATE_INTEGRATION
DIVERGENCE: Final = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)


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
    action_low: Floats
    action_high: Floats
    timestep_s: float
    model: mujoco.MjModel | None
    """With nominal dynamics; ``None`` where the environment is not MuJoCo's."""

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Change what the environments ask for and their dynamics; simulation states stay. Raises ``ConfigError``."""
        ...

    def reset(self, index: int, generator: np.random.Generator) -> None:
        """Draw an initial state for environment ``index``."""
        ...

    def step(self, action: NDArray[np.float32], indices: Sequence[int]) -> Outcome:
        """Step the environments of ``indices`` with their rows of ``action`` (E, A)."""
        ...

    def observe(self) -> Floats:
        """Current observations (E, O), a new array."""
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

    ``mj_step`` releases the interpreter lock, so that threads scale until Python's share of a step is the limit.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers - 1, thread_name_prefix="stepping") if workers > 1 else None

    def each(self, work: Callable[[int], None], indices: Sequence[int]) -> None:
        """Call ``work`` for every index; which thread does it never changes a bit."""
        if self._pool is None:
            for index in indices:
                work(index)
            return
        size = math.ceil(len(indices) / self._workers)
        pieces = [indices[start : start + size] for start in range(0, len(indices), size)]
        futures = [self._pool.submit(_walk, work, piece) for piece in pieces[1:]]
        try:
            if pieces:
                _walk(work, pieces[0])
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown()


def _walk(work: Callable[[int], None], indices: Sequence[int]) -> None:
    for index in indices:
        work(index)


def make_goals(tasks: Sequence[TaskParameters], *, planar: bool) -> Goals:
    """Goals of a batch of tasks. Raises ``ConfigError`` for a heading that a planar robot cannot have."""
    velocity = np.array([np.nan if task.velocity is None else task.velocity for task in tasks])
    heading = np.zeros((len(tasks), 2))
    heading[:, 0] = 1.0
    for row, task in zip(heading, tasks, strict=True):
        if task.direction is None:
            continue
        if planar and abs(math.sin(task.direction)) > 1e-6:
            raise ConfigError(f"task parameter direction={task.direction:g}: a planar robot can only go 0 or pi")
        row[:] = (math.cos(task.direction), 0.0 if planar else math.sin(task.direction))
    return Goals(velocity=velocity, heading=heading, is_own=all(has_own_reward(task) for task in tasks))


class RobotSimulation:
    """The fast form: MuJoCo is called directly, and observation and reward are computed for all environments at once.

    Equal to Gymnasium's class of the same robot to the last bit. Environments with nominal dynamics share one model.
    """

    def __init__(self, robot: Robot, num_envs: int, workers: int) -> None:
        self._robot = robot
        self.model: mujoco.MjModel = load_model(robot.xml_file)
        self._models = [self.model] * num_envs
        self._datas = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self._initial = (self._datas[0].qpos.copy(), self._datas[0].qvel.copy())
        self._crew = Crew(workers)
        self._goals = make_goals([TaskParameters()] * num_envs, planar=robot.planar)
        self.num_envs = num_envs
        self.action_low, self.action_high = self.model.actuator_ctrlrange.T.copy()
        self.timestep_s = self.model.opt.timestep * robot.frame_skip
        self._computed = robot.computed()
        self._allocate()

    def _allocate(self) -> None:
        """Batched fields, and per environment the pairs (row of the batch, view of the simulation)."""
        views = {name: [read(self.model, data) for data in self._datas] for name, read in self._robot.views().items()}
        first = {name: rows[0] for name, rows in views.items()}
        first.update({name: compute(self.model, self._datas[0]) for name, compute in self._computed.items()})
        self._fields = {name: np.zeros((self.num_envs, *row.shape)) for name, row in first.items()}
        self._pairs: list[list[tuple[NDArray[np.generic], NDArray[np.generic]]]] = [
            [(self._fields[name][index], rows[index]) for name, rows in views.items()] for index in range(self.num_envs)
        ]
        self._ctrl = [data.ctrl for data in self._datas]
        warnings = [data.warning.number[DIVERGENCE] for data in self._datas]
        self._warnings = np.zeros((self.num_envs, len(warnings[0])), dtype=warnings[0].dtype)
        for pairs, row, view in zip(self._pairs, self._warnings, warnings, strict=True):
            pairs.append((row, view))

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Change goals and dynamics; simulation states stay."""
        goals = make_goals(tasks, planar=self._robot.planar)
        models: dict[tuple[object, ...], mujoco.MjModel] = {}
        for task in tasks:
            models.setdefault(dynamics_key(task), shifted_model(self.model, task))
        self._models = [models[dynamics_key(task)] for task in tasks]
        self._goals = goals

    def reset(self, index: int, generator: np.random.Generator) -> None:
        """Draw an initial state, as Gymnasium's ``reset_model`` does."""
        model, data = self._models[index], self._datas[index]
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = self._robot.draw_state(generator, *self._initial)
        mujoco.mj_forward(model, data)
        self._gather(index)

    def _gather(self, index: int) -> None:
        for row, view in self._pairs[index]:
            np.copyto(row, view)
        if self._computed:
            for name, compute in self._computed.items():
                self._fields[name][index] = compute(self._models[index], self._datas[index])

    def step(self, action: NDArray[np.float32], indices: Sequence[int]) -> Outcome:
        """Step with Gymnasium's reward and termination, or those of the goals."""
        before = self._robot.locate(self._fields)
        frame_skip, reads_forces = self._robot.frame_skip, self._robot.reads_contact_forces

        def work(index: int) -> None:
            self._ctrl[index][:] = action[index]
            model, data = self._models[index], self._datas[index]
            mujoco.mj_step(model, data, nstep=frame_skip)
            if reads_forces:
                mujoco.mj_rnePostConstraint(model, data)
            self._gather(index)

        self._crew.each(work, indices)
        velocity = (self._robot.locate(self._fields) - before) / self.timestep_s
        given = Transition(fields=self._fields, velocity=velocity, action=action, goals=self._goals)
        reward, terminated = self._robot.judge(given)
        return Outcome(
            reward=reward,
            terminated=terminated,
            truncated=np.zeros(self.num_envs, dtype=np.bool_),
            diverged=self._warnings.any(axis=1) | ~np.isfinite(reward),
        )

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
        physics = np.zeros((self.num_envs, mujoco.mj_stateSize(self.model, STATE)))
        for row, model, data in zip(physics, self._models, self._datas, strict=True):
            mujoco.mj_getState(model, data, row, STATE)
        return {"physics": physics} | {f"field.{name}": field.copy() for name, field in self._fields.items()}

    def set_state(self, state: Mapping[str, Floats]) -> None:
        """Return to an earlier ``get_state``; fits any simulation of the same robot and size."""
        rows = (self.num_envs, mujoco.mj_stateSize(self.model, STATE))
        expected = {"physics": rows} | {f"field.{name}": field.shape for name, field in self._fields.items()}
        check_state(state, expected)
        for row, model, data in zip(state["physics"], self._models, self._datas, strict=True):
            mujoco.mj_resetData(model, data)
            mujoco.mj_setState(model, data, row, STATE)
        for name, field in self._fields.items():
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
