"""Where the environments of a `BridgeVectorEnv` are stepped: in this process, or (`worker_lanes`) in workers.

Letters: E environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from env_bridge.autoreset import AutoresetEnv, Batch, Mask
from env_bridge.crew import Crew
from env_bridge.gym_physics import GymSimulation
from env_bridge.infos import Columns, Told
from env_bridge.physics import RobotSimulation
from env_bridge.shared_arrays import ArraySpec
from env_bridge.vector_env import VectorEnv, import_id, take
from swarm.environment import TaskParameters
from swarm.messages import Json

PENDING = "pending_reset"
States = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOptions:
    """What environments are made of; plain data, so that a worker can be told.

    Attributes:
        options: constructor options of the environment's class.
        max_episode_steps: overrides the environment's own limit.
        is_drawn: states before each step are kept, where they are at hand.
    """

    env_id: str
    num_envs: int
    mode: AutoresetMode
    options: Mapping[str, Json]
    max_episode_steps: int | None
    is_drawn: bool = False

    def make(self, num_envs: int | None = None, *, crew: Crew | None = None) -> VectorEnv:
        """Build the environments, or another number of them. Raises ``ConfigError``."""
        return VectorEnv(
            import_id(self.env_id),
            self.num_envs if num_envs is None else num_envs,
            max_episode_steps=self.max_episode_steps,
            options=self.options,
            infos=True,
            crew=crew,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Started:
    """What a reset gave: all observations (E, …) and the infos of the environments that were reset."""

    observation: NDArray[Any]
    columns: Columns
    told: Told


class Lanes(Protocol):
    """E environments with autoreset. Not thread-safe."""

    @property
    def num_replaced(self) -> int:
        """Workers that were lost and replaced."""
        ...

    def reset(self, seeds: Sequence[int | None], mask: Mask, options: Mapping[str, Json] | None = None) -> Started:
        """Start new episodes where ``mask`` says so, with a fresh generator where there is a seed.

        Args:
            options: for environments that step through their own class.
        """
        ...

    def check_ready(self) -> None:
        """Raise ``PeerLost`` where environments lost their worker outside a step, and were not reset or set since."""
        ...

    def send(self, action: NDArray[Any]) -> None:
        """Begin a step with checked actions (E, …)."""
        ...

    def settle(self) -> None:
        """Wait until nobody steps any more; interrupted, it may be called again. ``wait`` may follow, or ``send``.

        Raises:
            PeerLost: workers are lost again and again.
        """
        ...

    def delegate(self) -> None:
        """The caller does not wait for the step at once."""
        ...

    def wait(self) -> Batch:
        """`settle`, and return what the step gave; the arrays are the caller's to keep."""
        ...

    def is_at_hand(self) -> bool:
        """Whether all workers are there, so that ``send`` and ``delegate`` wait for none."""
        ...

    def descriptors(self) -> Sequence[int]:
        """What becomes readable when ``wait`` need not wait any more."""
        ...

    def pids(self) -> Sequence[int]:
        """Of the workers."""
        ...

    def before(self) -> NDArray[np.float64] | None:
        """Integration states (E, S) of robots before the last step; ``None``: not known."""
        ...

    def members(self) -> Sequence[gymnasium.Env[Any, Any]]:
        """Objects of the environments' class in this process; none for robots, and where workers have them."""
        ...

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Give each environment its task. Raises ``ConfigError`` where one does not fit."""
        ...

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the future depends on, leading axis E."""
        ...

    def set_state(self, state: States) -> None:
        """Return to an earlier ``get_state``. Raises ``ConfigError`` where it does not fit."""
        ...

    def close(self) -> None:
        """Release threads, processes and memory."""
        ...


class LocalLanes:
    """All environments in this process; a ``crew`` of others may step its robots at the same time."""

    def __init__(self, given: LaneOptions, env: VectorEnv, crew: Crew | None = None) -> None:
        self._env = AutoresetEnv(env, given.mode)
        self._crew = crew
        self._is_drawn = given.is_drawn and isinstance(env.simulation, RobotSimulation)
        self._before: NDArray[np.float64] | None = None
        if isinstance(env.simulation, GymSimulation):  # a class that is given no seed at first is told none
            env.generators = [np.random.Generator(np.random.PCG64()) for _ in env.generators]

    @property
    def num_replaced(self) -> int:
        """See `Lanes`."""
        return 0 if self._crew is None else self._crew.num_replaced

    def reset(self, seeds: Sequence[int | None], mask: Mask, options: Mapping[str, Json] | None = None) -> Started:
        """See `Lanes`."""
        self._env.env.reseed([seed if fresh else None for seed, fresh in zip(seeds, mask.tolist(), strict=True)])
        observation, columns, told = self._env.reset(mask, options)
        return Started(observation=observation, columns=columns, told=told)

    def check_ready(self) -> None:
        """Nothing: environments are kept here, and outside a step nobody else holds one."""

    def send(self, action: NDArray[Any]) -> None:
        """See `Lanes`."""
        if self._is_drawn:
            self._before = self._env.env.simulation.get_state()["physics"]
        self._env.send(action)

    def settle(self) -> None:
        """See `Lanes`."""
        self._env.env.simulation.settle()

    def delegate(self) -> None:
        """See `Lanes`."""
        if self._crew is not None:
            self._crew.delegate()

    def wait(self) -> Batch:
        """See `Lanes`."""
        return self._env.wait()

    def is_at_hand(self) -> bool:
        """See `Lanes`."""
        return self._crew is None or self._crew.is_at_hand()

    def descriptors(self) -> Sequence[int]:
        """See `Lanes`."""
        return () if self._crew is None else self._crew.descriptors()

    def pids(self) -> Sequence[int]:
        """See `Lanes`."""
        return () if self._crew is None else self._crew.pids()

    def before(self) -> NDArray[np.float64] | None:
        """See `Lanes`."""
        return self._before

    def members(self) -> Sequence[gymnasium.Env[Any, Any]]:
        """See `Lanes`."""
        simulation = self._env.env.simulation
        return simulation.members if isinstance(simulation, GymSimulation) else ()

    def expect_reset(self) -> None:
        """Have the next step reset every environment."""
        self._env.pending = np.ones_like(self._env.pending)

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """See `Lanes`."""
        self._env.env.set_tasks(tasks)

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """See `Lanes`."""
        return self._env.env.get_state() | {PENDING: self._env.pending.copy()}

    def set_state(self, state: States) -> None:
        """See `Lanes`."""
        pending = take(state, PENDING, np.bool_, (self._env.env.num_envs,))
        self._env.env.set_state(state)
        self._env.pending = np.array(pending, dtype=np.bool_)

    def close(self) -> None:
        """See `Lanes`."""
        self._env.env.close()


def shared_specs(env: VectorEnv, given: LaneOptions) -> list[ArraySpec]:
    """Arrays that stepping workers share with their owner, from an environment of the same kind."""
    shape, dtype = env.simulation.observe().shape[1:], env.simulation.observe().dtype
    actions = env.simulation.action_space
    per_env: list[tuple[str, Any, tuple[int, ...]]] = [
        ("action", actions.dtype, actions.shape or ()),
        ("observation", dtype, shape),
        ("reward", np.float64, ()),
        *((name, np.bool_, ()) for name in ("terminated", "truncated", "diverged")),
    ]
    if given.mode is AutoresetMode.SAME_STEP:
        per_env.append(("final_observation", dtype, shape))
    return [
        ArraySpec(name=name, dtype=np.dtype(kind).str, shape=(given.num_envs, *rest)) for name, kind, rest in per_env
    ]
