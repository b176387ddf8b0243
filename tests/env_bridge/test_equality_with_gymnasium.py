"""The fast robots equal Gymnasium's classes bit for bit, with the versions that `docs/exactness.md` names."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from env_bridge.models import ASSETS
from env_bridge.robots import PICTURE_OPTIONS, robot_for
from env_bridge.vector_env import VectorEnv
from swarm.errors import ActionError, ConfigError

ROBOTS = [
    f"{name}-v{version}" for name in ("HalfCheetah", "Ant", "Humanoid", "Walker2d", "Hopper") for version in (4, 5)
]
NUM_ENVS = 2
COPY, GROWN = "<copy>", "<grown>"  # in the place of a path: of a copy of the default model, or with further bodies

HALF_CHEETAH: dict[str, Any] = {"forward_reward_weight": 0.7, "ctrl_cost_weight": 0.3, "reset_noise_scale": 0.25}
ANT: dict[str, Any] = {
    "ctrl_cost_weight": 0.3,
    "contact_cost_weight": 0.013,
    "healthy_reward": 2,
    "healthy_z_range": (0.55, 0.9),
    "contact_force_range": (-0.5, 2.0),
    "reset_noise_scale": 0.17,
    "exclude_current_positions_from_observation": False,
}
HUMANOID: dict[str, Any] = {
    "forward_reward_weight": 0.77,
    "ctrl_cost_weight": 0.3,
    "healthy_reward": 4,
    "healthy_z_range": (1.2, 1.7),
    "reset_noise_scale": 0.023,
    "exclude_current_positions_from_observation": False,
}
WALKER: dict[str, Any] = {
    "forward_reward_weight": 0.7,
    "ctrl_cost_weight": 0.3,
    "healthy_reward": 3,
    "healthy_z_range": (1.0, 1.5),
    "healthy_angle_range": (-0.5, 0.3),
    "reset_noise_scale": 0.013,
    "exclude_current_positions_from_observation": False,
}
GOES_ON: dict[str, Any] = {"terminate_when_unhealthy": False, "healthy_reward": -1.5}
OPTION_SETS: list[tuple[str, dict[str, Any]]] = [
    ("HalfCheetah-v4", {**HALF_CHEETAH, "exclude_current_positions_from_observation": False}),
    ("HalfCheetah-v4", {"forward_reward_weight": 3, "ctrl_cost_weight": 2}),
    ("HalfCheetah-v5", {**HALF_CHEETAH, "exclude_current_positions_from_observation": False, "frame_skip": 3}),
    ("HalfCheetah-v5", {"xml_file": COPY, "ctrl_cost_weight": 2}),
    ("HalfCheetah-v5", {"xml_file": "hopper.xml"}),
    ("Ant-v4", ANT),
    ("Ant-v4", {**ANT, "use_contact_forces": True}),
    ("Ant-v4", {**GOES_ON, "xml_file": COPY}),
    ("Ant-v5", {**ANT, "forward_reward_weight": 2, "frame_skip": 4, "include_cfrc_ext_in_observation": False}),
    ("Ant-v5", {**GOES_ON, "main_body": "front_left_leg", "contact_force_range": (-3, 3)}),
    ("Ant-v5", {"xml_file": GROWN, "main_body": "rider 3"}),
    ("Humanoid-v4", HUMANOID),
    ("Humanoid-v4", {**GOES_ON, "healthy_z_range": (1.1, 1.4)}),
    (
        "Humanoid-v5",
        {
            **HUMANOID,
            "frame_skip": 3,
            "contact_cost_weight": 1e-4,
            "contact_cost_range": (0.001, 0.5),
            "include_cinert_in_observation": False,
            "include_cfrc_ext_in_observation": False,
        },
    ),
    (
        "Humanoid-v5",
        {**GOES_ON, "include_cvel_in_observation": False, "include_qfrc_actuator_in_observation": False},
    ),
    ("Humanoid-v5", {"xml_file": GROWN}),
    ("Walker2d-v4", WALKER),
    ("Walker2d-v4", GOES_ON),
    ("Walker2d-v5", {**WALKER, "frame_skip": 3, "xml_file": "walker2d.xml"}),
    ("Walker2d-v5", {**GOES_ON, "xml_file": COPY}),
    ("Hopper-v4", {**WALKER, "healthy_state_range": (-3.0, 2.0)}),
    ("Hopper-v4", {**GOES_ON, "healthy_z_range": (0.9, float("inf"))}),
    ("Hopper-v5", {**WALKER, "frame_skip": 3, "healthy_state_range": (-3, 2)}),
    ("Hopper-v5", {**GOES_ON, "xml_file": GROWN}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same environments twice: ours, and Gymnasium's own classes under its registered time limit."""

    ours: VectorEnv
    theirs: list[gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]]
    raw: list[Any]

    def draw_actions(self, generator: np.random.Generator) -> NDArray[np.float32]:
        """Random actions, some of them out of range."""
        low, high = self.ours.simulation.action_low, self.ours.simulation.action_high
        return generator.uniform(1.2 * low, 1.2 * high, size=(NUM_ENVS, low.size)).astype(np.float32)

    def reset(self, seeds: Sequence[int | None], indices: Sequence[int] = range(NUM_ENVS)) -> None:
        """Start new episodes, and compare their observations and infos."""
        for index in indices:
            seed = seeds[index]
            self.ours.reseed([seed if row == index else None for row in range(NUM_ENVS)])
            observations = self.ours.reset([index])
            observation, info = self.theirs[index].reset(seed=seed)
            assert_same_bits(observations[index], observation)
            assert_same_info(self.ours.reset_info(), {index: info})

    def step(self, action: NDArray[np.float32]) -> list[int]:
        """Step, compare everything, and return which episodes ended."""
        step = self.ours.step(action)
        infos = {}
        for index, env in enumerate(self.theirs):
            observation, reward, terminated, truncated, infos[index] = env.step(action[index])
            assert_same_bits(step.observation[index], observation)
            assert_same_bits(step.reward[index], np.float64(reward))
            assert (step.terminated[index], step.truncated[index]) == (terminated, truncated)
        assert_same_info(step.info, infos)
        assert not step.diverged.any()
        return [int(index) for index in np.flatnonzero(step.ended)]


