"""One rollout in several processes: each steps its own share, and helps a neighbour that is behind.

Each process acts for its own environments, whose board (`stepping.Board`) lies in memory that all share. One that is
ahead, or through, takes simulations from the boards of others; without that, whoever is slowed down by the machine, or
has the harder share, would be waited for. Who steps which simulation never changes a bit.

Letters: W shares, each of one process.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import mujoco
import numpy as np
from numpy.typing import NDArray

from env_bridge.crew import WithoutProcesses
from env_bridge.dynamics import Models
from env_bridge.robots.anatomy import Robot
from env_bridge.shared_arrays import ArraySpec, SharedArrays
from env_bridge.stepping import COUNT, COUNTERS, FEW_LOOKS, Board, Stepper, count_up
from env_bridge.tasks import has_nominal_dynamics, task_from_json, task_to_json
from env_bridge.wire import read, read_maps
from swarm.environment import TaskParameters
from swarm.messages import Json

PROGRESS: Final = "progress"
THROUGH: Final = 1 << 62
"""The progress of a share that is through."""
FEWEST: Final = 2
"""Of a neighbour that has fewer simulations in a step, none are taken."""
REST_S, LONGEST_REST_S = 5e-5, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which environments of a larger rollout these are: they draw what they would draw in the whole.

    Attributes:
        place: which of the shares this is.
        sizes: numbers of environments of all shares, in order.
        tasks: of all environments of the whole, where some have other dynamics than the nominal ones.
    """

    place: int
    sizes: tuple[int, ...]
    tasks: tuple[TaskParameters, ...] = ()

    @property
    def first(self) -> int:
        """Index of the first environment in the whole."""
        return sum(self.sizes[: self.place])

    @property
    def of(self) -> int:
        """Number of environments of the whole."""
        return sum(self.sizes)

    def to_json(self) -> dict[str, Json]:
        """Plain data; `from_json` gives an equal object back."""
        return {"place": self.place, "sizes": list(self.sizes), "tasks": [task_to_json(task) for task in self.tasks]}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Self:
        """Rebuild from `to_json`."""
        tasks = tuple(task_from_json(task) for task in read_maps(data, "tasks"))
        return cls(place=read(data, "place", int), sizes=tuple(read(data, "sizes", list)), tasks=tasks)


def shares_of(tasks: Sequence[TaskParameters], bounds: Sequence[int]) -> list[Share]:
    """The shares of environments with these tasks that begin, and end, at ``bounds``."""
    sizes = tuple(end - first for first, end in itertools.pairwise(bounds))
    told = () if all(has_nominal_dynamics(task) for task in tasks) else tuple(tasks)
    return [Share(place=place, sizes=sizes, tasks=told) for place in range(len(sizes))]


def open_progress(memory: int, shares: int) -> NDArray[np.int64]:
    """(W,) steps that the process of each share has begun; it lies at the beginning of the shared memory."""
    progress: NDArray[np.int64] = SharedArrays(memory, [_progress_spec(shares)], create=True).arrays[PROGRESS]
    return progress


def _progress_spec(shares: int) -> ArraySpec:
    return ArraySpec(name=PROGRESS, dtype=np.dtype(np.int64).str, shape=(shares,))


class Neighbours(WithoutProcesses):
    """The crew (see `crew.Crew`) of one share's simulations.

    Args:
        memory: descriptor of the memory that all processes share.
        share: which one.
        robot: what is simulated.
    """

    def __init__(self, memory: int, share: Share, robot: Robot) -> None:
        self._memory, self._place, self._sizes = memory, share.place, share.sizes
        self._robot = robot
        self._others: list[tuple[int, Models, Stepper]] = []

    def allocate(self, specs: Sequence[ArraySpec], model: mujoco.MjModel) -> Mapping[str, NDArray[Any]]:
        """See `crew.Crew`; every process lays out the boards of all shares alike."""
        whole = [_progress_spec(len(self._sizes))]
        for place, size in enumerate(self._sizes):
            for spec in specs:
                shape = spec.shape if spec.name == COUNTERS else (size, *spec.shape[1:])
                whole.append(replace(spec, name=f"{place}/{spec.name}", shape=shape))
        arrays = SharedArrays(self._memory, whole, create=True).arrays
        self._progress: NDArray[np.int64] = arrays[PROGRESS]
        self._boards = [
            {spec.name: arrays[f"{place}/{spec.name}"] for spec in specs} for place in range(len(self._sizes))
        ]
        self._model = model
        return self._boards[self._place]

    def join(self, own: Stepper, twin: Callable[[], Stepper]) -> None:
        """See `crew.Crew`."""
        self._own = own
        for place, size in enumerate(self._sizes):
            if place != self._place:
                models = Models(self._model, size)
                stepper = Stepper(self._robot, models.addresses, own.data, Board(self._boards[place]))
                self._others.append((place, models, stepper))

    @contextmanager
    def rollout(self, share: Share) -> Iterator[None]:
        """While this share is rolled out; left in order, neighbours that are still at theirs are helped first."""
        tasks = share.tasks or (TaskParameters(),) * share.of
        for place, models, _ in self._others:
            first = sum(self._sizes[:place])
            models.assign(tasks[first : first + self._sizes[place]])
        yield
        self._progress[self._place] = THROUGH
        rest_s = REST_S
        while self._has_work():
            if self._help():
                rest_s = REST_S
            else:
                time.sleep(rest_s)
                rest_s = min(2 * rest_s, LONGEST_REST_S)

    def _has_work(self) -> bool:
        """Whether a neighbour has so much before it that help is of use."""
        return any(
            self._progress[place] == 0 or (self._progress[place] != THROUGH and stepper.board.counters[COUNT] >= FEWEST)
            for place, _, stepper in self._others
        )

    def _help(self) -> bool:
        """Step simulations of neighbours that are behind, until they need none; whether there were any."""
        helped = False
        for place, _, stepper in self._others:
            while 0 < self._progress[place] < self._progress[self._place] and stepper.step_one():
                helped = True
        return helped

    def begin(self) -> None:
        """See `crew.Crew`: from now on neighbours may take what is on the board."""
        count_up(self._progress, self._place)

    def finish(self) -> tuple[int, ...]:
        """See `crew.Crew`. A neighbour that dies with a simulation in hand is waited for: this process ends with it."""
        self._own.step()
        looks = 0
        while not self._own.board.is_done():
            time.sleep(0.0 if looks < FEW_LOOKS else REST_S)
            looks += 1
        self._help()
        return ()

    def close(self) -> None:
        """Nothing: neighbours are others' to end."""
