"""Ant-v4 and -v5."""

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
from env_bridge.robots.options import Reader, body, count, flag, limits, number, path, scale
from env_bridge.robots.sums import sum_of_squares

_BOTH: Final[Mapping[str, Reader]] = {
    "xml_file": path,
    "ctrl_cost_weight": number,
    "contact_cost_weight": number,
    "healthy_reward": number,
    "terminate_when_unhealthy": flag,
    "healthy_z_range": limits,
    "contact_force_range": limits,
    "reset_noise_scale": scale,
    "exclude_current_positions_from_observation": flag,
}
OPTIONS: Final[Mapping[int, Mapping[str, Reader]]] = {
    4: {**_BOTH, "use_contact_forces": flag},
    5: {
        **_BOTH,
        "frame_skip": count,
        "forward_reward_weight": number,
        "main_body": body,
        "include_cfrc_ext_in_observation": flag,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ant:
    """A four-legged robot of eight joints; it terminates when its torso is too low or too high.

    Source: ``gymnasium/envs/mujoco/ant_v{4,5}.py``; attributes are their constructors' options, and:

    Attributes:
        version: 4 pays the healthy reward on the terminal step as well, and leaves contact forces out by default.
        use_contact_forces: v4 only: observe and pay for contact forces; v5 always pays.
        include_cfrc_ext_in_observation: v5 only.
        main_body: number or name of the body whose velocity is rewarded; v4's is always "torso".
    """

    version: int
    main_body: int | str
    xml_file: str = "ant.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.5
    use_contact_forces: bool = False
    contact_cost_weight: float = 5e-4
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: tuple[float, float] = (0.2, 1.0)
    contact_force_range: tuple[float, float] = (-1.0, 1.0)
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    include_cfrc_ext_in_observation: bool = True
    planar: bool = False

    @property
    def observes_contact_forces(self) -> bool:
        """Whether the observation has contact forces."""
        return self.use_contact_forces if self.version == 4 else self.include_cfrc_ext_in_observation

    @property
    def reads_contact_forces(self) -> bool:
        """Whether ``cfrc_ext`` is needed."""
        return self.use_contact_forces or self.version == 5

    def views(self) -> Mapping[str, FieldSource]:
        """Positions, velocities, the torso and, where needed, contact forces."""
        sources: dict[str, FieldSource] = {"qpos": read_qpos, "qvel": read_qvel, "torso": self._read_torso}
        if self.reads_contact_forces:
            sources["cfrc_ext"] = read_contact_forces
        return sources

    def _read_torso(self, model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
        """View of x and y of the main body. After a step it lags the generalised positions by one physics step."""
        view: Floats = data.xpos[model.body(self.main_body).id, :2]
        return view

    def constants(self) -> Mapping[str, ConstantSource]:
        """Nothing further."""
        return {}

    def draw_state(self, generator: np.random.Generator, qpos: Floats, qvel: Floats) -> tuple[Floats, Floats]:
        """Uniform noise on positions, normal noise on velocities."""
        scale = self.reset_noise_scale
        position = qpos + generator.uniform(low=-scale, high=scale, size=qpos.size)
        velocity = qvel + scale * generator.standard_normal(qvel.size)
        return position, velocity

    def _contact_forces(self, fields: Fields) -> Floats:
        forces: Floats = fields["cfrc_ext"].clip(*self.contact_force_range)
        return forces

    def observe(self, fields: Fields) -> Floats:
        """Positions (without x and y), velocities and, if asked for, contact forces (in v5 without the world's)."""
        first = 2 if self.exclude_current_positions_from_observation else 0
        parts = [fields["qpos"][:, first:], fields["qvel"]]
        if self.observes_contact_forces:
            first_body = 0 if self.version == 4 else 1
            parts.append(flatten(self._contact_forces(fields)[:, first_body:]))
        return np.concatenate(parts, axis=1)

    def locate(self, fields: Fields) -> Floats:
        """Position of the main body, (E, 2)."""
        return fields["torso"].copy()

    def judge(self, transition: Transition) -> Judgement:
        """Forward and healthy reward minus control and contact cost; terminated where unhealthy.

        Healthy is a finite state with its height inside the closed range.
        """
        forward = transition.goals.forward_reward(self.forward_reward_weight, transition.velocity)
        qpos, qvel, pays_contacts = transition.fields["qpos"], transition.fields["qvel"], self.reads_contact_forces
        is_v4, terminates, bonus = self.version == 4, self.terminate_when_unhealthy, self.healthy_reward
        (reward, survive, contact), control, terminated = _judge(
            forward,
            transition.action,
            flatten(self._contact_forces(transition.fields)) if pays_contacts else np.empty((len(forward), 0)),
            (float(bonus), float(self.ctrl_cost_weight), float(self.contact_cost_weight)),
            (qpos[:, 2], qpos, qvel),
            self.healthy_z_range,
            (is_v4, terminates, pays_contacts),
        )
        return Judgement(
            reward=reward,
            terminated=terminated,
            forward=forward,
            control=control,
            survive=survive if is_v4 else as_type_of(bonus, survive),
            contact=contact if pays_contacts else None,
        )

    def info(self, transition: Transition, judgement: Judgement) -> Info:
        """Position and velocity of the main body, and the terms of the reward."""
        assert judgement.survive is not None, "judged by another robot"
        velocity = dict(zip(("x_velocity", "y_velocity"), transition.velocity.T.copy(), strict=True))
        if self.version == 4:
            # Gymnasium's v4 puts the contact cost, where there is one, into the place of the control cost.
            cost = judgement.control if judgement.contact is None else judgement.contact
            return {
                "reward_forward": judgement.forward,
                "reward_ctrl": -cost,
                "reward_survive": judgement.survive,
                **place(transition.position),
                **velocity,
                "forward_reward": judgement.forward.copy(),
            }
        assert judgement.contact is not None, "judged by another robot"
        return {
            **place(transition.fields["qpos"][:, :2]),
            **velocity,
            "reward_forward": judgement.forward,
            "reward_ctrl": -judgement.control,
            "reward_contact": -judgement.contact,
            "reward_survive": judgement.survive,
        }

    def reset_info(self, fields: Fields) -> Info:
        """Position, in v5."""
        return {} if self.version == 4 else place(fields["qpos"][:, :2])


@numba.njit(cache=True, nogil=True)
def _is_finite(state: Any, e: int) -> bool:  # noqa: ANN401
    finite = True
    for k in range(state.shape[1]):
        finite &= np.isfinite(state[e, k])
    return bool(finite)


@numba.njit(cache=True, nogil=True)
def _judge(forward: Any, action: Any, forces: Any, weights: Any, state: Any, z_range: Any, flags: Any) -> Any:  # noqa: ANN401
    (bonus, control_weight, contact_weight), (is_v4, terminates, pays_contacts) = weights, flags
    (height, qpos, qvel), num_envs, exact = state, len(forward), action.dtype.type
    terms, control, terminated = np.empty((3, num_envs)), np.empty(num_envs, action.dtype), np.empty(num_envs, np.bool_)
    for e in range(num_envs):
        healthy = z_range[0] <= height[e] <= z_range[1] and _is_finite(qpos, e) and _is_finite(qvel, e)
        survive = bonus * (1.0 if healthy or (is_v4 and terminates) else 0.0)
        control[e] = exact(control_weight) * sum_of_squares(action, e)
        costs = np.float64(control[e])
        if pays_contacts:
            terms[2, e] = contact_weight * sum_of_squares(forces, e)
            costs += terms[2, e]
        terms[0, e], terms[1, e] = forward[e] + survive - costs, survive
        terminated[e] = terminates and not healthy
    return terms, control, terminated


def ant(version: int) -> Ant:
    """Ant as Gymnasium's ``version`` builds it."""
    return Ant(version=version, main_body="torso" if version == 4 else 1)