@contextmanager
def pair_of(env_id: str, options: Mapping[str, Any], folder: Path) -> Iterator[Pair]:
    options = {name: place_model(env_id, value, folder) for name, value in options.items()}
    ours = VectorEnv(env_id, NUM_ENVS, options=options, infos=True)
    theirs = [gymnasium.make(env_id, disable_env_checker=True, **options) for _ in range(NUM_ENVS)]
    raw = [env.unwrapped for env in theirs]
    assert all(isinstance(env, MujocoEnv) for env in raw)
    try:
        yield Pair(ours=ours, theirs=theirs, raw=raw)
    finally:
        ours.close()
        for env in theirs:
            env.close()


def place_model(env_id: str, value: Any, folder: Path) -> Any:
    """Write the model that ``value`` stands for; return its path, or the value itself where it is no model."""
    if value not in (COPY, GROWN):
        return value
    robot = robot_for(env_id)
    assert robot is not None
    path = folder / f"{env_id}.xml"
    if value == COPY:
        path.write_bytes((ASSETS / robot.xml_file).read_bytes())
        return str(path)
    spec = mujoco.MjSpec.from_file(str(ASSETS / robot.xml_file))
    body = spec.body("torso")
    for number in range(12):  # so many that NumPy sums contact forces in two halves
        body = body.add_body(name=f"rider {number}", pos=[0.0, 0.0, 0.05])
        body.add_geom(size=[0.02, 0.0, 0.0], density=300.0, contype=0, conaffinity=0)
        if number < 2:
            body.add_joint(axis=[0.0, 1.0, 0.0], range=[-1.0, 1.0])
    path.write_text(spec.to_xml(), encoding="utf-8")
    return str(path)


def assert_same_bits(ours: Any, theirs: Any) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes(), (ours, theirs)


