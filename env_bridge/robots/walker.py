"""Walker2d and Hopper, v4 and v5: planar robots that terminate when they fall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from env_bridge.robots.anatomy import (
    Fields,
    FieldSource,
    Floats,
    Transition,
    along_x,
    control_cost,
    read_qpos,
    read_qvel,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walker:
    """Walker2d (two legs) or Hopper (one leg).

    Source: ``gymnasium/envs/mujoco/{walker2d,hopper}_v{4,5}.py``; attributes are their constructors' options, and:

    Attributes:
        always_pays_health: v4 pays the healthy reward on the terminal step as well.
        healthy_state_range: Hopper only; ``None``: not looked at.
    """

    xml_file: str
    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_state_range: tuple[float, float] | None = None
    healthy_z_range: tuple[float, float]
    healthy_angle_range: tuple[float, float]
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True
    always_pays_health: bool
    planar: bool = True
    reads_contact_forces: bool = False

    def views(self) -> Mapping[str, FieldSource]:
        """Generalised positions and velocities."""
        return {"qpos": read_qpos, "qvel": read_qvel}

    def computed(self) -> Mapping[str, FieldSource]:
        """Nothing further."""
        return {}

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Uniform noise on positions and velocities."""
        scale = self.reset_noise_scale
        position = qpos + generator.uniform(low=-scale, high=scale, size=qpos.size)
        velocity = qvel + generator.uniform(low=-scale, high=scale, size=qvel.size)
        return position, velocity

    def observe(self, fields: Fields) -> Floats:
        """Positions (without x) and velocities clipped to ±10."""
        first = 1 if self.exclude_current_positions_from_observation else 0
        return np.concatenate((fields["qpos"][:, first:], np.clip(fields["qvel"], -10, 10)), axis=1)

    def locate(self, fields: Fields) -> Floats:
        """Position of the torso along x, (E, 2)."""
        return along_x(fields["qpos"])

    def is_healthy(self, fields: Fields) -> NDArray[np.bool_]:
        """Height, angle and (Hopper) all other state inside their open ranges, (E,)."""
        height, angle = fields["qpos"][:, 1], fields["qpos"][:, 2]
        healthy: NDArray[np.bool_] = (self.healthy_z_range[0] < height) & (height < self.healthy_z_range[1])
        healthy &= (self.healthy_angle_range[0] < angle) & (angle < self.healthy_angle_range[1])
        if self.healthy_state_range is not None:
            state = np.concatenate((fields["qpos"], fields["qvel"]), axis=1)[:, 2:]
            low, high = self.healthy_state_range
            healthy &= np.all((low < state) & (state < high), axis=1)
        return healthy

    def judge(self, transition: Transition) -> tuple[Floats, NDArray[np.bool_]]:
        """Forward and healthy reward minus control cost; terminated where unhealthy."""
        healthy = self.is_healthy(transition.fields)
        pays = healthy | (self.always_pays_health and self.terminate_when_unhealthy)
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        rewards = forward + pays * self.healthy_reward
        reward = rewards - control_cost(self.ctrl_cost_weight, transition.action)
        return reward, ~healthy & self.terminate_when_unhealthy


def walker2d(version: int) -> Walker:
    """Walker2d as Gymnasium's ``version`` builds it."""
    return Walker(
        xml_file="walker2d.xml" if version == 4 else "walker2d_v5.xml",
        healthy_z_range=(0.8, 2.0),
        healthy_angle_range=(-1.0, 1.0),
        always_pays_health=version == 4,
    )


def hopper(version: int) -> Walker:
    """Hopper as Gymnasium's ``version`` builds it."""
    return Walker(
        xml_file="hopper.xml",
        healthy_state_range=(-100.0, 100.0),
        healthy_z_range=(0.7, float("inf")),
        healthy_angle_range=(-0.2, 0.2),
        always_pays_health=version == 4,
    )
