"""Rewards of goals: Gymnasium's own to the bit where there is none, and what a target position pays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from env_bridge.goals import make_goals
from env_bridge.physics import RobotSimulation
from env_bridge.rollout import run_rollout
from env_bridge.vector_env import VectorEnv
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import ConfigError

NOMINAL = TaskParameters()
VELOCITIES = np.random.default_rng(0).normal(size=(4, 2))
ROBOTS = ("HalfCheetah-v4", "Ant-v4", "Ant-v5", "Humanoid-v4", "Walker2d-v5", "Hopper-v4")


def test_without_goals_the_forward_reward_is_weight_times_speed_along_x() -> None:
    goals = make_goals([NOMINAL] * 4, planar=False)
    assert goals.is_own
    assert goals.at(VELOCITIES) is goals
    np.testing.assert_array_equal(goals.forward_reward(1.25, VELOCITIES), 1.25 * VELOCITIES[:, 0])


def test_environments_without_a_goal_among_others_are_paid_the_same_to_the_bit() -> None:
    tasks = [NOMINAL, TaskParameters(goal_x=1.0), TaskParameters(velocity=1.0), TaskParameters(direction=1.0)]
    goals = make_goals(tasks, planar=False).at(np.ones((4, 2)))
    paid = goals.forward_reward(1.25, VELOCITIES)
    assert paid[0] == 1.25 * VELOCITIES[0, 0]
    assert paid[1] == -1.0
    assert paid[2] == -abs(VELOCITIES[2, 0] - 1.0)
    assert paid[3] == pytest.approx(1.25 * VELOCITIES[3] @ (math.cos(1.0), math.sin(1.0)))


def test_a_target_position_pays_minus_the_distance_to_it_from_any_side() -> None:
    tasks = [TaskParameters(goal_x=3.0, goal_y=4.0)] * 4
    position = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [3.0, -1.0]])
    paid = make_goals(tasks, planar=False).at(position).forward_reward(1.0, VELOCITIES)
    np.testing.assert_allclose(paid, [-5.0, 0.0, -5.0, -5.0])


def test_a_coordinate_that_is_not_given_is_zero() -> None:
    goals = make_goals([TaskParameters(goal_y=2.0), TaskParameters(goal_x=-2.0)], planar=False)
    np.testing.assert_array_equal(goals.position, [[0.0, 2.0], [-2.0, 0.0]])
    np.testing.assert_allclose(goals.heading, [[0.0, 1.0], [-1.0, 0.0]])


def test_distance_towards_a_target_counts_along_the_way_from_the_origin() -> None:
    goals = make_goals([TaskParameters(goal_x=0.0, goal_y=-2.0), TaskParameters(goal_x=0.0)], planar=False)
    np.testing.assert_allclose(goals.speed(np.array([[5.0, -1.5], [5.0, -1.5]])), [1.5, 5.0])


def test_planar_robots_are_sent_along_x_only() -> None:
    goals = make_goals([TaskParameters(goal_x=-2.0), TaskParameters(goal_x=1.0, goal_y=0.0)], planar=True)
    np.testing.assert_array_equal(goals.position, [[-2.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ConfigError, match="goal_y=1: a planar robot can only go along x"):
        make_goals([TaskParameters(goal_y=1.0)], planar=True)


def stepped(env_id: str, task: TaskParameters) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rewards (T, E) and positions (T, E, 2) of 12 steps with fixed random actions."""
    env = VectorEnv(env_id, 2)
    env.set_tasks((task, task))
    env.seed([1, 2])
    env.reset()
    simulation = env.simulation
    assert isinstance(simulation, RobotSimulation)
    draw = np.random.default_rng(3)
    rewards, positions = [], []
    for _ in range(12):
        action = draw.uniform(-0.4, 0.4, (2, len(simulation.action_low))).astype(np.float32)
        rewards.append(env.step(action).reward)
        positions.append(simulation._robot.locate(simulation._fields).copy())
    env.close()
    return np.array(rewards), np.array(positions)


@pytest.mark.parametrize("env_id", ROBOTS)
def test_a_target_position_replaces_the_forward_term_and_keeps_the_others(env_id: str) -> None:
    env = VectorEnv(env_id, 1)
    simulation = env.simulation
    assert isinstance(simulation, RobotSimulation)
    robot, timestep_s = simulation._robot, env.simulation.timestep_s
    initial = robot.locate(simulation._fields).copy()
    env.close()
    own, positions = stepped(env_id, NOMINAL)
    paid, same = stepped(env_id, TaskParameters(goal_x=2.0))
    np.testing.assert_array_equal(positions, same)
    assert np.isfinite(initial).all()
    weight = robot.forward_reward_weight  # type: ignore[attr-defined]  # all five have it
    forward = weight * np.diff(positions[:, :, 0], axis=0) / timestep_s
    distance = np.hypot(positions[1:, :, 0] - 2.0, positions[1:, :, 1])
    np.testing.assert_allclose(paid[1:] - own[1:], -distance - forward, atol=1e-9)


def test_a_rollout_takes_a_target_position_and_refuses_it_beside_a_velocity() -> None:
    request = RolloutRequest(
        env_id="Ant-v4",
        tasks=(TaskParameters(goal_x=1.0, goal_y=2.0),) * 8,
        seed=0,
        num_steps=4,
        policy="random",
        noise_seed=1,
    )
    assert (run_rollout(request).columns["reward"].astype(np.float64) < 0.0).all()
    wrong = RolloutRequest(
        env_id="Ant-v4",
        tasks=(TaskParameters(goal_x=1.0, velocity=1.0),) * 8,
        seed=0,
        num_steps=4,
        policy="random",
    )
    with pytest.raises(ConfigError, match="exclude each other"):
        run_rollout(wrong)
