"""HalfCheetah-v4 and -v5 (their formulas are the same)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

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
    along_x,
    read_qpos,
    read_qvel,
)
from env_bridge.robots.options import Reader, count, flag, number, path, scale
from env_bridge.robots.sums import sum_of_squares

_BOTH: Final[Mapping[str, Reader]] = {
    "forward_reward_weight": number,
    "ctrl_cost_weight": number,
    "reset_noise_scale": scale,
    "exclude_current_positions_from_observation": flag,
}
OPTIONS: Final[Mapping[int, Mapping[str, Reader]]] = {
    4: _BOTH,
    5: {"xml_file": path, "frame_skip": count, **_BOTH},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfCheetah:
    """A planar robot of six joints; it runs and never terminates.

    Source: ``gymnasium/envs/mujoco/half_cheetah_v{4,5}.py``; attributes are their constructors' options, and:

    Attributes:
        version: 4 tells nothing at resets, and calls the forward reward otherwise.
    """

    version: int
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

    def constants(self) -> Mapping[str, ConstantSource]:
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

    def judge(self, transition: Transition) -> Judgement:
        """Forward reward minus control cost; never terminated."""
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        weight, action, num_envs = float(self.ctrl_cost_weight), transition.action, len(forward)
        reward, control = np.empty(num_envs), np.empty(num_envs, action.dtype)
        _judge(forward, weight, action, reward, control)
        return Judgement(reward=reward, terminated=np.zeros(num_envs, np.bool_), forward=forward, control=control)

    def info(self, transition: Transition, judgement: Judgement) -> Info:
        """Position and velocity along x, and the terms of the reward."""
        return {
            "x_position": transition.fields["qpos"][:, 0].copy(),
            "x_velocity": transition.velocity[:, 0].copy(),
            "reward_run" if self.version == 4 else "reward_forward": judgement.forward,
            "reward_ctrl": -judgement.control,
        }

    def reset_info(self, fields: Fields) -> Info:
        """Position along x, in v5."""
        return {} if self.version == 4 else {"x_position": fields["qpos"][:, 0].copy()}


@numba.njit(cache=True, nogil=True)
def _judge(forward: Any, weight: float, action: Any, reward: Any, control: Any) -> None:  # noqa: ANN401
    exact = action.dtype.type
    for e in range(len(forward)):
        control[e] = exact(weight) * sum_of_squares(action, e)
        reward[e] = forward[e] - control[e]


def half_cheetah(version: int) -> HalfCheetah:
    """HalfCheetah as Gymnasium's ``version`` builds it."""
    return HalfCheetah(version=version)
