"""What a batch of environments asks for besides Gymnasium's own reward: target velocities, headings, target positions.

Letters: E environments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from env_bridge.tasks import check_goal_in_plane, goal_position, has_own_reward
from swarm.environment import TaskParameters

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Goals:
    """What each environment asks for, where it has a goal; see `swarm.environment.TaskParameters`.

    Attributes:
        velocity: (E,) m/s, NaN where there is no target velocity.
        heading: (E, 2) unit vector of the forward direction; (1, 0) is the environment's own. Of an environment with a
            target position, the direction from the origin to it.
        position: (E, 2) target in metres, NaN where there is none.
        remaining: (E,) metres from the robot to its target position, NaN where there is none; see `at`.
        is_own: no environment has a goal, so that Gymnasium's formula holds for all.
    """

    velocity: Floats
    heading: Floats
    position: Floats
    remaining: Floats
    is_own: bool

    def at(self, position: Floats) -> Goals:
        """These goals, seen from the robots' positions (E, 2) in metres."""
        if self.is_own:
            return self
        offset = position - self.position
        return replace(self, remaining=np.sqrt(np.square(offset).sum(axis=1)))

    def speed(self, velocity: Floats) -> Floats:
        """Speed along the heading, (E,), of velocities (E, 2); so of positions, too."""
        if self.is_own:
            return velocity[:, 0]
        along = velocity[:, 0] * self.heading[:, 0] + velocity[:, 1] * self.heading[:, 1]
        own = (self.heading[:, 0] == 1.0) & (self.heading[:, 1] == 0.0)
        result: Floats = np.where(own, velocity[:, 0], along)
        return result

    def forward_reward(self, weight: float, velocity: Floats) -> Floats:
        """What stands in for Gymnasium's forward reward, (E,).

        ``weight`` × speed along the heading; −|speed − target| where there is a target velocity; minus the distance to
        the target position where there is one (after `at`).

        Source: Finn et al. 2017, arXiv:1703.03400, section 5.3, and Rakelly et al. 2019, arXiv:1903.08254 (PEARL).
        PEARL's ant-goal pays minus the distance in the L1 norm; ours is Euclidean, so that what a goal pays does not
        depend on its bearing.
        """
        speed = self.speed(velocity)
        if self.is_own:
            return weight * speed
        result: Floats = np.where(np.isnan(self.velocity), weight * speed, -np.abs(speed - self.velocity))
        return np.where(np.isnan(self.remaining), result, -self.remaining)


def make_goals(tasks: Sequence[TaskParameters], *, planar: bool) -> Goals:
    """Goals of a batch of tasks. Raises ``ConfigError`` for a heading or position that a planar robot cannot have."""
    size = len(tasks)
    velocity = np.array([np.nan if task.velocity is None else task.velocity for task in tasks])
    heading, position = np.tile((1.0, 0.0), (size, 1)), np.full((size, 2), np.nan)
    for index, task in enumerate(tasks):
        if planar:
            check_goal_in_plane(task)
        goal = goal_position(task)
        if task.direction is not None:
            heading[index] = (math.cos(task.direction), 0.0 if planar else math.sin(task.direction))
        elif goal is not None:
            position[index] = goal[0], 0.0 if planar else goal[1]
            distance = math.hypot(*position[index])
            if distance > 0.0:
                heading[index] = position[index] / distance
    return Goals(
        velocity=velocity,
        heading=heading,
        position=position,
        remaining=np.full(size, np.nan),
        is_own=all(has_own_reward(task) for task in tasks),
    )