def assert_same_info(ours: Mapping[str, NDArray[Any]], theirs: Mapping[int, dict[str, Any]]) -> None:
    """Compare columns with what Gymnasium's vector environments make of single infos: names, order, types, values."""
    vector: Any = gymnasium.vector.VectorEnv()
    vector.num_envs = NUM_ENVS
    expected: dict[str, Any] = {}
    for index, info in theirs.items():
        expected = vector._add_info(expected, info, index)
    assert list(ours) == [name for name in expected if not name.startswith("_")]
    for name, column in ours.items():
        assert (column.dtype, column.shape) == (expected[name].dtype, expected[name].shape), name
        for index in theirs:
            assert column[index].tobytes() == expected[name][index].tobytes(), (name, column, expected[name])


def name_of(value: object) -> str:
    return value if isinstance(value, str) else "+".join(value) if isinstance(value, dict) else ""


@pytest.mark.parametrize("env_id", ROBOTS)
def test_everything_equals_gymnasium_over_1000_random_steps_with_resets(env_id: str, tmp_path: Path) -> None:
    generator, num_ended = np.random.default_rng(5), 0
    with pair_of(env_id, {}, tmp_path) as pair:
        pair.reset((0, 11))
        for number in range(1000):
            ended = pair.step(pair.draw_actions(generator))
            num_ended += len(ended)
            if number == 500:
                pair.reset((7, None), [0])
            elif ended:
                pair.reset((None, None), ended)
    assert num_ended >= 2 if "HalfCheetah" not in env_id else num_ended == 1, "one cheetah reached the time limit"


@pytest.mark.parametrize(("env_id", "options"), OPTION_SETS, ids=name_of)
def test_everything_equals_gymnasium_with_other_options(env_id: str, options: dict[str, Any], tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    with pair_of(env_id, options, tmp_path) as pair:
        pair.reset((3, 4))
        for number in range(120):
            ended = pair.step(pair.draw_actions(generator))
            ended = [0, 1] if number % 50 == 49 else ended
            if ended:
                pair.reset((None, None), ended)


@pytest.mark.parametrize("env_id", ROBOTS)
def test_every_option_is_known_with_its_default_and_exercised(env_id: str) -> None:
    module, name = str(gymnasium.spec(env_id).entry_point).split(":")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD
    }
    robot = robot_for(env_id)
    taken = set(defaults) - PICTURE_OPTIONS
    for option in taken:
        assert getattr(robot, option) == defaults[option], option
        assert robot_for(env_id, {option: defaults[option]}) == robot
    assert taken == {option for name, options in OPTION_SETS if name == env_id for option in options}


