"""Humanoid-v4 and -v5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from env_bridge.robots.anatomy import (
    Fields,
    FieldSource,
    Floats,
    Transition,
    control_cost,
    flatten,
    read_contact_forces,
    read_qpos,
    read_qvel,
)

FREE_JOINT = 6  # velocities of the floating base, which no actuator moves


def read_inertia(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the inertia and mass of each body about its centre, (B, 10)."""
    view: Floats = data.cinert
    return view


def read_body_velocity(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the velocity of each body, (B, 6)."""
    view: Floats = data.cvel
    return view


def read_actuator_forces(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the actuator force on each degree of freedom."""
    view: Floats = data.qfrc_actuator
    return view


def compute_mass_centre(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """Centre of mass in the x-y plane, (2,), in Gymnasium's order of operations. Lags by one physics step."""
    weighted = np.einsum("b,bj->j", model.body_mass, data.xipos)
    centre: Floats = (weighted / model.body_mass.sum())[0:2]
    return centre


@dataclass(frozen=True, slots=True, kw_only=True)
class Humanoid:
    """A two-legged robot of 17 joints; it terminates when its torso is too low or too high.

    Source: ``gymnasium/envs/mujoco/humanoid_v{4,5}.py``; attributes are their constructors' options, and:

    Attributes:
        version: 4 pays the healthy reward on the terminal step as well, has no contact cost, and observes the world
            body and the floating base too (constant columns).
    """

    version: int
    xml_file: str = "humanoid.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.25
    ctrl_cost_weight: float = 0.1
    contact_cost_weight: float = 5e-7
    contact_cost_range: tuple[float, float] = (-np.inf, 10.0)
    healthy_reward: float = 5.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (1.0, 2.0)
    reset_noise_scale: float = 1e-2
    exclude_current_positions_from_observation: bool = True
    planar: bool = False
    reads_contact_forces: bool = True

    def views(self) -> Mapping[str, FieldSource]:
        """Everything that Gymnasium's humanoid observes."""
        return {
            "qpos": read_qpos,
            "qvel": read_qvel,
            "cinert": read_inertia,
            "cvel": read_body_velocity,
            "qfrc_actuator": read_actuator_forces,
            "cfrc_ext": read_contact_forces,
        }

    def computed(self) -> Mapping[str, FieldSource]:
        """The centre of mass."""
        return {"mass_centre": compute_mass_centre}

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Uniform noise on positions and velocities."""
        scale = self.reset_noise_scale
        position = qpos + generator.uniform(low=-scale, high=scale, size=qpos.size)
        velocity = qvel + generator.uniform(low=-scale, high=scale, size=qvel.size)
        return position, velocity

    def observe(self, fields: Fields) -> Floats:
        """Observation (E, 376) in v4, (E, 348) in v5."""
        first = 2 if self.exclude_current_positions_from_observation else 0
        first_body, first_joint = (0, 0) if self.version == 4 else (1, FREE_JOINT)
        return np.concatenate(
            (
                fields["qpos"][:, first:],
                fields["qvel"],
                flatten(fields["cinert"][:, first_body:]),
                flatten(fields["cvel"][:, first_body:]),
                fields["qfrc_actuator"][:, first_joint:],
                flatten(fields["cfrc_ext"][:, first_body:]),
            ),
            axis=1,
        )

    def locate(self, fields: Fields) -> Floats:
        """Position of the centre of mass, (E, 2)."""
        return fields["mass_centre"].copy()

    def is_healthy(self, fields: Fields) -> NDArray[np.bool_]:
        """Height inside its open range, (E,)."""
        height = fields["qpos"][:, 2]
        low, high = self.healthy_z_range
        healthy: NDArray[np.bool_] = (low < height) & (height < high)
        return healthy

    def judge(self, transition: Transition) -> tuple[Floats, NDArray[np.bool_]]:
        """Forward and healthy reward minus control cost (and, in v5, contact cost); terminated where unhealthy."""
        healthy = self.is_healthy(transition.fields)
        pays = healthy | (self.version == 4 and self.terminate_when_unhealthy)
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        rewards = forward + pays * self.healthy_reward
        # Gymnasium squares data.ctrl here, which holds the float32 action as float64.
        costs = control_cost(self.ctrl_cost_weight, transition.action.astype(np.float64))
        if self.version == 5:
            forces = flatten(transition.fields["cfrc_ext"])
            contact = self.contact_cost_weight * np.sum(np.square(forces), axis=1)
            costs = costs + np.clip(contact, *self.contact_cost_range)
        return rewards - costs, ~healthy & self.terminate_when_unhealthy
