"""Which options a robot takes, what it says of others, and which registered ids have a robot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.humanoid_v5 import mass_center
from numpy.typing import NDArray

from env_bridge import BridgeVectorEnv
from env_bridge.goals import make_goals
from env_bridge.robots import PICTURE_OPTIONS, robot_for
from env_bridge.robots.anatomy import Judgement, Transition, distance_from_origin, place
from env_bridge.robots.half_cheetah import HalfCheetah
from env_bridge.robots.humanoid import centres_of_mass
from env_bridge.robots.sums import sum_of_squares
from env_bridge.vector_env import VectorEnv
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

CUSTOM = "FastCheetah-v0"
PICTURES_OF_A_USER: dict[str, Any] = {
    "width": 64,
    "height": 48,
    "camera_id": None,
    "camera_name": "track",
    "default_camera_config": {"distance": 4.0},
    "max_geom": 500,
    "visual_options": None,
}


@pytest.fixture
def registered() -> Iterator[None]:
    """A further id of Gymnasium's HalfCheetah-v5, registered with options of its own."""
    entry_point = gymnasium.spec("HalfCheetah-v5").entry_point
    gymnasium.register(
        CUSTOM, entry_point, kwargs={"ctrl_cost_weight": 0.5, "frame_skip": 2, "width": 64}, max_episode_steps=50
    )
    yield
    del gymnasium.registry[CUSTOM]


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("HalfCheetah-v5", {"ctrl_cost": 0.1}, "takes no option 'ctrl_cost'; did you mean 'ctrl_cost_weight'?"),
        ("Hopper-v5", {"healthy_range": (0, 1)}, "did you mean 'healthy_z_range'?"),
        ("Hopper-v4", {"frame_skip": 4}, "takes no option 'frame_skip' (its other version does); did you mean"),
        ("Ant-v5", {"use_contact_forces": True}, "'use_contact_forces' (its other version does)"),
        ("Ant-v4", {"healthy_reward": "1"}, "option healthy_reward is '1'; expected a finite number"),
        ("Ant-v4", {"healthy_reward": True}, "option healthy_reward is True; expected a finite number"),
        ("Ant-v4", {"healthy_reward": float("nan")}, "option healthy_reward is nan; expected a finite number"),
        ("Ant-v4", {"ctrl_cost_weight": np.float64(0.5)}, "numpy's would change the precision of rewards"),
        ("Ant-v4", {"ctrl_cost_weight": 10**400}, "expected a finite number"),
        ("Ant-v4", {"reset_noise_scale": -0.1}, "option reset_noise_scale is -0.1; expected a number not below 0"),
        ("Ant-v4", {"healthy_z_range": (1.0, 0.2)}, "expected two numbers, the lowest first"),
        ("Ant-v4", {"healthy_z_range": 0.2}, "expected two numbers, the lowest first"),
        ("Ant-v4", {"healthy_z_range": (0.2, float("nan"))}, "expected two numbers, the lowest first"),
        ("Ant-v5", {"main_body": 1.0}, "expected the number or the name of a body"),
        ("Ant-v5", {"frame_skip": 0}, "option frame_skip is 0; expected a whole number above 0"),
        ("Ant-v5", {"xml_file": None}, "option xml_file is None; expected the path of a model file"),
        ("Humanoid-v5", {"include_cvel_in_observation": 1}, "is 1; expected true or false"),
        ("Walker2d-v4", {"render_mode": "rgb_array"}, "'render_mode' is about pictures"),
    ],
)
def test_option_that_does_not_fit_is_one_line(env_id: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        robot_for(env_id, options)
    text = str(caught.value)
    assert message in text
    assert text.startswith(env_id)
    assert "\n" not in text


def test_every_picture_option_is_gymnasiums_and_refused() -> None:
    for name in PICTURE_OPTIONS:
        assert name in gymnasium.envs.mujoco.MujocoEnv.__init__.__code__.co_varnames
        with pytest.raises(ConfigError, match="about pictures"):
            robot_for("Ant-v5", {name: None})


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"width": "junk"}, "option width is 'junk'; expected a whole number above 0"),
        ({"height": 0}, "option height is 0; expected a whole number above 0"),
        ({"max_geom": 10.0}, "option max_geom is 10.0; expected a whole number"),
        ({"camera_id": "side"}, "option camera_id is 'side'; expected the number of a camera"),
        ({"camera_name": 3}, "option camera_name is 3; expected text"),
        ({"default_camera_config": [1.0]}, "option default_camera_config is [1.0]; expected a dictionary"),
        ({"visual_options": 1}, "option visual_options is 1; expected a dictionary"),
    ],
)
def test_options_about_pictures_are_read_where_something_is_drawn_and_else_refused(
    option: dict[str, Any], text: str
) -> None:
    for given, message in (
        (option | {"render_mode": "rgb_array"}, text),
        ({name: PICTURES_OF_A_USER[name] for name in option}, "about pictures, and nothing is drawn without"),
    ):
        with pytest.raises(ConfigError) as caught:
            BridgeVectorEnv("HalfCheetah-v5", 2, **given)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_options_about_pictures_may_stand_where_something_is_drawn_and_in_other_classes() -> None:
    BridgeVectorEnv("HalfCheetah-v5", 2, render_mode="rgb_array", **PICTURES_OF_A_USER).close()
    BridgeVectorEnv("Pusher-v5", 2, width=64, height=48).close()


