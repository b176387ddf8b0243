"""What every robot file gives: which simulation fields it reads, and Gymnasium's formulas over a batch of them.

Letters: E environments, O observation, A action, B bodies. A robot is immutable data (Gymnasium's constructor options)
plus pure functions over the batched fields, written in the same order of operations as the class that it equals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import mujoco
import numba
import numpy as np
from numpy.typing import NDArray

from env_bridge.goals import Goals

Floats: TypeAlias = NDArray[np.float64]
Fields: TypeAlias = Mapping[str, Floats]
FieldSource: TypeAlias = Callable[[mujoco.MjModel, mujoco.MjData], Floats]
ConstantSource: TypeAlias = Callable[[mujoco.MjModel], Floats]
Info: TypeAlias = dict[str, NDArray[Any]]


class Transition(NamedTuple):
    """One step of all environments, as a robot judges it.

    Attributes:
        fields: batched simulation fields after the step, and constants.
        position: (E, 2) of the robot's reference point after the step, in metres.
        velocity: (E, 2) m/s of the robot's reference point in the x-y plane over the step.
        action: (E, A) float32 as given to the environment.
        goals: what the environments ask for, seen from the robots' positions after the step.
    """

    fields: Fields
    position: Floats
    velocity: Floats
    action: NDArray[np.float32]
    goals: Goals


class Judgement(NamedTuple):
    """What a step earned; new arrays, each (E,), in the types that Gymnasium's terms have.

    Attributes:
        reward: float64.
        terminated: the robot fell, or whatever else ends its episode.
        forward: reward for speed, float64.
        survive: reward for being healthy, of robots that have one; integers where the option ``healthy_reward`` is one.
        control: cost of the actions, in float32 where Gymnasium squares the action itself.
        contact: cost of contact forces, float64, of robots that have one.
    """

    reward: Floats
    terminated: NDArray[np.bool_]
    forward: Floats
    control: NDArray[np.floating]
    survive: NDArray[Any] | None = None
    contact: Floats | None = None


class Robot(Protocol):
    """Observation, reward, termination and infos of one robot, equal to Gymnasium's class to the last bit.

    Attributes:
        xml_file: model file, as Gymnasium's environments take it.
        frame_skip: physics steps per environment step.
        planar: the robot moves in the x-z plane, so that its heading is 0 or π.
        reads_contact_forces: ``cfrc_ext`` is read, so ``mj_rnePostConstraint`` must run after each step.
    """

    @property
    def xml_file(self) -> str: ...  # noqa: D102 - see the class

    @property
    def frame_skip(self) -> int: ...  # noqa: D102

    @property
    def planar(self) -> bool: ...  # noqa: D102

    @property
    def reads_contact_forces(self) -> bool: ...  # noqa: D102

    def views(self) -> Mapping[str, FieldSource]:
        """Simulation arrays that the robot reads, by name, as contiguous views; ``qpos`` and ``qvel`` among them."""
        ...

    def constants(self) -> Mapping[str, ConstantSource]:
        """Further fields, which depend on the model alone."""
        ...

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Draw an initial state around ``qpos`` and ``qvel``, consuming ``generator`` as Gymnasium does."""
        ...

    def observe(self, fields: Fields) -> Floats:
        """Observation (E, O), a new array."""
        ...

    def locate(self, fields: Fields) -> Floats:
        """Position (E, 2) of the reference point whose velocity is rewarded, in metres, a new array."""
        ...

    def judge(self, transition: Transition) -> Judgement:
        """Reward and termination."""
        ...

    def info(self, transition: Transition, judgement: Judgement) -> Info:
        """Gymnasium's info of a step, (E, …) by key, in its order and with its types; new arrays or the judgement's."""
        ...

    def reset_info(self, fields: Fields) -> Info:
        """Gymnasium's info of a reset to the state of ``fields``, (E, …) by key; new arrays."""
        ...


def read_qpos(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the generalised positions."""
    view: Floats = data.qpos
    return view


def read_qvel(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the generalised velocities."""
    view: Floats = data.qvel
    return view


def read_contact_forces(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the external forces on each body, (B, 6)."""
    view: Floats = data.cfrc_ext
    return view


def flatten(field: Floats) -> Floats:
    """Shape (E, everything else), without a copy."""
    return field.reshape(field.shape[0], -1)


def along_x(qpos: Floats) -> Floats:
    """Position (E, 2) of a planar robot from its generalised positions (E, nq)."""
    position = np.zeros((len(qpos), 2))
    position[:, 0] = qpos[:, 0]
    return position


def as_type_of(bonus: float, survive: Floats) -> NDArray[Any]:
    """Healthy rewards (E,) as Gymnasium's version 5 has them: integers where the option ``healthy_reward`` is one."""
    return survive.astype(np.int64) if isinstance(bonus, int) else survive


def distance_from_origin(position: Floats) -> Floats:
    """Euclidean norm (E,) of positions (E, 2), by the dot product that ``np.linalg.norm`` uses for one vector."""
    distance: Floats = np.sqrt(np.vecdot(position, position))
    return distance


def _does_dot_fuse() -> bool:
    """Whether that dot product, on this processor, rounds only after a multiplication and an addition."""
    vectors = np.random.default_rng(0).standard_normal((64, 2))
    return not np.array_equal(np.vecdot(vectors, vectors), np.add(*np.square(vectors.T)))


DOT_FUSES: Final = _does_dot_fuse()


def place(position: Floats) -> Info:
    """What robots that move in the plane tell of their position (E, 2)."""
    x, y, distance = _place(position)
    return {
        "x_position": x,
        "y_position": y,
        "distance_from_origin": distance_from_origin(position) if DOT_FUSES else distance,
    }


@numba.njit(cache=True, nogil=True)
def _place(position: Any) -> Any:  # noqa: ANN401
    columns = np.empty((3, len(position)))
    for e in range(len(position)):
        x, y = position[e, 0], position[e, 1]
        columns[0, e], columns[1, e], columns[2, e] = x, y, np.sqrt(x * x + y * y)
    return columns
