"""What stands between the simulation and what a policy sees: observations that come late, and noise on them.

Letters: E environments, O observation (any shape, that of a single number included), D age of an observation in steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from env_bridge.generators import GENERATOR_WORDS, pack_generator, unpack_generator
from env_bridge.tasks import has_own_sensors
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

Observations = NDArray[Any]
STREAM: Final = 0x5E_25_02
"""Sets the streams of noise apart from those that environments draw their initial states from."""


def check_sensors(tasks: Sequence[TaskParameters], observation: np.dtype[Any]) -> None:
    """Raise ``ConfigError`` for noise on observations of a type that are no real numbers."""
    if observation.kind != "f" and any(task.sensor_noise > 0.0 for task in tasks):
        raise ConfigError(f"sensor noise needs observations of real numbers; these are {observation}")


class Sensors:
    """Delay and noise of N environments; changes nothing, and costs nothing, where no task asks for them.

    After step t of an episode a policy sees the observation of step max(0, t - delay), step 0 being the reset, plus
    noise that is drawn anew each step. What an environment's own generator gives stays as it is: each environment's
    noise has a generator of its own, made of the state of the environment's when noise is first drawn after a seed, or
    after a task without noise.

    Where a task with another delay starts within an episode, observations age from then on.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._delay = np.zeros(num_envs, dtype=np.int64)
        self._noise = np.zeros(num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._known = np.zeros(num_envs, dtype=np.bool_)
        self._head = np.zeros(num_envs, dtype=np.int64)
        self._history: Observations | None = None
        self._seen: Observations | None = None
        self._plain = True

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Take delay and noise of each environment from its task; what has the same delay keeps what it remembers.

        Args:
            tasks: that `check_sensors` has let pass for these environments' observations.
        """
        delay = np.array([task.observation_delay for task in tasks], dtype=np.int64)
        aged = self._aged()
        self._known &= delay == self._delay
        self._delay, self._noise = delay, np.array([task.sensor_noise for task in tasks], dtype=np.float64)
        self._plain = all(has_own_sensors(task) for task in tasks)
        for index in np.flatnonzero(self._noise == 0.0).tolist():
            self._generators[index] = None
        self._history = None
        if self._plain:
            self._known[:] = False
            self._seen = None
        elif aged is not None:
            self._remember(aged)

    def seed(self, indices: Iterable[int]) -> None:
        """Forget the noise generators of ``indices``, whose environments were just given new seeds."""
        for index in indices:
            self._generators[index] = None

    def reset(
        self, indices: Iterable[int], observation: Observations, generators: Sequence[np.random.Generator]
    ) -> Observations:
        """Start new episodes in ``indices``; return what is seen of all environments (E, O).

        Args:
            indices: whose rows of ``observation`` are those of a reset; of others, what was last seen is returned.
            observation: (E, O) as the simulation gives it; not changed, and returned where there is nothing to do.
            generators: the environments' own, which are only looked at.
        """
        if self._plain:
            return observation
        rows = np.zeros(self.num_envs, dtype=np.bool_)
        rows[list(indices)] = True
        self._known[rows] = False
        return self._look(observation, rows, generators)

    def last(self, observation: Observations) -> Observations:
        """What was last seen of all environments (E, O); ``observation`` where nothing is remembered."""
        return observation if self._plain or self._seen is None else self._seen.copy()

    def sense(
        self, observation: Observations, active: NDArray[np.bool_] | None, generators: Sequence[np.random.Generator]
    ) -> Observations:
        """What is seen (E, O) after a step of the environments that are ``active`` (``None``: all); else as `reset`."""
        if self._plain:
            return observation
        rows = np.ones(self.num_envs, dtype=np.bool_) if active is None else active
        return self._look(observation, rows, generators)

    def _look(
        self, observation: Observations, rows: NDArray[np.bool_], generators: Sequence[np.random.Generator]
    ) -> Observations:
        self._allocate(observation)
        assert self._history is not None and self._seen is not None  # noqa: PT018
        depth = self._history.shape[1]
        first = rows & ~self._known
        self._history[first] = observation[first][:, None]
        self._known |= rows
        self._head[rows] = (self._head[rows] + 1) % depth
        stepped = np.flatnonzero(rows)
        self._history[stepped, self._head[stepped]] = observation[stepped]
        seen = self._history[stepped, (self._head[stepped] - self._delay[stepped]) % depth]
        for place in np.flatnonzero(self._noise[stepped] > 0.0).tolist():
            index = int(stepped[place])
            drawn = self._generator(index, generators).standard_normal(seen[place].shape)
            seen[place] += self._noise[index] * drawn
        self._seen[stepped] = seen
        never = ~self._known
        self._seen[never] = observation[never]
        return self._seen.copy()

    def _generator(self, index: int, generators: Sequence[np.random.Generator]) -> np.random.Generator:
        found = self._generators[index]
        if found is None:
            entropy = [int(word) for word in pack_generator(generators[index])]
            found = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=(STREAM,))))
            self._generators[index] = found
        return found

    def _allocate(self, observation: Observations) -> None:
        if self._history is None:
            depth = int(self._delay.max()) + 1
            self._history = np.zeros((self.num_envs, depth, *observation.shape[1:]), observation.dtype)
            self._head[:] = 0
        if self._seen is None:
            self._seen = observation.copy()
        if self._seen.shape != observation.shape:
            raise ConfigError(
                f"sensors remember observations {self._seen.shape}, got {observation.shape}; "
                "continue with a snapshot of the same environments"
            )

    def _aged(self) -> Observations | None:
        """What is remembered, by age: (E, D, O)."""
        if self._history is None:
            return None
        depth = self._history.shape[1]
        order = (self._head[:, None] - np.arange(depth)) % depth
        aged: Observations = self._history[np.arange(self.num_envs)[:, None], order]
        return aged

    def _remember(self, aged: Observations) -> None:
        """Remember what `_aged` gave, as much of it as the delays need."""
        depth = int(self._delay.max()) + 1
        history = np.zeros((self.num_envs, depth, *aged.shape[2:]), aged.dtype)
        kept = min(depth, aged.shape[1])
        history[:, -np.arange(kept) % depth] = aged[:, :kept]
        self._history = history
        self._head[:] = 0

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """What future observations depend on, leading axis E; empty where there is nothing to remember."""
        aged = self._aged()
        if self._plain or aged is None or self._seen is None:
            return {}
        words = np.zeros((self.num_envs, GENERATOR_WORDS), dtype=np.uint64)
        for row, generator in zip(words, self._generators, strict=True):
            if generator is not None:
                row[:] = pack_generator(generator)
        return {
            "sensor.delay": np.where(self._known, self._delay, -1),
            "sensor.history": aged,
            "sensor.seen": self._seen.copy(),
            "sensor.generator": words,
        }

    def set_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Return to an earlier ``get_state``, under the present tasks; other arrays of ``state`` are not looked at.

        Environments that have another delay now than then, and all of them where ``state`` has none of these arrays,
        start as after a change of tasks.

        Raises:
            ConfigError: arrays are missing or do not fit; then nothing changes.
        """
        found = {name: state[f"sensor.{name}"] for name in _NAMES if f"sensor.{name}" in state}
        if found:
            _check(found, self.num_envs)
        self._generators = [None] * self.num_envs
        self._known[:] = False
        self._history = self._seen = None
        if not found or self._plain:
            return
        self._generators = [unpack_generator(row) if row.any() else None for row in found["generator"]]
        self._known = np.asarray(found["delay"] == self._delay)
        self._seen = found["seen"].copy()
        self._remember(found["history"])


_NAMES: Final = ("delay", "history", "seen", "generator")


def _check(found: Mapping[str, NDArray[Any]], num_envs: int) -> None:
    """Raise ``ConfigError`` unless arrays of a snapshot fit each other and ``num_envs`` environments."""
    for name in _NAMES:
        if name not in found:
            raise ConfigError(f"snapshot without 'sensor.{name}': expected all of {', '.join(_NAMES)}, or none")
    delay, history, seen, generator = (found[name] for name in _NAMES)
    fits = (
        delay.shape == (num_envs,)
        and delay.dtype == np.int64
        and generator.shape == (num_envs, GENERATOR_WORDS)
        and generator.dtype == np.uint64
        and seen.shape[:1] == (num_envs,)
        and history.shape[:1] == (num_envs,)
        and history.ndim == seen.ndim + 1
        and history.shape[2:] == seen.shape[1:]
        and history.dtype == seen.dtype
        and bool((delay < history.shape[1]).all())
    )
    if not fits:
        shapes = ", ".join(f"sensor.{name} {found[name].dtype} {found[name].shape}" for name in _NAMES)
        raise ConfigError(f"snapshot of sensors does not fit {num_envs} environments: got {shapes}")