@pytest.mark.parametrize("env_id", ROBOTS)
def test_steps_from_set_states_equal_gymnasium(env_id: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    robot = robot_for(env_id)
    assert robot is not None
    with pair_of(env_id, {}, tmp_path) as pair:
        pair.reset((1, 2))
        state: dict[str, NDArray[Any]] = {name: array.copy() for name, array in pair.ours.get_state().items()}
        for index, env in enumerate(pair.raw):
            qpos = env.data.qpos + generator.uniform(-0.1, 0.1, env.model.nq)
            env.set_state(qpos, generator.standard_normal(env.model.nv))
            mujoco.mj_getState(env.model, env.data, state["physics"][index], mujoco.mjtState.mjSTATE_INTEGRATION)
            for name, read in robot.views().items():
                state[f"field.{name}"][index] = read(env.model, env.data)
        pair.ours.set_state(state)
        for _ in range(25):
            pair.step(pair.draw_actions(generator))


@pytest.mark.parametrize("env_id", ROBOTS)
def test_steps_after_a_return_to_an_earlier_state_equal_gymnasium(env_id: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    with pair_of(env_id, {}, tmp_path) as pair:
        pair.reset((5, 6))
        for _ in range(5):
            pair.step(pair.draw_actions(generator))
        state, datas = pair.ours.get_state(), [copy.copy(env.data) for env in pair.raw]
        for _ in range(2):
            for _ in range(12):
                pair.step(pair.draw_actions(generator))
            pair.ours.set_state(state)
            for env, data in zip(pair.raw, datas, strict=True):
                mujoco.mj_copyData(env.data, env.model, data)


def test_documented_versions_are_those_that_are_pinned_and_compared_here() -> None:
    root = Path(__file__).parents[2]
    documented = re.findall(
        r"^\| (\w+) \| ([\d.]+) \|$", (root / "docs/exactness.md").read_text(encoding="utf-8"), re.M
    )
    assert [name for name, _ in documented] == ["gymnasium", "mujoco", "numpy"]
    pinned = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for name, number in documented:
        assert f"{name}=={number}" in pinned
        assert version(name) == number


def test_comparison_notices_the_last_bit_of_a_value_and_its_type(tmp_path: Path) -> None:
    with pair_of("HalfCheetah-v4", {}, tmp_path) as pair:
        pair.reset((0, 1))
        pair.raw[1]._forward_reward_weight = np.nextafter(1.0, 2.0)
        with pytest.raises(AssertionError):
            pair.step(pair.draw_actions(np.random.default_rng(0)))
    with pytest.raises(AssertionError):
        assert_same_info({"reward_ctrl": np.zeros(NUM_ENVS)}, {0: {"reward_ctrl": np.float32(0.0)}})


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Ant-v5", "Humanoid-v4", "Pusher-v5"])
def test_two_stepping_workers_give_the_same_bits_as_one(env_id: str) -> None:
    bits = []
    for workers in (1, 2):
        env = VectorEnv(env_id, 5, workers=workers)
        env.seed([(3, index) for index in range(5)])
        seen = [env.reset()]
        generator = np.random.default_rng(0)
        for _ in range(40):
            step = env.step(generator.uniform(-0.4, 0.4, size=(5, env.spec.action_size)).astype(np.float32))
            seen += [step.observation, step.reward]
            env.reset([int(index) for index in np.flatnonzero(step.ended)])
        env.close()
        bits.append(b"".join(array.tobytes() for array in seen))
    assert bits[0] == bits[1]


def test_time_limit_truncates_at_the_step_where_gymnasium_does() -> None:
    ours = VectorEnv("HalfCheetah-v4", 1, max_episode_steps=7)
    ours.reset()
    flags = [bool(ours.step(np.zeros((1, 6), dtype=np.float32)).truncated[0]) for _ in range(7)]
    assert flags == [False] * 6 + [True]


def test_action_that_is_not_finite_is_refused_by_place_and_steps_nothing() -> None:
    env = VectorEnv("Ant-v4", 3)
    env.seed([0, 1, 2])
    env.reset()
    before = env.get_state()
    action = np.zeros((3, 8), dtype=np.float32)
    action[2, 5] = np.nan
    with pytest.raises(ActionError, match="action 5 of environment 2 is nan"):
        env.step(action)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_unknown_environment_is_one_line_with_the_nearest_id() -> None:
    with pytest.raises(ConfigError, match="did you mean 'HalfCheetah-v4'") as caught:
        VectorEnv("HalfCheeta-v4", 1)
    assert "\n" not in str(caught.value)


def test_environment_with_discrete_actions_has_no_sizes_for_a_policy() -> None:
    env = VectorEnv("CartPole-v1", 1)
    with pytest.raises(ConfigError, match="expected a one-dimensional Box"):
        _ = env.spec


def test_any_other_id_steps_through_its_own_class() -> None:
    ours, theirs = VectorEnv("Pusher-v5", 1), gymnasium.make("Pusher-v5")
    ours.seed([4])
    np.testing.assert_array_equal(ours.reset()[0], theirs.reset(seed=4)[0])
    action = np.full((1, 7), 0.3, dtype=np.float32)
    for _ in range(20):
        observation, reward, *_ = theirs.step(action[0])
        step = ours.step(action)
        np.testing.assert_array_equal(step.observation[0], observation)
        assert step.reward[0] == reward
    theirs.close()