def test_ranges_may_be_lists_and_integers() -> None:
    robot = robot_for("Hopper-v4", {"healthy_z_range": [1, 2]})
    assert getattr(robot, "healthy_z_range", None) == (1.0, 2.0)


@pytest.mark.usefixtures("registered")
def test_id_registered_for_gymnasiums_class_keeps_its_registered_options() -> None:
    robot = robot_for(CUSTOM, {"frame_skip": 3})
    assert isinstance(robot, HalfCheetah)
    assert (robot.ctrl_cost_weight, robot.frame_skip, robot.version) == (0.5, 3, 5)


def test_other_classes_and_unknown_ids_have_no_robot() -> None:
    assert robot_for("Pusher-v5") is None
    assert robot_for("HalfCheetah-v3") is None
    assert robot_for("no such id") is None


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("Ant-v5", {"main_body": "tail"}),
        ("Ant-v5", {"main_body": 99}),
        ("Ant-v4", {"xml_file": "inverted_pendulum.xml"}),
        ("Walker2d-v5", {"xml_file": "inverted_pendulum.xml"}),
    ],
)
def test_model_that_lacks_what_the_robot_reads_is_one_line(env_id: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot live in the model") as caught:
        VectorEnv(env_id, 1, options=options)
    assert "\n" not in str(caught.value)


def judge_state(robot: Any, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> Judgement:
    fields = {"qpos": qpos[None], "qvel": qvel[None], "cfrc_ext": np.zeros((1, 14, 6))}
    still, goals = np.zeros((1, 2)), make_goals([TaskParameters()], planar=False)
    judgement: Judgement = robot.judge(
        Transition(fields=fields, position=still, velocity=still, action=np.zeros((1, 6), np.float32), goals=goals)
    )
    return judgement


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("Ant-v4", {}),
        ("Ant-v5", {"healthy_z_range": (0.3, 0.9)}),
        ("Humanoid-v4", {"healthy_z_range": (1.0, 1.5)}),
        ("Humanoid-v5", {}),
        ("Walker2d-v4", {"healthy_angle_range": (-0.3, 0.4)}),
        ("Walker2d-v5", {}),
        ("Hopper-v4", {"healthy_state_range": (-3, 2)}),
        ("Hopper-v5", {}),
    ],
)
def test_health_is_gymnasiums_at_both_sides_of_every_limit(env_id: str, options: dict[str, Any]) -> None:
    robot: Any = robot_for(env_id, options)
    raw: Any = gymnasium.make(env_id, disable_env_checker=True, **options).unwrapped
    raw.reset(seed=0)
    names = ("healthy_z_range", "healthy_angle_range", "healthy_state_range")
    limits = [limit for name in names for limit in (getattr(robot, name, None) or ())]
    values = [np.nextafter(limit, side) for limit in limits for side in (-np.inf, limit, np.inf)] + [
        np.nan,
        np.inf,
        0.0,
    ]
    seen = set()
    for array in (raw.data.qpos, raw.data.qvel):
        for index in range(len(array)):
            before = array[index]
            for value in values:
                array[index] = value
                fallen = judge_state(robot, raw.data.qpos, raw.data.qvel).terminated.tolist()
                assert fallen == [not raw.is_healthy], (index, value)
                seen |= {*fallen}
            array[index] = before
    assert seen == {False, True}
    raw.close()


