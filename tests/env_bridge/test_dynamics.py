"""Dynamics in place: equal to a model compiled with the changed values, and back to nominal to the last bit."""

from __future__ import annotations

import copy

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from env_bridge.dynamics import ModelPool, apply_dynamics
from env_bridge.models import load_model
from env_bridge.vector_env import VectorEnv
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

FILES = ("half_cheetah.xml", "ant.xml", "humanoid.xml", "walker2d.xml", "walker2d_v5.xml", "hopper.xml")
SHIFTS = {
    "gravity": TaskParameters(gravity=1.7),
    "mass": TaskParameters(mass=2.3),
    "friction": TaskParameters(friction=0.4),
    "damping": TaskParameters(damping=3.1),
    "actuator_gain": TaskParameters(actuator_gain=0.6),
    "crippled": TaskParameters(crippled=2),
    "all": TaskParameters(gravity=0.8, mass=0.6, friction=1.9, damping=0.5, actuator_gain=1.3, crippled=1),
}
NOMINAL = TaskParameters()


def bits(model: mujoco.MjModel) -> bytes:
    """The whole model as bytes, as MuJoCo saves it."""
    buffer = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def compiled(xml_file: str, task: TaskParameters) -> mujoco.MjModel:
    """The model compiled anew by MuJoCo, every value that ``task`` changes written into its specification."""
    from gymnasium.envs.mujoco.mujoco_env import expand_model_path

    pristine = load_model(xml_file)
    spec = mujoco.MjSpec.from_file(expand_model_path(xml_file))
    spec.compiler.inertiafromgeom = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_FALSE
    spec.option.gravity = pristine.opt.gravity * task.gravity
    for index, body in enumerate(spec.bodies[1:], start=1):
        body.explicitinertial = True
        body.mass, body.inertia = pristine.body_mass[index] * task.mass, pristine.body_inertia[index] * task.mass
        body.ipos, body.iquat = pristine.body_ipos[index], pristine.body_iquat[index]
    if xml_file == "half_cheetah.xml":
        spec.compiler.settotalmass = -1.0  # deprecated, and already in the masses read above
    for index, geom in enumerate(spec.geoms):
        geom.friction[0] = pristine.geom_friction[index, 0] * task.friction
    for joint in spec.joints:
        if joint.type != mujoco.mjtJoint.mjJNT_FREE:
            joint.damping *= task.damping
    for index, actuator in enumerate(spec.actuators):
        actuator.gainprm = actuator.gainprm * (0.0 if index == task.crippled else task.actuator_gain)
    return spec.compile()


@pytest.fixture(params=FILES)
def xml_file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fallen(model: mujoco.MjModel) -> NDArray[np.float64]:
    """State after 200 steps with changing controls, contacts included."""
    data = mujoco.MjData(model)
    draw = np.random.default_rng(0)
    for _ in range(200):
        data.ctrl[:] = draw.uniform(-1, 1, model.nu)
        mujoco.mj_step(model, data)
    return np.concatenate((data.qpos, data.qvel))


@pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass' is deprecated")
@pytest.mark.parametrize("name", SHIFTS)
def test_dynamics_in_place_equal_a_model_compiled_anew(xml_file: str, name: str) -> None:
    pristine = load_model(xml_file)
    model = copy.copy(pristine)
    apply_dynamics(model, pristine, SHIFTS[name], mujoco.MjData(pristine))
    anew = compiled(xml_file, SHIFTS[name])
    for array in ("body_mass", "body_inertia", "geom_friction", "dof_damping", "actuator_gainprm", "dof_M0"):
        np.testing.assert_array_equal(getattr(model, array), getattr(anew, array), err_msg=array)
    for array in ("dof_invweight0", "body_invweight0", "body_subtreemass", "actuator_acc0", "tendon_invweight0"):
        np.testing.assert_array_equal(getattr(model, array), getattr(anew, array), err_msg=array)
    assert (model.stat.meaninertia, model.stat.meanmass) == (anew.stat.meaninertia, anew.stat.meanmass)
    assert (fallen(model) != fallen(pristine)).any()
    np.testing.assert_array_equal(fallen(model), fallen(anew))


