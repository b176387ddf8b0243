"""What steps: a simulation of N environments behind one seam, and its fast form for the robots of `env_bridge.robots`.

Letters: E environments, O observation, A action, S integration state, Q generalised positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import mujoco
import numba
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from env_bridge.crew import Crew
from env_bridge.dynamics import Models
from env_bridge.goals import make_goals
from env_bridge.infos import Columns, Told
from env_bridge.models import load_robot_model
from env_bridge.robots.anatomy import Floats, Judgement, Robot, Transition
from env_bridge.stepping import FIELD, STATE, Board, Stepper, board_specs
from swarm.environment import TaskParameters
from swarm.errors import ConfigError, PeerLost


class Outcome(NamedTuple):
    """What one step of all environments gave, new arrays; rows of environments that were not stepped mean nothing.

    Attributes:
        reward: (E,) float64.
        terminated: (E,).
        truncated: (E,): cut off by the environment itself (the time limit is the vector environment's business).
        diverged: (E,): MuJoCo met a state that is not finite and reset it; of own classes, also a result that is not.
        lost: environments whose process was lost while it stepped them; they must be reset.
    """

    reward: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    diverged: NDArray[np.bool_]
    lost: tuple[int, ...] = ()


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

    def reset(
        self,
        index: int,
        generator: np.random.Generator,
        options: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> np.random.Generator:
        """Draw an initial state for environment ``index``; return the generator that it goes on with.

        Args:
            index: which environment.
            generator: to draw from.
            options: those of its class's ``reset``.
            seed: what ``generator`` was just made of, for a class that has others, too; ``None``: they go on.
        """
        ...

    def use_generators(self, generators: Sequence[np.random.Generator]) -> None:
        """Go on with these, one for each environment, where steps draw."""
        ...

    def send(self, action: NDArray[Any], indices: NDArray[np.int64]) -> None:
        """Begin to step the environments of ``indices`` with their rows of ``action`` (E, A); others may be reset."""
        ...

    def wait(self) -> Outcome:
        """Finish the step that was begun."""
        ...

    def settle(self) -> None:
        """Wait until nobody steps any more; interrupted, it may be called again. `wait` may follow, or another `send`.

        Raises:
            PeerLost: workers are lost again and again.
        """
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
        """Release what steps: threads, processes, environments."""
        ...


class RobotSimulation:
    """The fast form: MuJoCo is called directly, and observation and reward are computed for all environments at once.

    Equal to Gymnasium's class of the same robot to the last bit. Environments with nominal dynamics share one model
    and all that one thread or process steps share one ``mjData``: of each, only its integration state is kept.
    """

    def __init__(self, robot: Robot, num_envs: int, crew: Crew) -> None:
        self._robot = robot
        self.model: mujoco.MjModel = load_robot_model(robot)
        self._models = Models(self.model, num_envs)
        self._goals = make_goals([TaskParameters()] * num_envs, planar=robot.planar)
        self.num_envs = num_envs
        self.timestep_s = self.model.opt.timestep * robot.frame_skip
        self.crew = crew
        self._is_under_way = False
        self._lost: tuple[int, ...] = ()
        self._prepare()
        self.action_low, self.action_high = self.model.actuator_ctrlrange.T.copy()
        low, high = self.action_low.astype(np.float32), self.action_high.astype(np.float32)
        self.action_space: gymnasium.Space[Any] = Box(low, high, dtype=np.float32)
        size = robot.observe(self._fields).shape[1]
        self.observation_space: gymnasium.Space[Any] = Box(-np.inf, np.inf, (size,), np.float64)
        self._transition: Transition | None = None
        self._judgement: Judgement | None = None

    def _prepare(self) -> None:
        """Lay out the board and have the crew join."""
        data = mujoco.MjData(self.model)
        self._initial = (data.qpos.copy(), data.qvel.copy())
        views = {name: read(self.model, data) for name, read in self._robot.views().items()}
        specs = board_specs(self.model, views, self.num_envs)
        self._board = board = Board(self.crew.allocate(specs, self.model))
        mujoco.mj_getState(self.model, data, board.states[0], STATE)
        board.states[:] = board.states[0]
        self._constants = {
            name: np.stack([read(self.model)] * self.num_envs) for name, read in self._robot.constants().items()
        }
        self._fields = board.fields | self._constants
        self._before: Floats | None = None  # positions as they are, or before a step; where they are known
        addresses = self._models.addresses
        self._own = Stepper(self._robot, addresses, data, board)
        self.crew.join(self._own, lambda: Stepper(self._robot, addresses, mujoco.MjData(self.model), board))

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Change goals and dynamics; simulation states stay."""
        goals = make_goals(tasks, planar=self._robot.planar)
        self._models.assign(tasks)
        self._goals, self._before = goals, None
        for index, model in enumerate(self._models.each):
            for name, read in self._robot.constants().items():
                self._constants[name][index] = read(model)
        self.crew.set_tasks(tasks)

    def reset(
        self,
        index: int,
        generator: np.random.Generator,
        options: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> np.random.Generator:
        """Draw an initial state, as Gymnasium's ``reset_model`` does; there are no options to it."""
        model, data = self._models.each[index], self._own.data
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = self._robot.draw_state(generator, *self._initial)
        mujoco.mj_forward(model, data)
        self._own.gather(index)
        mujoco.mj_getState(model, data, self._board.states[index], STATE)
        if not self._is_under_way:
            self._before = None
        return generator

    def use_generators(self, generators: Sequence[np.random.Generator]) -> None:
        """Nothing: robots' steps draw nothing."""

    def send(self, action: NDArray[Any], indices: NDArray[np.int64]) -> None:
        """See `Simulation`."""
        self._located()
        self._board.write(action, indices)
        self._is_under_way = True
        self.crew.begin()

    def settle(self) -> None:
        """See `Simulation`."""
        if self._is_under_way:
            try:
                self._lost = self.crew.finish()
            except PeerLost:
                self._is_under_way, self._before = False, None
                raise
            self._is_under_way = False

    def wait(self) -> Outcome:
        """Reward and termination are Gymnasium's, or those of the goals."""
        self.settle()
        robot = self._robot
        assert self._before is not None, "send comes first"
        position = robot.locate(self._fields)
        velocity, goals = _velocity(self._before, position, self.timestep_s), self._goals.at(position)
        self._before = position
        self._transition = Transition(self._fields, position, velocity, self._board.action, goals)
        self._judgement = judgement = robot.judge(self._transition)
        truncated, diverged = np.zeros(self.num_envs, dtype=np.bool_), self._board.diverged.copy()
        return Outcome(judgement.reward, judgement.terminated, truncated, diverged, self._lost)

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
        return self._goals.speed(self._located()).copy()

    def _located(self) -> Floats:
        """Positions of the robots as they are, (E, …), computed once."""
        if self._before is None:
            self._before = self._robot.locate(self._fields)
        return self._before

    def qpos(self) -> Floats:
        """Generalised positions (E, Q)."""
        return self._fields["qpos"].copy()

    def get_state(self) -> dict[str, Floats]:
        """Integration state (warm start included), and the fields: MuJoCo's derived arrays lag by one physics step."""
        fields = {f"{FIELD}{name}": field.copy() for name, field in self._board.fields.items()}
        return {"physics": self._board.states.copy()} | fields

    def set_state(self, state: Mapping[str, Floats]) -> None:
        """Return to an earlier ``get_state``; fits any simulation of the same robot and size."""
        fields = {f"{FIELD}{name}": field.shape for name, field in self._board.fields.items()}
        check_state(state, {"physics": self._board.states.shape} | fields)
        self._before = None
        self._board.states[...] = state["physics"]
        for name, field in self._board.fields.items():
            field[...] = state[f"{FIELD}{name}"]

    def close(self) -> None:
        """End the rest of the crew."""
        self.crew.close()


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _velocity(before: Any, after: Any, timestep_s: float) -> Any:  # noqa: ANN401
    velocity = np.empty(after.shape)
    for e in range(after.shape[0]):
        for axis in range(after.shape[1]):
            velocity[e, axis] = (after[e, axis] - before[e, axis]) / timestep_s
    return velocity


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