def draw(shape: tuple[int, ...], dtype: type[np.floating]) -> NDArray[Any]:
    """Numbers of very different sizes, so that another order of summation shows."""
    generator = np.random.default_rng(shape)
    return (generator.standard_normal(shape) * 10.0 ** generator.uniform(-3, 3, shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_sums_have_numpys_bits_for_any_size_and_layout(dtype: type[np.floating]) -> None:
    for size in (*range(300), 511, 512, 513, 1000, 4099):
        row = draw((1, size), dtype)
        expected = np.sum(np.square(row[0]))
        for rows in (row, np.asfortranarray(np.repeat(row, 3, axis=0)), np.repeat(row, 2, axis=1)[:, ::2]):
            assert dtype(sum_of_squares(rows, 0)).tobytes() == expected.tobytes(), (size, rows.strides)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 8, 64, 257])
def test_batched_distances_have_the_bits_of_one_robots(num_envs: int) -> None:
    position = draw((num_envs, 9), np.float64)[:, :2]
    expected = np.array([np.linalg.norm(row, ord=2) for row in position])
    assert distance_from_origin(position).tobytes() == expected.tobytes()
    assert place(position)["distance_from_origin"].tobytes() == expected.tobytes()


def test_centres_of_mass_have_the_bits_of_einsum() -> None:
    generator = np.random.default_rng(0)
    masses, positions = generator.uniform(0, 9, (64, 14)), generator.normal(size=(64, 14, 3))
    total = masses.sum(axis=1)
    expected = [np.einsum("b,bj->j", masses[e], positions[e])[:2] / total[e] for e in range(64)]
    found = centres_of_mass(np.asfortranarray(masses), positions, total)
    assert found.tobytes() == np.array(expected).tobytes()
    assert not np.isfinite(centres_of_mass(masses, positions, np.zeros(64))).any()


@pytest.mark.parametrize("num_envs", [1, 2, 8, 64])
def test_centre_of_mass_has_gymnasiums_bits_with_masses_of_every_environments_own(num_envs: int) -> None:
    env = VectorEnv("Humanoid-v5", num_envs, infos=True)
    env.set_tasks([TaskParameters(mass=0.5 + 0.01 * index) for index in range(num_envs)])
    env.reset()
    action = np.random.default_rng(1).uniform(-0.4, 0.4, (num_envs, 17)).astype(np.float32)
    simulation: Any = env.simulation
    centre: Any = mass_center
    before, after = [], []
    for model, state, row in zip(simulation._models.each, simulation.get_state()["physics"], action, strict=True):
        derived, stepped = mujoco.MjData(model), mujoco.MjData(model)
        for data in (derived, stepped):
            mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, derived)
        before.append(centre(model, derived))
        stepped.ctrl[:] = row
        mujoco.mj_step(model, stepped, nstep=5)
        after.append(centre(model, stepped))
    step = env.step(action)
    velocity = (np.array(after) - np.array(before)) / simulation.timestep_s
    assert step.info["x_velocity"].tobytes() == velocity[:, 0].tobytes()
    assert step.info["y_velocity"].tobytes() == velocity[:, 1].tobytes()
    assert len({model.body_mass[1] for model in simulation._models.each}) == num_envs
    env.close()