def test_back_to_nominal_every_bit_of_the_model_is_as_before(xml_file: str) -> None:
    pristine = load_model(xml_file)
    before, model, scratch = bits(pristine), copy.copy(pristine), mujoco.MjData(pristine)
    for task in SHIFTS.values():
        apply_dynamics(model, pristine, task, scratch)
        assert bits(model) != before
        apply_dynamics(model, pristine, NOMINAL, scratch)
        assert bits(model) == before
    assert bits(pristine) == before


def test_what_a_model_was_before_leaves_no_trace(xml_file: str) -> None:
    pristine = load_model(xml_file)
    scratch = mujoco.MjData(pristine)
    used, fresh = copy.copy(pristine), copy.copy(pristine)
    for task in SHIFTS.values():
        apply_dynamics(used, pristine, task, scratch)
    apply_dynamics(fresh, pristine, SHIFTS["mass"], mujoco.MjData(pristine))
    apply_dynamics(used, pristine, SHIFTS["mass"], scratch)
    assert bits(used) == bits(fresh)


def test_statistics_that_the_author_of_a_model_fixed_stay() -> None:
    text = "<mujoco><statistic meaninertia='7'/><worldbody><body><joint/><geom size='.1'/></body></worldbody></mujoco>"
    pristine = mujoco.MjModel.from_xml_string(text)
    model = copy.copy(pristine)
    apply_dynamics(model, pristine, TaskParameters(mass=2.0), mujoco.MjData(pristine))
    assert model.stat.meaninertia == 7.0
    assert model.stat.meanmass == pytest.approx(2 * pristine.stat.meanmass)


def test_environments_of_the_same_dynamics_share_a_model_and_unused_ones_are_rewritten() -> None:
    pristine = load_model("hopper.xml")
    pool = ModelPool(pristine)
    heavy, light = TaskParameters(mass=2.0), TaskParameters(mass=0.5)
    first = pool.assign([heavy, NOMINAL, light, TaskParameters(mass=2.0, velocity=1.0)])
    assert first[1] is pristine
    assert first[0] is first[3]
    assert first[0] is not first[2]
    second = pool.assign([light, TaskParameters(gravity=2.0), NOMINAL, NOMINAL])
    assert second[0] is first[2]
    assert second[1] is first[0]
    np.testing.assert_array_equal(second[1].body_mass, pristine.body_mass)
    assert pool.assign([NOMINAL] * 4) == [pristine] * 4


def test_an_actuator_that_is_not_there_is_refused_before_anything_changes() -> None:
    pristine = load_model("hopper.xml")
    pool = ModelPool(pristine)
    heavy = pool.assign([TaskParameters(mass=2.0)])[0]
    before = bits(heavy)
    with pytest.raises(ConfigError, match="crippled=3: the robot has actuators 0 to 2"):
        pool.assign([TaskParameters(gravity=2.0), TaskParameters(crippled=3)])
    assert bits(heavy) == before


def test_dynamics_may_change_within_an_episode_and_state_stays() -> None:
    env = VectorEnv("HalfCheetah-v4", 2)
    env.seed([0, 1])
    env.reset()
    action = np.full((2, 6), 0.5, np.float32)
    for _ in range(5):
        env.step(action)
    before = env.simulation.qpos()
    env.set_tasks((TaskParameters(mass=3.0), NOMINAL))
    np.testing.assert_array_equal(env.simulation.qpos(), before)
    env.set_tasks((TaskParameters(gravity=2.0), TaskParameters(mass=3.0)))
    env.set_tasks((NOMINAL, NOMINAL))
    other = VectorEnv("HalfCheetah-v4", 2)
    other.seed([0, 1])
    other.reset()
    for _ in range(5):
        other.step(action)
    np.testing.assert_array_equal(env.step(action).observation, other.step(action).observation)
    env.close()
    other.close()
