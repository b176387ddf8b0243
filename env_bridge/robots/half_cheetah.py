"""HalfCheetah-v4 and -v5 (their formulas are the same)."""

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
class HalfCheetah:
    """A planar robot of six joints; it runs and never terminates.

    Source: ``gymnasium/envs/mujoco/half_cheetah_v5.py``; attributes are its constructor's options.
    """

    xml_file: str = "half_cheetah.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    planar: bool = True
    reads_contact_forces: bool = False

    def views(self) -> Mapping[str, FieldSource]:
        """Generalised positions and velocities."""
        return {"qpos": read_qpos, "qvel": read_qvel}

    def computed(self) -> Mapping[str, FieldSource]:
        """Nothing further."""
        return {}

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Uniform noise on positions, normal noise on velocities."""
        scale = self.reset_noise_scale
        position = qpos + generator.uniform(low=-scale, high=scale, size=qpos.size)
        velocity = qvel + scale * generator.standard_normal(qvel.size)
        return position, velocity

    def observe(self, fields: Fields) -> Floats:
        """Positions (without x) and velocities, (E, 17)."""
        first = 1 if self.exclude_current_positions_from_observation else 0
        return np.concatenate((fields["qpos"][:, first:], fields["qvel"]), axis=1)

    def locate(self, fields: Fields) -> Floats:
        """Position of the front tip along x, (E, 2)."""
        return along_x(fields["qpos"])

    def judge(self, transition: Transition) -> tuple[Floats, NDArray[np.bool_]]:
        """Forward reward minus control cost; never terminated."""
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        reward = forward - control_cost(self.ctrl_cost_weight, transition.action)
        return reward, np.zeros(len(reward), dtype=np.bool_)
