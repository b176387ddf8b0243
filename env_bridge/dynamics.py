"""Applying the dynamics of a task to a MuJoCo model, always from the pristine values."""

from __future__ import annotations

import copy
from typing import Final

import mujoco
import structlog
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from env_bridge.tasks import has_nominal_dynamics
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

log = structlog.get_logger(__name__)

HARMLESS: Final = "'settotalmass' is deprecated"  # said of Gymnasium's own half_cheetah.xml at each load


def route_warnings_to_log() -> None:
    """Log MuJoCo's warnings instead of writing MUJOCO_LOG.TXT into the working directory; for processes' mains."""
    mujoco.set_mju_user_warning(_log_warning)


def _log_warning(text: str) -> None:
    if HARMLESS not in text:
        log.warning("mujoco", text=text)


def load_model(xml_file: str) -> mujoco.MjModel:
    """Compile one of Gymnasium's model files, without MuJoCo's MUJOCO_LOG.TXT in the working directory."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_log_warning)
    try:
        return mujoco.MjModel.from_xml_path(expand_model_path(xml_file))
    finally:
        mujoco.set_mju_user_warning(before)


def shifted_model(pristine: mujoco.MjModel, task: TaskParameters) -> mujoco.MjModel:
    """The model of ``task``: ``pristine`` itself where the dynamics are nominal, else a changed copy.

    Masses and inertias scale together; MuJoCo's derived constants (inverse weights, subtree masses) follow through
    ``mj_setConst``. Friction scales the sliding coefficient of all geoms and explicit contact pairs. A crippled
    actuator gives no force at all.

    Raises:
        ConfigError: the crippled actuator does not exist.
    """
    if has_nominal_dynamics(task):
        return pristine
    if task.crippled is not None and task.crippled >= pristine.nu:
        raise ConfigError(f"task parameter crippled={task.crippled}: the robot has actuators 0 to {pristine.nu - 1}")
    model = copy.copy(pristine)
    model.opt.gravity[:] *= task.gravity
    model.geom_friction[:, 0] *= task.friction
    model.pair_friction[:, :2] *= task.friction
    model.dof_damping[:] *= task.damping
    model.actuator_gainprm[:] *= task.actuator_gain
    if task.crippled is not None:
        model.actuator_gainprm[task.crippled] = 0.0
        model.actuator_biasprm[task.crippled] = 0.0
    if task.mass != 1.0:
        model.body_mass[:] *= task.mass
        model.body_inertia[:] *= task.mass
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def dynamics_key(task: TaskParameters) -> tuple[object, ...]:
    """What two tasks must share to share a model."""
    return (task.gravity, task.mass, task.friction, task.damping, task.actuator_gain, task.crippled)
