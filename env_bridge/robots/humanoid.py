"""Humanoid-v4 and -v5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import mujoco
import numpy as np
from numpy.typing import NDArray

from env_bridge.robots.anatomy import (
    ConstantSource,
    Fields,
    FieldSource,
    Floats,
    Info,
    Judgement,
    Transition,
    control_cost,
    distance_from_origin,
    flatten,
    read_contact_forces,
    read_qpos,
    read_qvel,
    sum_of_squares,
    survival,
)
from env_bridge.robots.options import Reader, count, flag, limits, number, path, scale

FREE_JOINT: Final = 6  # velocities of the floating base, which no actuator moves

_BOTH: Final[Mapping[str, Reader]] = {
    "forward_reward_weight": number,
    "ctrl_cost_weight": number,
    "healthy_reward": number,
    "terminate_when_unhealthy": flag,
    "healthy_z_range": limits,
    "reset_noise_scale": scale,
    "exclude_current_positions_from_observation": flag,
}
OPTIONS: Final[Mapping[int, Mapping[str, Reader]]] = {
    4: _BOTH,
    5: {
        "xml_file": path,
        "frame_skip": count,
        **_BOTH,
        "contact_cost_weight": number,
        "contact_cost_range": limits,
        "include_cinert_in_observation": flag,
        "include_cvel_in_observation": flag,
        "include_qfrc_actuator_in_observation": flag,
        "include_cfrc_ext_in_observation": flag,
    },
}


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


def read_centres(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the centre of mass of each body, (B, 3). After a step it lags by one physics step."""
    view: Floats = data.xipos
    return view


