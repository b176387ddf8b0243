"""`BridgeVectorEnv`: the environments of the bridge as a ``gymnasium.vector.VectorEnv``, for plain synchronous code.

Letters: E environments, O observation, A action.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from env_bridge import action_arrays, arguments, vector_env
from env_bridge.autoreset import Batch, assemble
from env_bridge.generators import unpack_generator
from env_bridge.gym_attributes import UNKNOWN_SEED, class_metadata, effective_spec
from env_bridge.lanes import PENDING, LaneOptions
from env_bridge.physics import RobotSimulation
from env_bridge.tasks import check_task
from env_bridge.viewer import Viewer, check_mode
from env_bridge.worker_lanes import make_lanes
from env_bridge.worker_process import PATIENCE_S
from swarm.environment import EnvironmentSpec, TaskParameters
from swarm.errors import ConfigError


class BridgeVectorEnv(VectorEnv[NDArray[Any], NDArray[Any], NDArray[Any]]):
    """N environments of one id, equal to Gymnasium's ``SyncVectorEnv`` of the same id, options and autoreset mode.

    That is: observations, rewards, flags and infos, bit for bit, for float32 actions; see ``docs/exactness.md``. What
    Gymnasium has no word for comes as further infos, only when it happens: ``diverged`` (the simulation broke down; the
    row is no valid transition, and truncated) and ``lost`` (its worker died or hung and was replaced; the row belongs
    to no episode, and is truncated).

    Args:
        env_id: a Gymnasium id; ``module:Id`` imports the module that registers it, here and in each worker.
        num_envs: how many.
        workers: processes that step: in `step` this one and others, after `step_async` others alone; 0: only this one.
            ``None``: only this one for up to `arguments.FEW` environments, else as many as there are processors. While
            none is lost, they never change a bit.
        autoreset_mode: as in Gymnasium.
        max_episode_steps: overrides the environment's own limit.
        tasks: task parameters per environment; ``reset(options={"tasks": …})`` changes them.
        actions: ``gymnasium``: out of range is taken as there; ``strict``: it is an ``ActionError``.
        patience_s: a worker that has not answered after so many seconds hangs.
        options: constructor options of the environment's class; with ``render_mode``, `render` draws.

    Raises:
        ConfigError: an unknown id or option, or a value that does not fit.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        workers: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        tasks: Sequence[TaskParameters] | None = None,
        actions: str = "gymnasium",
        patience_s: float = PATIENCE_S,
        **options: Any,  # noqa: ANN401 - as Gymnasium's
    ) -> None:
        self.closed = True  # nothing to close yet, should this fail
        self.render_mode = options.pop("render_mode", None)
        if self.render_mode is not None:
            check_mode(self.render_mode)
        else:
            vector_env.check_undrawn(env_id, options)
        num_workers = arguments.check(num_envs, workers, actions, patience_s)
        num_envs = int(num_envs)
        given = LaneOptions(
            env_id=env_id,
            num_envs=num_envs,
            mode=arguments.autoreset_mode(autoreset_mode),
            options=options,
            is_drawn=self.render_mode is not None,
            max_episode_steps=vector_env.check_time_limit(max_episode_steps),
        )
        specimen = given.make(1)
        self._given, self._is_strict = given, actions == "strict"
        self._describe(specimen)
        self._action_limits = arguments.limits(self.action_space)
        self._lanes = make_lanes(given, specimen, num_workers, patience_s)
        self._release = weakref.finalize(self, self._lanes.close)  # should nobody call `close`
        specimen.close()
        self.closed = False
        self.patience_s = patience_s
        self._is_stepping = False
        self._is_torn = False
        self._has_tasks = True
        self._viewer: Viewer | None = None
        self._pending = np.zeros(num_envs, dtype=np.bool_)
        self._unstarted, self._are_started = np.ones(num_envs, dtype=np.bool_), False
        self._seeds = [UNKNOWN_SEED] * num_envs
        self.num_diverged = 0
        if tasks is not None:
            try:
                self.set_tasks(tasks)
            except BaseException:
                self.close()
                raise

    def _describe(self, specimen: vector_env.VectorEnv) -> None:
        """Set Gymnasium's attributes, and learn the keys of a robot's infos from one that is stepped once."""
        simulation = specimen.simulation
        self.num_envs = self._given.num_envs
        self._is_robot = isinstance(simulation, RobotSimulation)
        self.spec = effective_spec(self._given, specimen.max_episode_steps, self.render_mode)
        self.metadata = dict(class_metadata(specimen)) | {"autoreset_mode": self._given.mode}
        self.single_observation_space = simulation.observation_space
        self.single_action_space = simulation.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._action_shape = (self.num_envs, *(self.single_action_space.shape or ()))
        self._action_dtype = self.single_action_space.dtype
        self._reset_keys: tuple[str, ...] = ()
        if self._is_robot:  # others tell theirs one by one, and may refuse zeros
            specimen.reset()
            self._reset_keys = tuple(specimen.reset_info())
            simulation.send(np.zeros((1, *self._action_shape[1:]), self._action_dtype), np.arange(1))
            simulation.wait()
        self._step_keys = tuple(simulation.step_columns())

    def describe(self) -> EnvironmentSpec:
        """Sizes and limits. Raises ``ConfigError`` where spaces are not one-dimensional boxes."""
        specimen = self._given.make(1)
        try:
            return specimen.spec
        finally:
            specimen.close()

    @property
    def num_replaced(self) -> int:
        """Workers that died or hung and were replaced."""
        return self._lanes.num_replaced

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes that step, this one left out."""
        return tuple(self._lanes.pids())

    # --- attributes of the environments -------------------------------------------------------------------------------

    @property  # type: ignore[misc]  # as in SyncVectorEnv, nobody sets them
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Copies of the environments' generators as they are: what is drawn from them changes nothing."""
        self._check_at_rest("np_random")
        return tuple(unpack_generator(words) for words in self._lanes.get_state()["generator"])

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """Seed of each environment's generator; -1 where it is not known, such as after `set_state`."""
        return tuple(self._seeds)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """One value for each environment: spaces, spec, metadata, and what objects of a class of its own have.

        Raises:
            AttributeError: a robot, which has no object for each environment, or they are in workers.
        """
        common = {"action_space": self.single_action_space, "observation_space": self.single_observation_space}
        common |= {name: getattr(self, name) for name in ("metadata", "render_mode", "spec")}
        if name in common:
            return (common[name],) * self.num_envs
        if name in ("np_random", "np_random_seed"):
            return tuple(getattr(self, name))
        return self.call(name)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as Gymnasium's
        """Call a method of each environment's object, or read an attribute. Raises as `get_attr`."""
        found = [env.get_wrapper_attr(name) for env in self._members(name)]
        return tuple(each(*args, **kwargs) if callable(each) else each for each in found)

    def set_attr(self, name: str, values: Any) -> None:  # noqa: ANN401 - as Gymnasium's
        """Set an attribute of each environment's object: a list or tuple of one value each, or the same for all.

        Raises:
            AttributeError: as `get_attr`.
            ConfigError: not as many values as environments.
        """
        each = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        members = self._members(name)
        if len(each) != len(members):
            raise ConfigError(f"got {len(each)} values of {name!r} for {self.num_envs} environments")
        for env, value in zip(members, each, strict=True):
            env.set_wrapper_attr(name, value)

    def _members(self, name: str) -> Sequence[gymnasium.Env[Any, Any]]:
        self._check_at_rest(name)
        members = self._lanes.members()
        if not members:
            where = (
                "are rows of arrays, not objects: use set_tasks, get_state, set_state or options of the constructor"
                if self._is_robot
                else "are in worker processes: make them with workers=0"
            )
            raise AttributeError(f"cannot reach {name!r}: environments of {self._given.env_id} {where}")
        return members

    def _check_at_rest(self, name: str) -> None:
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("this vector environment is closed; make a new one")
        if self._is_stepping:
            raise gymnasium.error.AlreadyPendingCallError(
                f"{name!r} while a step is under way: call step_wait first", "step"
            )

    # --- Gymnasium's interface ----------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start new episodes; environment e gets ``seed + e`` where ``seed`` is a number.

        Args:
            seed: also one per environment; without one, an environment's generator goes on (at first: a random one).
            options: ``reset_mask`` (E,) of those to reset, ``tasks`` for all environments; others go to the class.

        Raises:
            ConfigError: seeds, mask or tasks that do not fit.
        """
        self._finish_step()
        rest = arguments.reset_options(options)
        mask = arguments.reset_mask(rest.pop("reset_mask", None), self.num_envs)
        seeds = arguments.seeds(seed, self._unstarted & self._is_robot)
        tasks = rest.pop("tasks", None)
        if tasks is not None:
            self.set_tasks(tasks)
        was_torn, self._is_torn = self._is_torn, True  # until all are reset
        started = self._lanes.reset(seeds, mask, rest or None)
        for row in np.flatnonzero(mask).tolist():
            given = seeds[row]
            self._seeds[row] = self._seeds[row] if given is None else given
        self._pending = self._pending & ~mask
        self._unstarted = self._unstarted & ~mask
        self._are_started = not self._unstarted.any()
        self._is_torn = was_torn and not mask.all()
        if started.told:
            return started.observation, self._join_told(started.told)
        return started.observation, assemble(started.columns, (), self._reset_keys, mask)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step all environments, resetting what ended as the autoreset mode says.

        Raises:
            ActionError: an action is not finite, of a wrong shape, or (``strict``) out of range; nothing was stepped.
            gymnasium.error.ResetNeeded: an environment was never reset, or has ended and resets are disabled.
            PeerLost: workers die or hang again and again.
        """
        self._begin(actions, delegate=False)
        return self.step_wait()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step: workers are stepping when this returns. Raises as `step`."""
        self._begin(actions, delegate=True)

    def _begin(self, actions: NDArray[Any], *, delegate: bool) -> None:
        self._finish_step()
        given = actions
        if not isinstance(actions, np.ndarray) or actions.dtype != self._action_dtype:
            given = action_arrays.cast(actions, np.dtype(self._action_dtype), self._action_shape)
        vector_env.check_action(given, self._action_shape)
        if self._is_strict:
            action_arrays.check_range(given, *self._action_limits)
        if not self._are_started:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        if self._given.mode is AutoresetMode.DISABLED and self._pending.any():
            raise gymnasium.error.ResetNeeded(
                f"environment {int(np.argmax(self._pending))} has ended; reset it (options={{'reset_mask': …}})"
            )
        self._check_whole()
        if not self._has_tasks:
            raise gymnasium.error.ResetNeeded("giving tasks failed half way; give them again")
        self._lanes.check_ready()
        self._is_torn = True  # until all are told
        self._lanes.send(given)
        if delegate:
            self._lanes.delegate()
        self._is_stepping, self._is_torn = True, False

    def _check_whole(self) -> None:
        if self._is_torn:
            raise gymnasium.error.ResetNeeded(
                "the last step or reset failed half way; reset all environments, or set a state"
            )

    def step_wait(
        self,
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Finish the step that `step_async` began. Raises as `step`."""
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("this vector environment is closed; make a new one")
        if not self._is_stepping:
            raise gymnasium.error.NoAsyncCallError("no step was begun; call step_async first", "step")
        try:
            self._lanes.settle()  # interrupted, it goes on with the next call
        except Exception:  # of an environment's class, or of lost workers: others may have stepped
            self._is_torn, self._is_stepping = True, False
            raise
        self._is_torn, self._is_stepping = True, False  # in this order; until all is told
        batch = self._lanes.wait()
        infos = self._infos(batch)
        self._pending = batch.ended
        self._is_torn = False
        return batch.observation, batch.reward, batch.terminated, batch.truncated, infos

    def is_at_hand(self) -> bool:
        """Whether all workers are there and know their tasks, so that `step_async` waits for none of them."""
        return not self.closed and self._lanes.is_at_hand()

    def waits_for(self) -> Sequence[int]:
        """Descriptors that become readable when the workers have finished the step that was begun."""
        return () if self.closed else self._lanes.descriptors()

    def _finish_step(self) -> None:
        """Wait for a step whose results nobody fetched (an interrupt came between).

        What it lost nobody would hear of: then it counts as failed.
        """
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("this vector environment is closed; make a new one")
        if self._is_stepping:
            *_, infos = self.step_wait()
            self._is_torn = "lost" in infos
        elif self._is_torn:
            self._lanes.settle()

    def _infos(self, batch: Batch) -> dict[str, Any]:
        if batch.told:
            infos = self._join_told(batch.told)
        elif self._given.mode is AutoresetMode.SAME_STEP:
            infos = self._infos_of_same_step(batch)
        else:
            reset = self._pending if self._given.mode is AutoresetMode.NEXT_STEP else np.zeros_like(self._pending)
            infos = assemble(batch.columns, self._step_keys, self._reset_keys, reset)
        if np.count_nonzero(batch.diverged):
            self.num_diverged += int(batch.diverged.sum())
            infos["diverged"], infos["_diverged"] = batch.diverged, batch.diverged.copy()
        if batch.lost is not None:
            infos["lost"] = infos["_lost"] = batch.lost
            if not self._is_robot:  # a new worker has new generators
                for row in np.flatnonzero(batch.lost).tolist():
                    self._seeds[row] = UNKNOWN_SEED
        return infos

    def _infos_of_same_step(self, batch: Batch) -> dict[str, Any]:
        ended = batch.ended
        infos = assemble(batch.columns, self._step_keys, self._reset_keys, ended)
        if not ended.any():
            return infos
        assert batch.final_observation is not None and batch.final_columns is not None  # noqa: PT018
        observation = np.full(self.num_envs, fill_value=None, dtype=object)
        for index in np.flatnonzero(ended).tolist():
            observation[index] = batch.final_observation[index]
        info = assemble(batch.final_columns, self._step_keys, (), np.zeros_like(ended))
        info |= {f"_{key}": ended.copy() for key in self._step_keys}
        final = {"final_obs": observation, "_final_obs": ended.copy(), "final_info": info, "_final_info": ended.copy()}
        return final | infos if ended[0] else infos | final  # Gymnasium's order: as the environments tell them

    def _join_told(self, told: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for index, info in told:
            infos = self._add_info(infos, info, index)
        return infos

    def render(self) -> tuple[NDArray[Any], ...]:
        """Return one frame for each environment, as Gymnasium's class draws it.

        Raises:
            ConfigError: made without ``render_mode``, or not one of MuJoCo's.
            gymnasium.error.ResetNeeded: a step or reset failed half way.
        """
        self._finish_step()
        self._check_whole()
        if self.render_mode is None:
            raise ConfigError("nothing to draw with: make this vector environment with render_mode='rgb_array'")
        if self._viewer is None:
            self._viewer = Viewer(self._given.env_id, self.render_mode, self._given.options)
        return self._viewer.draw(self._lanes.get_state(), self._lanes.before())

    def close_extras(self, **kwargs: object) -> None:
        """Release workers, threads and memory (called once by ``close``)."""
        if self._viewer is not None:
            self._viewer.close()
        self._lanes.close()
        self._release.detach()  # now: interrupted, `close` may be called again

    # --- tasks and states ---------------------------------------------------------------------------------------------

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Give each environment its task, from the next step on. Raises ``ConfigError`` where one does not fit.

        Then nothing changes; after an interrupt, nothing is stepped until tasks were given again.
        """
        self._finish_step()
        if not isinstance(tasks, Sequence) or not all(isinstance(task, TaskParameters) for task in tasks):
            raise ConfigError(f"got tasks {tasks!r}; expected one TaskParameters for each environment")
        checked = [check_task(task) for task in tasks]
        had_tasks, self._has_tasks = self._has_tasks, False  # until all know theirs
        try:
            self._lanes.set_tasks(checked)
        except ConfigError:
            self._has_tasks = had_tasks
            raise
        self._has_tasks = True

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the future depends on, as plain arrays with leading axis E; see `branch`.

        Raises:
            ConfigError: the environment's class has a state that cannot be read.
            gymnasium.error.ResetNeeded: a step or reset failed half way.
        """
        self._finish_step()
        self._check_whole()
        state = self._lanes.get_state()
        if "physics" not in state:
            raise ConfigError(
                f"{self._given.env_id} is no MuJoCo environment and its class has no get_state(): "
                "it cannot be saved; give the class get_state() and set_state(array)"
            )
        return state

    def set_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Return to an earlier ``get_state``, of this or another vector environment of the same id, options and size.

        Tasks are not part of it. Raises ``ConfigError`` where it does not fit; then nothing changes.
        """
        arguments.check_state(state)
        self._finish_step()
        was_torn, self._is_torn = self._is_torn, True  # until all is set
        try:
            self._lanes.set_state(state)
        except ConfigError:
            self._is_torn = was_torn
            raise
        self._pending = np.array(state[PENDING], dtype=np.bool_)
        self._unstarted[:], self._are_started = False, True
        self._seeds = [UNKNOWN_SEED] * self.num_envs
        self._is_torn = False


def branch(state: Mapping[str, NDArray[np.generic]], index: int, copies: int) -> dict[str, NDArray[np.generic]]:
    """Return the state of ``copies`` environments that all are where environment ``index`` is.

    Their generators are copies as well: their next resets draw the same.

    Raises:
        ConfigError: no such environment, fewer copies than one, or no state.
    """
    arguments.check_branch(state, index, copies)
    return {name: np.repeat(array[index : index + 1], copies, axis=0) for name, array in state.items()}
