"""What every robot file gives: which simulation fields it reads, and Gymnasium's formulas over a batch of them.

Letters: E environments, O observation, A action, B bodies. A robot is immutable data (Gymnasium's constructor options)
plus pure functions over the batched fields, written in the same order of operations as the class that it equals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import mujoco
import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Fields: TypeAlias = Mapping[str, Floats]
FieldSource: TypeAlias = Callable[[mujoco.MjModel, mujoco.MjData], Floats]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Goals:
    """Target velocity and heading of each environment, where it has one; see `swarm.environment.TaskParameters`.

    Attributes:
        velocity: (E,) m/s, NaN where the environment's own reward counts.
        heading: (E, 2) unit vector of the forward direction; (1, 0) is the environment's own.
        is_own: no environment has a goal, so that Gymnasium's formula holds for all.
    """

    velocity: Floats
    heading: Floats
    is_own: bool

    def speed(self, velocity: Floats) -> Floats:
        """Speed along the heading, (E,), of velocities (E, 2)."""
        if self.is_own:
            return velocity[:, 0]
        along = velocity[:, 0] * self.heading[:, 0] + velocity[:, 1] * self.heading[:, 1]
        own = (self.heading[:, 0] == 1.0) & (self.heading[:, 1] == 0.0)
        result: Floats = np.where(own, velocity[:, 0], along)
        return result

    def forward_reward(self, weight: float, velocity: Floats) -> Floats:
        """``weight`` × speed along the heading, or −|speed − target| where there is a target velocity."""
        speed = self.speed(velocity)
        if self.is_own:
            return weight * speed
        result: Floats = np.where(np.isnan(self.velocity), weight * speed, -np.abs(speed - self.velocity))
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transition:
    """One step of all environments, as a robot judges it.

    Attributes:
        fields: batched simulation fields after the step.
        velocity: (E, 2) m/s of the robot's reference point in the x-y plane over the step.
        action: (E, A) float32 as given to the environment.
        goals: what the environments ask for.
    """

    fields: Fields
    velocity: Floats
    action: NDArray[np.float32]
    goals: Goals


class Robot(Protocol):
    """Observation, reward and termination of one robot, equal to Gymnasium's class to the last bit.

    Attributes:
        xml_file: model file among Gymnasium's assets.
        frame_skip: physics steps per environment step.
        planar: the robot moves in the x-z plane, so that its heading is 0 or π.
        reset_noise_scale: scale of the noise of the initial state.
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
        """Simulation arrays that the robot reads, by name, as views; ``qpos`` and ``qvel`` among them."""
        ...

    def computed(self) -> Mapping[str, FieldSource]:
        """Further fields, computed anew after each step."""
        ...

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Draw an initial state around ``qpos`` and ``qvel``, consuming ``generator`` as Gymnasium does."""
        ...

    def observe(self, fields: Fields) -> Floats:
        """Observation (E, O)."""
        ...

    def locate(self, fields: Fields) -> Floats:
        """Position (E, 2) of the reference point whose velocity is rewarded, in metres."""
        ...

    def judge(self, transition: Transition) -> tuple[Floats, NDArray[np.bool_]]:
        """Reward (E,) and termination (E,)."""
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
    return np.stack((qpos[:, 0], np.zeros(len(qpos))), axis=1)


def control_cost(weight: float, action: NDArray[np.floating]) -> NDArray[np.floating]:
    """``weight`` · Σ action², (E,), in the precision of ``action`` (float32 where Gymnasium uses the action itself)."""
    cost: NDArray[np.floating] = weight * np.sum(np.square(action), axis=1)
    return cost
