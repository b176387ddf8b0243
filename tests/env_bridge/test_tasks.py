"""Task parameters: parsing, suites and their known effects on physics and reward."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import mujoco
import numpy as np
import pytest

from env_bridge import BridgeVectorEnv
from env_bridge.rollout import run_rollout
from env_bridge.suites import SUITES, held_out_tasks, suite, train_and_test_tasks
from env_bridge.tasks import (
    NOMINAL,
    NUM_ACTUATORS,
    RANGES,
    WHOLE_NUMBERS,
    check_task_fits,
    combine,
    parse_shift,
    task_from_json,
    task_to_json,
)
from env_bridge.vector_env import VectorEnv
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import ConfigError


def test_shift_is_read_from_key_value_pairs() -> None:
    assert parse_shift("gravity=1.5, friction=0.5") == TaskParameters(gravity=1.5, friction=0.5)
    assert parse_shift("crippled=2,velocity=-1") == TaskParameters(crippled=2, velocity=-1.0)
    assert parse_shift("goal_x=3,goal_y=-1.5") == TaskParameters(goal_x=3.0, goal_y=-1.5)
    assert parse_shift("observation_delay=2,sensor_noise=0.1") == TaskParameters(observation_delay=2, sensor_noise=0.1)
    assert parse_shift("") == NOMINAL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gravty=1.5", "unknown task parameter 'gravty'; did you mean 'gravity'"),
        ("gravity", "expected key=value"),
        ("gravity=heavy", "expected a number"),
        ("gravity=nan", r"gravity=nan: expected a number from 0 to 10 \(factor\)"),
        ("gravity=inf", "gravity=inf"),
        ("mass=0", r"mass=0: expected a number from 0.05 to 20 \(factor\)"),
        ("goal=3", "unknown task parameter 'goal'; did you mean 'goal_"),
        ("goal_x=far", "expected a number after '=', in m"),
        ("goal_x=5000", r"goal_x=5000: expected a number from -1000 to 1000 \(m\)"),
        ("goal_y=1,velocity=2", "goal_y and velocity exclude each other"),
        ("direction=0,goal_x=1", "goal_x and direction exclude each other"),
        ("sensor_noise=-0.1", r"sensor_noise=-0.1: expected a number from 0 to 100 \(units of each observation\)"),
        ("observation_delay=0.5", "expected a whole number after '=', in environment steps"),
        ("observation_delay=-1", r"observation_delay=-1: expected a number from 0 to 100 \(environment steps\)"),
        ("observation_dealy=1", "did you mean 'observation_delay'"),
        ("crippled=1.5", "expected a whole number"),
        ("crippled=-1", "crippled=-1"),
        ("mass=2,mass=3", "twice"),
    ],
)
def test_bad_shift_is_one_line_that_says_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_shift(text)
    assert "\n" not in str(caught.value)


def test_task_survives_the_way_through_plain_data() -> None:
    for name in SUITES:
        for task in suite(name, count=12, seed=4):
            assert task_from_json(task_to_json(task)) == task


def test_boolean_is_no_number() -> None:
    with pytest.raises(ConfigError, match="expected a number"):
        task_from_json({"gravity": True})


def test_whole_numbers_and_missing_goals_are_told_apart_in_plain_data() -> None:
    assert task_from_json({"goal_x": None, "goal_y": 2, "observation_delay": 3}).goal_y == 2
    for values in ({"observation_delay": 1.0}, {"observation_delay": None}, {"sensor_noise": None}):
        with pytest.raises(ConfigError, match=f"{next(iter(values))}=.*: expected a"):
            task_from_json(values)


def test_table_in_the_docs_says_what_the_code_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    assert rows == [
        (name, r.unit, f"{'whole ' if name in WHOLE_NUMBERS else ''}{r.low:g} to {r.high:g}", said(name))
        for name, r in RANGES.items()
    ]
    assert re.findall(r"^\| `([\w-]+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", text, flags=re.MULTILINE)[
        -len(SUITES) :
    ] == list(SUITES)


def said(name: str) -> str:
    default = getattr(NOMINAL, name)
    return "none" if default is None else f"{default:g}"


def test_each_parameter_has_a_range_that_holds_its_default() -> None:
    assert tuple(RANGES) == tuple(field.name for field in fields(TaskParameters))
    for field in fields(TaskParameters):
        default = getattr(NOMINAL, field.name)
        assert default is None or RANGES[field.name].low <= default <= RANGES[field.name].high
        assert (field.name in WHOLE_NUMBERS) == ("int" in str(field.type))


def test_suites_are_seeded_and_prefixes_agree() -> None:
    assert suite("shift-train", count=20, seed=1)[:5] == suite("shift-train", count=5, seed=1)
    assert suite("shift-train", count=5, seed=1) != suite("shift-train", count=5, seed=2)


def sector(angle: float, number: int) -> int:
    return math.floor(angle % (2 * math.pi) / (2 * math.pi / number))


def twelfth(factor: float, base: float) -> int:
    """Which twelfth of [-3, 3] the exponent of ``factor`` lies in."""
    return math.floor((math.log(factor) / math.log(base) + 3.0) * 2.0)


PLACES: dict[str, Callable[[TaskParameters], set[object]]] = {
    "halfcheetah-vel": lambda task: {1.25 <= (task.velocity or 0.0) < 1.75},
    "ant-dir": lambda task: {sector(task.direction or 0.0, 12) % 2},
    "humanoid-dir": lambda task: {sector(task.direction or 0.0, 12) % 2},
    "ant-goal": lambda task: {sector(math.atan2(task.goal_y or 0.0, task.goal_x or 0.0), 12) % 2},
    "walker-params": lambda task: {
        twelfth(task.mass, 1.5) % 2, twelfth(task.friction, 1.5) % 2, twelfth(task.damping, 1.3) % 2
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_train_and_test_halves_lie_in_disjoint_ranges(name: str) -> None:
    places = {
        half: [PLACES[name](task) for task in suite(name, count=2000, seed=0, test=half)] for half in (False, True)
    }
    assert all(place == {False} for place in places[False])
    assert all(place == {True} for place in places[True])


def test_ant_goals_fill_a_ring_between_one_and_three_metres() -> None:
    goals = np.array([(task.goal_x, task.goal_y) for task in suite("ant-goal", count=2000, seed=0)])
    radius = np.hypot(*goals.T)
    assert ((radius >= 1.0) & (radius < 3.0)).all()
    assert np.mean(np.square(radius)) == pytest.approx(5.0, rel=0.05), "uniform over the area"
    assert {sector(math.atan2(y, x), 12) for x, y in goals} == {0, 2, 4, 6, 8, 10}


def test_walker_params_fill_their_ranges_in_both_halves() -> None:
    for half in (False, True):
        tasks = suite("walker-params", count=500, seed=0, test=half)
        for base, name in ((1.5, "mass"), (1.5, "friction"), (1.3, "damping")):
            assert {twelfth(getattr(task, name), base) for task in tasks} == set(range(int(half), 12, 2))


def test_no_shift_for_testing_lies_inside_the_training_range_and_only_testing_cripples() -> None:
    train = suite("shift-train", count=300, seed=0)
    assert all(task.crippled is None for task in train)
    low, high = 1.5**-2, 1.5**2
    assert all(low <= task.gravity <= high and low <= task.mass <= high for task in train)
    tested = suite("shift-test", count=60, seed=0)
    for task in tested:
        factors = (task.gravity, task.mass, task.friction, task.damping)
        outside = any(not low <= factor <= high for factor in factors)
        assert outside or task.actuator_gain < 0.7 or task.crippled is not None or task.observation_delay > 0
    assert all(task.observation_delay == 0 and task.actuator_gain >= 0.7 for task in train)


def test_twenty_shifts_for_testing_hold_every_kind() -> None:
    kinds = [next(iter(task_to_json(task))) for task in suite("shift-test", count=20, seed=0)]
    cycle = ["gravity", "mass", "friction", "damping", "actuator_gain", "crippled"]
    assert kinds == [*cycle, *cycle, *cycle, "observation_delay", "observation_delay"]
    assert [task.observation_delay for task in suite("shift-test", count=20, seed=0)[-2:]] == [1, 2]


def test_shifts_for_testing_cripple_an_actuator_that_the_robot_has() -> None:
    train, test = train_and_test_tasks("shift-train", "Hopper-v4", num_train=4, num_test=40, seed=0)
    for task in (*train, *test):
        assert check_task_fits(task, "Hopper-v4") == task
    assert held_out_tasks("shift-test", 40, "Ant-v4") == held_out_tasks("shift-test", 40)
    drawn = suite("shift-test", count=40, seed=0)
    for robot, actuators in NUM_ACTUATORS.items():
        for env_id in (f"{robot}-v5", f"bridge/{robot}-v5", f"env_bridge.registration:bridge/{robot}-v5"):
            fitting = suite("shift-test", count=40, seed=0, env_id=env_id)
            assert [check_task_fits(task, env_id) for task in fitting] == list(fitting)
            assert (fitting == drawn) == (actuators >= 6), robot
    assert max(task.crippled or 0 for task in suite("shift-test", count=200, seed=0, env_id="Unknown-v0")) == 5


@pytest.mark.parametrize("env_id", ["Hopper-v5", "InvertedPendulum-v5"])
def test_robots_of_few_actuators_take_all_shifts_for_testing(env_id: str) -> None:
    tasks = suite("shift-test", count=20, seed=0, env_id=env_id)
    BridgeVectorEnv(env_id, 20, workers=0, tasks=tasks).close()


def test_suites_for_one_robot_refuse_another() -> None:
    for name, env_id in (("ant-goal", "Humanoid-v4"), ("walker-params", "Hopper-v4")):
        with pytest.raises(ConfigError, match=f"'{name}' is for "):
            train_and_test_tasks(name, env_id, num_train=1, num_test=1, seed=0)


def test_drawn_tasks_are_those_of_earlier_versions() -> None:
    """Runs and results name tasks by suite, seed and index."""
    assert suite("halfcheetah-vel", count=1, seed=1)[0].velocity == 1.7795540617506418
    assert suite("ant-dir", count=3, seed=1)[2].direction == 5.49015234895791
    assert suite("shift-train", count=2, seed=1)[1].mass == 1.8071495855005315
    assert suite("shift-test", count=18, seed=0)[12].gravity == 0.35750908533826137


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ant-dir'"):
        suite("ant-dirs", count=1, seed=0)


def test_parsing_imports_neither_mujoco_nor_gymnasium() -> None:
    code = (
        "import sys, env_bridge; from env_bridge.tasks import parse_shift; env_bridge.parse_shift('mass=2');"
        "raise SystemExit(any(name in sys.modules for name in ('mujoco', 'gymnasium', 'zmq')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fall(task: TaskParameters) -> float:
    """Vertical acceleration of an ant that has just been let go in the air, in m/s²."""
    env = VectorEnv("Ant-v4", 1)
    env.set_tasks((task,))
    env.reset()
    simulation = env.simulation
    model = simulation._models.each[0]  # type: ignore[attr-defined]
    data = mujoco.MjData(model)
    data.qpos[2] = 50.0
    data.qpos[7:] = model.jnt_range[1:].mean(axis=1)  # inside all joint limits
    mujoco.mj_forward(model, data)
    return float(data.qacc[2])


def test_gravity_scales_free_fall_and_mass_does_not() -> None:
    assert fall(NOMINAL) == pytest.approx(-9.81)
    assert fall(TaskParameters(gravity=1.5)) == pytest.approx(-9.81 * 1.5)
    assert fall(TaskParameters(mass=2.0)) == pytest.approx(-9.81)


def test_mass_scales_bodies_and_their_derived_constants() -> None:
    env = VectorEnv("HalfCheetah-v4", 2)
    env.set_tasks((NOMINAL, TaskParameters(mass=2.0)))
    nominal, heavy = env.simulation._models.each  # type: ignore[attr-defined]
    np.testing.assert_allclose(heavy.body_subtreemass, 2 * nominal.body_subtreemass)
    np.testing.assert_allclose(heavy.body_inertia, 2 * nominal.body_inertia)
    assert (heavy.dof_invweight0 < nominal.dof_invweight0).all()


def test_other_factors_change_what_they_name_and_nominal_comes_back_to_the_bit() -> None:
    env = VectorEnv("HalfCheetah-v4", 2)
    pristine = env.simulation._models.each[0]  # type: ignore[attr-defined]
    env.set_tasks((NOMINAL, TaskParameters(friction=0.5, damping=3.0, actuator_gain=0.5, crippled=1)))
    shifted = env.simulation._models.each[1]  # type: ignore[attr-defined]
    np.testing.assert_allclose(shifted.geom_friction[:, 0], 0.5 * pristine.geom_friction[:, 0])
    np.testing.assert_allclose(shifted.dof_damping, 3.0 * pristine.dof_damping)
    gains = 0.5 * pristine.actuator_gainprm[:, 0]
    gains[1] = 0.0
    np.testing.assert_allclose(shifted.actuator_gainprm[:, 0], gains)
    env.set_tasks((NOMINAL, NOMINAL))
    assert env.simulation._models.each[1] is pristine  # type: ignore[attr-defined]


def test_crippled_actuator_has_no_effect_and_the_others_have() -> None:
    ends = []
    for index in (0, 1):
        env = VectorEnv("HalfCheetah-v4", 2)
        env.set_tasks((TaskParameters(crippled=0),) * 2)
        env.seed([1, 1])
        env.reset()
        action = np.zeros((2, 6), dtype=np.float32)
        action[1, index] = 1.0
        observation = env.step(action).observation
        ends.append(bool((observation[0] == observation[1]).all()))
    assert ends == [True, False]


def rewards(env_id: str, task: TaskParameters) -> np.ndarray:
    tasks = (task,) * 8
    request = RolloutRequest(env_id=env_id, tasks=tasks, seed=0, num_steps=20, policy="random", noise_seed=1)
    return run_rollout(request).columns["reward"].astype(np.float64)


def test_target_velocity_replaces_the_forward_reward() -> None:
    own = rewards("HalfCheetah-v4", NOMINAL)
    task = RolloutRequest(
        env_id="HalfCheetah-v4", tasks=(NOMINAL,) * 8, seed=0, num_steps=20, policy="random", noise_seed=1
    )
    action = run_rollout(task).columns["action"].astype(np.float64)
    cost = 0.1 * np.square(action).sum(axis=2)
    velocity = own + cost
    np.testing.assert_allclose(
        rewards("HalfCheetah-v4", TaskParameters(velocity=2.0)), -abs(velocity - 2) - cost, atol=1e-5
    )


def test_heading_backwards_turns_the_forward_reward_round() -> None:
    forward = rewards("Ant-v4", NOMINAL)
    backward = rewards("Ant-v4", TaskParameters(direction=math.pi))
    same = rewards("Ant-v4", TaskParameters(direction=0.0))
    np.testing.assert_array_equal(forward, same)
    # forward = v + rest, backward = −v + rest, with the same rest: 1 − control cost, at most 1.
    rest = (forward + backward) / 2
    assert (rest <= 1.0).all()
    assert (np.abs(forward - backward) > 0.01).any()


@pytest.mark.parametrize("robot", NUM_ACTUATORS)
def test_known_robots_have_as_many_actuators_as_the_table_says(robot: str) -> None:
    assert VectorEnv(f"{robot}-v5", 1).spec.action_size == NUM_ACTUATORS[robot]
    assert check_task_fits(TaskParameters(crippled=NUM_ACTUATORS[robot] - 1), f"{robot}-v4").crippled is not None
    with pytest.raises(ConfigError, match=f"has actuators 0 to {NUM_ACTUATORS[robot] - 1}"):
        check_task_fits(TaskParameters(crippled=NUM_ACTUATORS[robot]), f"bridge/{robot}-v4")


def test_a_planar_robot_is_not_sent_sideways() -> None:
    assert check_task_fits(TaskParameters(direction=1.0), "Ant-v4").direction == 1.0
    assert check_task_fits(TaskParameters(direction=math.pi), "Hopper-v4").direction == math.pi
    with pytest.raises(ConfigError, match="Hopper is planar"):
        check_task_fits(TaskParameters(direction=1.0), "Hopper-v4")


def test_a_shift_on_top_of_a_task_keeps_what_it_does_not_change() -> None:
    assert combine(TaskParameters(velocity=1.0, mass=2.0), TaskParameters(mass=3.0)) == TaskParameters(
        velocity=1.0, mass=3.0
    )
