"""Applying the dynamics of tasks to MuJoCo models in place, always from the pristine values.

Nothing is compiled anew and, once as many models exist as there are different dynamics at a time, nothing is copied.
What results equals a model compiled with the changed values, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final

import mujoco
import numpy as np

from env_bridge.tasks import has_nominal_dynamics
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

DERIVED_FROM_MASS: Final = (
    "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "tendon_invweight0", "actuator_acc0",
    "cam_poscom0", "light_poscom0",
)  # fmt: skip
"""Arrays that ``mj_setConst`` computes from masses and inertias; no other factor changes any of them."""


def apply_dynamics(
    model: mujoco.MjModel, pristine: mujoco.MjModel, task: TaskParameters, scratch: mujoco.MjData
) -> None:
    """Make ``model`` what ``pristine`` is under ``task``, whatever it was under before.

    Masses and inertias scale together. Friction scales the sliding coefficient of all geoms and explicit contact pairs.
    A crippled actuator gives no force at all.

    Args:
        model: rewritten; a copy of ``pristine``, made at any time.
        pristine: only read.
        scratch: data of either model that nobody needs; ``mj_setConst`` overwrites its state.

    Raises:
        ConfigError: the crippled actuator does not exist; then nothing changed.
    """
    check_actuator(pristine, task)
    np.multiply(pristine.opt.gravity, task.gravity, out=model.opt.gravity)
    np.multiply(pristine.geom_friction[:, 0], task.friction, out=model.geom_friction[:, 0])
    np.multiply(pristine.pair_friction[:, :2], task.friction, out=model.pair_friction[:, :2])
    np.multiply(pristine.dof_damping, task.damping, out=model.dof_damping)
    np.multiply(pristine.actuator_gainprm, task.actuator_gain, out=model.actuator_gainprm)
    np.copyto(model.actuator_biasprm, pristine.actuator_biasprm)
    if task.crippled is not None:
        model.actuator_gainprm[task.crippled] = 0.0
        model.actuator_biasprm[task.crippled] = 0.0
    np.multiply(pristine.body_mass, task.mass, out=model.body_mass)
    np.multiply(pristine.body_inertia, task.mass, out=model.body_inertia)
    if task.mass == 1.0:
        for name in DERIVED_FROM_MASS:
            np.copyto(getattr(model, name), getattr(pristine, name))
        model.stat.meaninertia, model.stat.meanmass = pristine.stat.meaninertia, pristine.stat.meanmass
    else:
        mujoco.mj_resetData(model, scratch)
        mujoco.mj_setConst(model, scratch)
        _derive_statistics(model, pristine)


def check_actuator(model: mujoco.MjModel, task: TaskParameters) -> None:
    """Raise ``ConfigError`` where ``task`` cripples an actuator that the model does not have."""
    if task.crippled is not None and task.crippled >= model.nu:
        raise ConfigError(f"task parameter crippled={task.crippled}: the robot has actuators 0 to {model.nu - 1}")


def _derive_statistics(model: mujoco.MjModel, pristine: mujoco.MjModel) -> None:
    """Means that the compiler computes and ``mj_setConst`` does not; the solver's tolerance scales with the inertia.

    Where the model's author fixed them (``<statistic>``), they stay.
    """
    if pristine.stat.meaninertia == _mean_inertia(pristine):
        model.stat.meaninertia = _mean_inertia(model)
    if pristine.stat.meanmass == _mean_mass(pristine):
        model.stat.meanmass = _mean_mass(model)


def _mean_inertia(model: mujoco.MjModel) -> float:
    return float(sum(model.dof_M0.tolist()) / max(model.nv, 1))


def _mean_mass(model: mujoco.MjModel) -> float:
    return float(sum(model.body_mass[1:].tolist()) / max(model.nbody - 1, 1))


class ModelPool:
    """The models of N environments: one for each different dynamics, the pristine one where they are nominal.

    Models that no environment uses any more are rewritten for new dynamics, so that after the first changes there is
    nothing to allocate.
    """

    def __init__(self, pristine: mujoco.MjModel) -> None:
        self._pristine = pristine
        self._scratch: mujoco.MjData | None = None
        self._models: dict[tuple[object, ...], mujoco.MjModel] = {}
        self._free: list[mujoco.MjModel] = []

    def assign(self, tasks: Sequence[TaskParameters]) -> list[mujoco.MjModel]:
        """The model of each environment; those of earlier calls may be rewritten, so all must be replaced by these.

        Raises:
            ConfigError: a crippled actuator does not exist; then nothing changed.
        """
        for task in tasks:
            check_actuator(self._pristine, task)
        wanted = {dynamics_key(task): task for task in tasks if not has_nominal_dynamics(task)}
        for key in [key for key in self._models if key not in wanted]:
            self._free.append(self._models.pop(key))
        for key, task in wanted.items():
            if key not in self._models:
                self._models[key] = self._make(task)
        return [self._models.get(dynamics_key(task), self._pristine) for task in tasks]

    def _make(self, task: TaskParameters) -> mujoco.MjModel:
        if self._scratch is None:
            self._scratch = mujoco.MjData(self._pristine)
        model = self._free.pop() if self._free else copy.copy(self._pristine)
        apply_dynamics(model, self._pristine, task, self._scratch)
        return model


def dynamics_key(task: TaskParameters) -> tuple[object, ...]:
    """What two tasks must share to share a model."""
    return (task.gravity, task.mass, task.friction, task.damping, task.actuator_gain, task.crippled)


class Models:
    """The models of N simulations of one robot.

    Attributes:
        each: by simulation.
        addresses: (N,) where they are, for compiled code.
    """

    def __init__(self, pristine: mujoco.MjModel, num: int) -> None:
        self._pool = ModelPool(pristine)
        self.each = [pristine] * num
        self.addresses = np.full(num, pristine._address, np.int64)

    def assign(self, tasks: Sequence[TaskParameters]) -> None:
        """Give each simulation the dynamics of its task. Raises ``ConfigError`` as `ModelPool.assign`."""
        self.each = self._pool.assign(tasks)
        self.addresses[:] = [model._address for model in self.each]
