"""Ant-v4 and -v5."""

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

TORSO = 1  # body index of the torso, in both versions


def read_torso(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    """View of the torso's x and y. After a step it lags the generalised positions by one physics step."""
    view: Floats = data.xpos[TORSO, :2]
    return view


@dataclass(frozen=True, slots=True, kw_only=True)
class Ant:
    """A four-legged robot of eight joints; it terminates when its torso is too low or too high.

    Source: ``gymnasium/envs/mujoco/ant_v{4,5}.py``; attributes are their constructors' options, and:

    Attributes:
        version: 4 pays the healthy reward on the terminal step as well, and leaves contact forces out by default.
        observes_contact_forces: v4 ``use_contact_forces``, v5 ``include_cfrc_ext_in_observation``.
        pays_contact_cost: v4 ``use_contact_forces``; always in v5.
    """

    version: int
    observes_contact_forces: bool
    pays_contact_cost: bool
    xml_file: str = "ant.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 5e-4
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (0.2, 1.0)
    contact_force_range: tuple[float, float] = (-1.0, 1.0)
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    planar: bool = False

    @property
    def reads_contact_forces(self) -> bool:
        """Whether ``cfrc_ext`` is needed."""
        return self.observes_contact_forces or self.pays_contact_cost

    def views(self) -> Mapping[str, FieldSource]:
        """Positions, velocities, the torso and, where needed, contact forces."""
        sources: dict[str, FieldSource] = {"qpos": read_qpos, "qvel": read_qvel, "torso": read_torso}
        if self.reads_contact_forces:
            sources["cfrc_ext"] = read_contact_forces
        return sources

    def computed(self) -> Mapping[str, FieldSource]:
        """Nothing further."""
        return {}

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Uniform noise on positions, normal noise on velocities."""
        scale = self.reset_noise_scale
        position = qpos + generator.uniform(low=-scale, high=scale, size=qpos.size)
        velocity = qvel + scale * generator.standard_normal(qvel.size)
        return position, velocity

    def _contact_forces(self, fields: Fields) -> Floats:
        forces: Floats = np.clip(fields["cfrc_ext"], *self.contact_force_range)
        return forces

    def observe(self, fields: Fields) -> Floats:
        """Positions (without x and y), velocities and, in v5, contact forces of all bodies but the world."""
        first = 2 if self.exclude_current_positions_from_observation else 0
        parts = [fields["qpos"][:, first:], fields["qvel"]]
        if self.observes_contact_forces:
            first_body = 0 if self.version == 4 else 1
            parts.append(flatten(self._contact_forces(fields)[:, first_body:]))
        return np.concatenate(parts, axis=1)

    def locate(self, fields: Fields) -> Floats:
        """Position of the torso, (E, 2)."""
        return fields["torso"].copy()

    def is_healthy(self, fields: Fields) -> NDArray[np.bool_]:
        """State finite and height inside its closed range, (E,)."""
        height = fields["qpos"][:, 2]
        finite = np.isfinite(fields["qpos"]).all(axis=1) & np.isfinite(fields["qvel"]).all(axis=1)
        low, high = self.healthy_z_range
        healthy: NDArray[np.bool_] = finite & (low <= height) & (height <= high)
        return healthy

    def judge(self, transition: Transition) -> tuple[Floats, NDArray[np.bool_]]:
        """Forward and healthy reward minus control and contact cost; terminated where unhealthy."""
        healthy = self.is_healthy(transition.fields)
        pays = healthy | (self.version == 4 and self.terminate_when_unhealthy)
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        rewards = forward + pays * self.healthy_reward
        costs = control_cost(self.ctrl_cost_weight, transition.action)
        if self.pays_contact_cost:
            forces = flatten(self._contact_forces(transition.fields))
            costs = costs + self.contact_cost_weight * np.sum(np.square(forces), axis=1)
        return rewards - costs, ~healthy & self.terminate_when_unhealthy


def ant(version: int) -> Ant:
    """Ant as Gymnasium's ``version`` builds it."""
    return Ant(version=version, observes_contact_forces=version == 5, pays_contact_cost=version == 5)
