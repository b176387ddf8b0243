"""Walker2d and Hopper, v4 and v5: planar robots that terminate when they fall."""

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
    along_x,
    as_type_of,
    read_qpos,
    read_qvel,
)
from env_bridge.robots.options import Reader, count, flag, limits, number, path, scale
from env_bridge.robots.sums import sum_of_squares

MAX_OBSERVED_SPEED: Final = 10.0
UNLIMITED: Final = (-float("inf"), float("inf"))

_BOTH: Final[Mapping[str, Reader]] = {
    "forward_reward_weight": number,
    "ctrl_cost_weight": number,
    "healthy_reward": number,
    "terminate_when_unhealthy": flag,
    "healthy_z_range": limits,
    "healthy_angle_range": limits,
    "reset_noise_scale": scale,
    "exclude_current_positions_from_observation": flag,
}
_MODEL: Final[Mapping[str, Reader]] = {"xml_file": path, "frame_skip": count}
WALKER2D_OPTIONS: Final[Mapping[int, Mapping[str, Reader]]] = {4: _BOTH, 5: {**_MODEL, **_BOTH}}
HOPPER_OPTIONS: Final[Mapping[int, Mapping[str, Reader]]] = {
    version: {**readers, "healthy_state_range": limits} for version, readers in WALKER2D_OPTIONS.items()
}


def read_initial_height(model: mujoco.MjModel) -> Floats:
    """Height of the torso in the model's initial state, ()."""
    return np.array(model.qpos0[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Walker:
    """Walker2d (two legs) or Hopper (one leg).

    Source: ``gymnasium/envs/mujoco/{walker2d,hopper}_v{4,5}.py``; attributes are their constructors' options, and:

    Attributes:
        version: 4 pays the healthy reward on the terminal step as well, and tells position and velocity only.
        healthy_state_range: Hopper only; ``None``: not looked at.
    """

    version: int
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
    planar: bool = True
    reads_contact_forces: bool = False

    def views(self) -> Mapping[str, FieldSource]:
        """Generalised positions and velocities."""
        return {"qpos": read_qpos, "qvel": read_qvel}

    def constants(self) -> Mapping[str, ConstantSource]:
        """The initial height, which v5 tells heights against."""
        return {} if self.version == 4 else {"initial_height": read_initial_height}

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Uniform noise on positions and velocities."""
        scale = self.reset_noise_scale
        position = qpos + generator.uniform(low=-scale, high=scale, size=qpos.size)
        velocity = qvel + generator.uniform(low=-scale, high=scale, size=qvel.size)
        return position, velocity

    def observe(self, fields: Fields) -> Floats:
        """Positions (without x) and velocities clipped to ±10."""
        first = 1 if self.exclude_current_positions_from_observation else 0
        velocity = fields["qvel"].clip(-MAX_OBSERVED_SPEED, MAX_OBSERVED_SPEED)
        return np.concatenate((fields["qpos"][:, first:], velocity), axis=1)

    def locate(self, fields: Fields) -> Floats:
        """Position of the torso along x, (E, 2)."""
        return along_x(fields["qpos"])

    def judge(self, transition: Transition) -> Judgement:
        """Forward and healthy reward minus control cost; terminated where unhealthy.

        Healthy are height, angle and (Hopper) all other state inside their open ranges.
        """
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        qpos, qvel, state_range = transition.fields["qpos"], transition.fields["qvel"], self.healthy_state_range
        is_v4, terminates, bonus = self.version == 4, self.terminate_when_unhealthy, self.healthy_reward
        (reward, survive), control, terminated = _judge(
            forward,
            transition.action,
            (float(bonus), float(self.ctrl_cost_weight)),
            (qpos[:, 1], qpos[:, 2], qpos[:, 2:], qvel),
            (self.healthy_z_range, self.healthy_angle_range, state_range or UNLIMITED),
            (is_v4, terminates, state_range is not None),
        )
        return Judgement(
            reward=reward,
            terminated=terminated,
            forward=forward,
            control=control,
            survive=survive if is_v4 else as_type_of(bonus, survive),
        )

    def info(self, transition: Transition, judgement: Judgement) -> Info:
        """Position and velocity along x and, in v5, height and the terms of the reward."""
        info = {"x_position": transition.fields["qpos"][:, 0].copy(), "x_velocity": transition.velocity[:, 0].copy()}
        if self.version == 4:
            return info
        assert judgement.survive is not None, "judged by another robot"
        return {
            "x_position": info["x_position"],
            "z_distance_from_origin": self._height_gained(transition.fields),
            "x_velocity": info["x_velocity"],
            "reward_forward": judgement.forward,
            "reward_ctrl": -judgement.control,
            "reward_survive": judgement.survive,
        }

    def reset_info(self, fields: Fields) -> Info:
        """Position along x and height, in v5."""
        if self.version == 4:
            return {}
        return {"x_position": fields["qpos"][:, 0].copy(), "z_distance_from_origin": self._height_gained(fields)}

    def _height_gained(self, fields: Fields) -> Floats:
        gained: Floats = fields["qpos"][:, 1] - fields["initial_height"]
        return gained


@numba.njit(cache=True, nogil=True)
def _is_inside(limits: Any, state: Any, e: int) -> bool:  # noqa: ANN401
    inside = True
    for k in range(state.shape[1]):
        inside &= limits[0] < state[e, k] < limits[1]
    return inside


@numba.njit(cache=True, nogil=True)
def _judge(forward: Any, action: Any, weights: Any, state: Any, ranges: Any, flags: Any) -> Any:  # noqa: ANN401
    (bonus, weight), (is_v4, terminates, looks_at_all), exact = weights, flags, action.dtype.type
    (height, angle, shape, qvel), (z_range, angle_range, state_range) = state, ranges
    num_envs = len(forward)
    terms, control, terminated = np.empty((2, num_envs)), np.empty(num_envs, action.dtype), np.empty(num_envs, np.bool_)
    for e in range(num_envs):
        healthy = z_range[0] < height[e] < z_range[1] and angle_range[0] < angle[e] < angle_range[1]
        if looks_at_all:
            healthy &= _is_inside(state_range, shape, e) and _is_inside(state_range, qvel, e)
        survive = bonus * (1.0 if healthy or (is_v4 and terminates) else 0.0)
        control[e] = exact(weight) * sum_of_squares(action, e)
        terms[0, e], terms[1, e] = forward[e] + survive - control[e], survive
        terminated[e] = terminates and not healthy
    return terms, control, terminated


def walker2d(version: int) -> Walker:
    """Walker2d as Gymnasium's ``version`` builds it."""
    return Walker(
        version=version,
        xml_file="walker2d.xml" if version == 4 else "walker2d_v5.xml",
        healthy_z_range=(0.8, 2.0),
        healthy_angle_range=(-1.0, 1.0),
    )


def hopper(version: int) -> Walker:
    """Hopper as Gymnasium's ``version`` builds it."""
    return Walker(
        version=version,
        xml_file="hopper.xml",
        healthy_state_range=(-100.0, 100.0),
        healthy_z_range=(0.7, float("inf")),
        healthy_angle_range=(-0.2, 0.2),
    )
