"""Humanoid-v4 and -v5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import mujoco
import numba
import numpy as np

from env_bridge.robots.anatomy import (
    ConstantSource,
    Fields,
    FieldSource,
    Floats,
    Info,
    Judgement,
    Transition,
    as_type_of,
    flatten,
    place,
    read_contact_forces,
    read_qpos,
    read_qvel,
)
from env_bridge.robots.options import Reader, count, flag, limits, number, path, scale
from env_bridge.robots.sums import sum_of_squares

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


def _does_einsum_fuse() -> bool:
    """Whether NumPy's ``einsum`` on this processor rounds only after a multiplication and an addition."""
    factor = 1.0 + 2.0**-30
    difference = np.einsum("b,bj->j", np.array([-1.0, factor]), np.array([[1.0 + 2.0**-29] * 3, [factor] * 3]))
    return bool(difference.any())


EINSUM_FUSES: Final = _does_einsum_fuse()


def centres_of_mass(masses: Floats, positions: Floats, total: Floats) -> Floats:
    """Centres in the x-y plane, (E, 2), of bodies with ``masses`` (E, B), (E,) in ``total``, at (E, B, 3)."""
    if EINSUM_FUSES:
        centres: Floats = np.einsum("eb,ebj->ej", masses, positions)[:, :2] / total[:, None]
        return centres
    return _centres_of_mass(masses, positions, total)  # type: ignore[no-any-return]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _centres_of_mass(masses: Any, positions: Any, total: Any) -> Any:  # noqa: ANN401
    centres = np.empty((len(total), 2))
    for e in range(len(total)):
        x, y = 0.0, 0.0
        for b in range(masses.shape[1]):
            x += masses[e, b] * positions[e, b, 0]
            y += masses[e, b] * positions[e, b, 1]
        centres[e, 0], centres[e, 1] = x / total[e], y / total[e]
    return centres


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
        return centres_of_mass(fields["body_mass"], fields["xipos"], fields["total_mass"])

    def judge(self, transition: Transition) -> Judgement:
        """Forward and healthy reward minus control cost (and, in v5, contact cost); terminated where unhealthy.

        Healthy is a height inside the open range.
        """
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        is_v4, terminates, bonus = self.version == 4, self.terminate_when_unhealthy, self.healthy_reward
        (reward, survive, control, contact), terminated = _judge(
            forward,
            transition.fields["qpos"][:, 2],
            transition.action,
            flatten(transition.fields["cfrc_ext"]),
            (float(bonus), float(self.ctrl_cost_weight), float(self.contact_cost_weight)),
            (self.healthy_z_range, self.contact_cost_range),
            (is_v4, terminates),
        )
        return Judgement(
            reward=reward,
            terminated=terminated,
            forward=forward,
            control=control,
            survive=survive if is_v4 else as_type_of(bonus, survive),
            contact=None if is_v4 else contact,
        )

    def info(self, transition: Transition, judgement: Judgement) -> Info:
        """Position, velocity of the centre of mass, the terms of the reward and, in v5, the tendons."""
        assert judgement.survive is not None, "judged by another robot"
        velocity = dict(zip(("x_velocity", "y_velocity"), transition.velocity.T.copy(), strict=True))
        if self.version == 4:
            return {
                "reward_linvel": judgement.forward,
                "reward_quadctrl": -judgement.control,
                "reward_alive": judgement.survive,
                **place(transition.position),
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
        told = place(fields["qpos"][:, :2])
        return {
            "x_position": told["x_position"],
            "y_position": told["y_position"],
            "tendon_length": fields["ten_length"].copy(),
            "tendon_velocity": fields["ten_velocity"].copy(),
            "distance_from_origin": told["distance_from_origin"],
        }


@numba.njit(cache=True, nogil=True)
def _judge(forward: Any, height: Any, action: Any, forces: Any, weights: Any, ranges: Any, flags: Any) -> Any:  # noqa: ANN401
    (bonus, control_weight, contact_weight), (z_range, contact_range), (is_v4, terminates) = weights, ranges, flags
    num_envs = len(forward)
    terms, terminated = np.empty((4, num_envs)), np.empty(num_envs, np.bool_)
    control = action.astype(np.float64)  # as in data.ctrl, which Gymnasium squares here
    for e in range(num_envs):
        healthy = z_range[0] < height[e] < z_range[1]
        survive = bonus * (1.0 if healthy or (is_v4 and terminates) else 0.0)
        costs = control_cost = control_weight * sum_of_squares(control, e)
        if not is_v4:
            contact_cost = contact_weight * sum_of_squares(forces, e)
            if contact_cost < contact_range[0]:
                contact_cost = contact_range[0]
            elif contact_cost > contact_range[1]:
                contact_cost = contact_range[1]
            costs += contact_cost
            terms[3, e] = contact_cost
        terms[0, e], terms[1, e], terms[2, e] = forward[e] + survive - costs, survive, control_cost
        terminated[e] = terminates and not healthy
    return terms, terminated


def humanoid(version: int) -> Humanoid:
    """Humanoid as Gymnasium's ``version`` builds it."""
    return Humanoid(version=version)