def read_tendon_lengths(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the tendons' lengths."""
    view: Floats = data.ten_length
    return view


def read_tendon_velocities(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the tendons' velocities."""
    view: Floats = data.ten_velocity
    return view


def read_masses(model: mujoco.MjModel) -> Floats:
    """Mass of each body, (B,)."""
    masses: Floats = model.body_mass.copy()
    return masses


def read_total_mass(model: mujoco.MjModel) -> Floats:
    """Mass of all bodies, ()."""
    return np.array(model.body_mass.sum())


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
    include_cinert_in_observation: bool = True
    include_cvel_in_observation: bool = True
    include_qfrc_actuator_in_observation: bool = True
    include_cfrc_ext_in_observation: bool = True
    planar: bool = False
    reads_contact_forces: bool = True

    def views(self) -> Mapping[str, FieldSource]:
        """Everything that Gymnasium's humanoid observes, rewards and tells."""
        sources: dict[str, FieldSource] = {"qpos": read_qpos, "qvel": read_qvel}
        if self.include_cinert_in_observation:
            sources["cinert"] = read_inertia
        if self.include_cvel_in_observation:
            sources["cvel"] = read_body_velocity
        if self.include_qfrc_actuator_in_observation:
            sources["qfrc_actuator"] = read_actuator_forces
        sources |= {"cfrc_ext": read_contact_forces, "xipos": read_centres}
        if self.version == 5:
            sources |= {"ten_length": read_tendon_lengths, "ten_velocity": read_tendon_velocities}
        return sources

    def constants(self) -> Mapping[str, ConstantSource]:
        """Masses, which the centre of mass is weighted by."""
        return {"body_mass": read_masses, "total_mass": read_total_mass}

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Uniform noise on positions and velocities."""
        scale = self.reset_noise_scale
        position = qpos + generator.uniform(low=-scale, high=scale, size=qpos.size)
        velocity = qvel + generator.uniform(low=-scale, high=scale, size=qvel.size)
        return position, velocity

    def observe(self, fields: Fields) -> Floats:
        """Observation (E, O); of Gymnasium's model and by default 376 columns in v4, 348 in v5."""
        first = 2 if self.exclude_current_positions_from_observation else 0
        first_body, first_joint = (0, 0) if self.version == 4 else (1, FREE_JOINT)
        parts = [fields["qpos"][:, first:], fields["qvel"]]
        if self.include_cinert_in_observation:
            parts.append(flatten(fields["cinert"][:, first_body:]))
        if self.include_cvel_in_observation:
            parts.append(flatten(fields["cvel"][:, first_body:]))
        if self.include_qfrc_actuator_in_observation:
            parts.append(fields["qfrc_actuator"][:, first_joint:])
        if self.include_cfrc_ext_in_observation:
            parts.append(flatten(fields["cfrc_ext"][:, first_body:]))
        return np.concatenate(parts, axis=1)

    def locate(self, fields: Fields) -> Floats:
        """Position of the centre of mass, (E, 2), summed over bodies as Gymnasium's ``einsum`` does for one robot."""
        weighted = np.einsum("eb,ebj->ej", fields["body_mass"], fields["xipos"])
        centre: Floats = weighted[:, :2] / fields["total_mass"][:, None]
        return centre

    def is_healthy(self, fields: Fields) -> NDArray[np.bool_]:
        """Height inside its open range, (E,)."""
        height = fields["qpos"][:, 2]
        low, high = self.healthy_z_range
        healthy: NDArray[np.bool_] = (low < height) & (height < high)
        return healthy

    def judge(self, transition: Transition) -> Judgement:
        """Forward and healthy reward minus control cost (and, in v5, contact cost); terminated where unhealthy."""
        healthy, terminates = self.is_healthy(transition.fields), self.terminate_when_unhealthy
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        survive = survival(self.version, healthy, self.healthy_reward, terminates=terminates)
        # Gymnasium squares data.ctrl here, which holds the float32 action as float64.
        costs = control = control_cost(self.ctrl_cost_weight, transition.action.astype(np.float64))
        contact: Floats | None = None
        if self.version == 5:
            forces = flatten(transition.fields["cfrc_ext"])
            contact = (self.contact_cost_weight * sum_of_squares(forces)).clip(*self.contact_cost_range)
            costs = control + contact
        return Judgement(
            reward=forward + survive - costs,
            terminated=~healthy if terminates else np.zeros_like(healthy),
            forward=forward,
            control=control,
            survive=survive,
            contact=contact,
        )

    def info(self, transition: Transition, judgement: Judgement) -> Info:
        """Position, velocity of the centre of mass, the terms of the reward and, in v5, the tendons."""
        assert judgement.survive is not None, "judged by another robot"
        velocity = {"x_velocity": transition.velocity[:, 0].copy(), "y_velocity": transition.velocity[:, 1].copy()}
        if self.version == 4:
            position = transition.position
            return {
                "reward_linvel": judgement.forward,
                "reward_quadctrl": -judgement.control,
                "reward_alive": judgement.survive,
                "x_position": position[:, 0].copy(),
                "y_position": position[:, 1].copy(),
                "distance_from_origin": distance_from_origin(position),
                **velocity,
                "forward_reward": judgement.forward.copy(),
            }
        assert judgement.contact is not None, "judged by another robot"
        return {
            **self.reset_info(transition.fields),
            **velocity,
            "reward_survive": judgement.survive,
            "reward_forward": judgement.forward,
            "reward_ctrl": -judgement.control,
            "reward_contact": -judgement.contact,
        }

    def reset_info(self, fields: Fields) -> Info:
        """Position of the torso and the tendons, in v5."""
        if self.version == 4:
            return {}
        position = fields["qpos"][:, :2]
        return {
            "x_position": position[:, 0].copy(),
            "y_position": position[:, 1].copy(),
            "tendon_length": fields["ten_length"].copy(),
            "tendon_velocity": fields["ten_velocity"].copy(),
            "distance_from_origin": distance_from_origin(position),
        }


def humanoid(version: int) -> Humanoid:
    """Humanoid as Gymnasium's ``version`` builds it."""
    return Humanoid(version=version)
