"""Environments of their own class in worker processes, one contiguous piece each; their arrays lie in shared memory.

What `env_bridge.robots` knows is stepped by a `crew` instead (`make_lanes`).

Letters: E environments.

A step costs each worker one wake-up: a byte there, a byte back. A worker that dies or hangs is replaced; its
environments' episodes are dropped and counted, and the step says which rows that concerns.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from env_bridge.autoreset import Batch, Mask
from env_bridge.crew import ProcessCrew, Replacements
from env_bridge.infos import Told, decode_told
from env_bridge.lanes import LaneOptions, Lanes, LocalLanes, Started, States, shared_specs
from env_bridge.physics import RobotSimulation
from env_bridge.shared_arrays import SharedArrays, open_memory
from env_bridge.snapshots import join_snapshots
from env_bridge.tasks import task_to_json
from env_bridge.vector_env import VectorEnv
from env_bridge.wire import Letter, read
from env_bridge.worker_process import PATIENCE_S, WorkerProcess, lost_text, processors
from swarm.environment import TaskParameters
from swarm.errors import ConfigError, PeerLost, SwarmError
from swarm.messages import Json


class Phase(Enum):
    """Where a piece stands in a step; an interrupted wait goes on from there."""

    IDLE = auto()
    ASKED = auto()
    UNREACHED = auto()
    ANSWERED = auto()
    LOST = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Piece:
    """One worker and the rows that it steps."""

    rows: slice
    worker: WorkerProcess
    cpu: int | None
    phase: Phase = Phase.IDLE
    told: Told = ()


class WorkerLanes:
    """See `env_bridge.lanes.Lanes`."""

    def __init__(
        self, given: LaneOptions, specimen: VectorEnv, workers: int, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._given = given
        self._patience_s = patience_s
        self._specs = shared_specs(specimen, given)
        self._memory = open_memory()
        self._shared = SharedArrays(self._memory, self._specs, create=True)
        self._tasks: tuple[TaskParameters, ...] = ()
        self._stranded = np.zeros(given.num_envs, dtype=np.bool_)
        self._seeds: list[int] = np.random.SeedSequence().generate_state(given.num_envs).tolist()
        self._closed = False
        self._replacements = Replacements()
        bounds = np.linspace(0, given.num_envs, min(workers, given.num_envs) + 1).astype(int).tolist()
        self._pieces: list[Piece] = []
        try:
            for cpu, (first, end) in zip(choose_cpus(len(bounds) - 1), itertools.pairwise(bounds), strict=True):
                self._pieces.append(Piece(rows=slice(first, end), worker=self._start(cpu), cpu=cpu))
            for piece in self._pieces:
                self._send_make(piece)
            for piece in self._pieces:
                piece.worker.wait()
        except BaseException:
            self.close()
            raise

    @property
    def num_replaced(self) -> int:
        """See `Lanes`."""
        return self._replacements.count

    def _start(self, cpu: int | None) -> WorkerProcess:
        return WorkerProcess(self._memory, patience_s=self._patience_s, cpu=cpu, may_draw=True)

    def _send_make(self, piece: Piece) -> None:
        given = self._given
        body: dict[str, Json] = {
            "first": piece.rows.start,
            "count": piece.rows.stop - piece.rows.start,
            "specs": [spec.to_json() for spec in self._specs],
            "env_id": given.env_id,
            "mode": given.mode.value,
            "options": dict(given.options),
            "max_episode_steps": given.max_episode_steps,
        }
        piece.worker.send("make", body)

    # --- stepping -----------------------------------------------------------------------------------------------------

    def check_ready(self) -> None:
        """See `Lanes`."""
        if self._stranded.any():
            rows = ", ".join(str(row) for row in np.flatnonzero(self._stranded).tolist())
            raise PeerLost(f"environments {rows} lost their worker; reset them, or set a state")

    def send(self, action: NDArray[Any]) -> None:
        """See `Lanes`."""
        np.copyto(self._shared.arrays["action"], action)
        for piece in self._pieces:
            piece.phase = Phase.UNREACHED  # where it stays that, `settle` replaces the worker
            with contextlib.suppress(PeerLost):
                piece.worker.send_step()
                piece.phase = Phase.ASKED

    def settle(self) -> None:
        """See `Lanes`. Raises what an environment's class raised, too; anything once all workers have answered."""
        failures: list[SwarmError] = []
        for piece in self._pieces:
            if piece.phase not in (Phase.ASKED, Phase.UNREACHED):
                continue
            try:
                if piece.phase is Phase.UNREACHED:
                    raise PeerLost("it could not be told to step")
                piece.told = tuple(_told(piece.worker.wait_step(), piece))
                piece.phase = Phase.ANSWERED
            except PeerLost as error:
                try:
                    self._replace(piece, error)
                    piece.told, piece.phase = (), Phase.LOST
                except PeerLost as failure:
                    failures.append(failure)
            except SwarmError as error:
                failures.append(error)
                piece.told, piece.phase = (), Phase.ANSWERED
        if failures:
            raise failures[0]

    def delegate(self) -> None:
        """Nothing: the workers step all environments."""

    def wait(self) -> Batch:
        """See `Lanes`."""
        self.settle()
        lost = [piece for piece in self._pieces if piece.phase is Phase.LOST]
        return self._batch(tuple(item for piece in self._pieces for item in piece.told), lost)

    def pids(self) -> Sequence[int]:
        """See `Lanes`."""
        return [piece.worker.process.pid for piece in self._pieces]

    def before(self) -> NDArray[np.float64] | None:
        """Not known: states of own classes hold what is drawn."""
        return None

    def members(self) -> Sequence[gymnasium.Env[Any, Any]]:
        """None: workers have them."""
        return ()

    def is_at_hand(self) -> bool:
        """See `Lanes`."""
        return all(piece.worker.is_alive for piece in self._pieces)

    def descriptors(self) -> Sequence[int]:
        """See `Lanes`."""
        return [piece.worker.descriptor for piece in self._pieces if piece.phase in (Phase.ASKED, Phase.UNREACHED)]

    def _batch(self, told: Told, lost: Sequence[Piece]) -> Batch:
        out = self._shared.copy()
        rows = np.zeros(self._given.num_envs, dtype=np.bool_) if lost else None
        for piece in lost:
            assert rows is not None
            rows[piece.rows] = out["truncated"][piece.rows] = True
            out["reward"][piece.rows] = 0.0
            out["terminated"][piece.rows] = out["diverged"][piece.rows] = False
            if "final_observation" in out:  # there is none: what is there is of an earlier step
                out["final_observation"][piece.rows] = out["observation"][piece.rows]
        return Batch(
            observation=out["observation"],
            reward=out["reward"],
            terminated=out["terminated"],
            truncated=out["truncated"],
            ended=out["terminated"] | out["truncated"],
            diverged=out["diverged"],
            columns={},
            final_observation=out.get("final_observation"),
            final_columns={},
            told=told,
            lost=rows,
        )

    def _replace(self, piece: Piece, error: PeerLost) -> None:
        """Start another worker for the rows of ``piece``; new episodes, which the next step resets once more.

        Interrupted, or where that one is lost as well, the piece stays ``UNREACHED``.
        """
        piece.phase = Phase.UNREACHED
        self._replacements.note(lost_text(error, piece.worker.kill()), error)
        piece.worker = self._start(piece.cpu)
        self._send_make(piece)
        piece.worker.wait()
        if self._tasks:
            _send_tasks(self._tasks, piece)
            piece.worker.wait()
        count = piece.rows.stop - piece.rows.start
        seeds = [
            int(np.random.SeedSequence([seed, self._replacements.count]).generate_state(1)[0])
            for seed in self._seeds[piece.rows]
        ]
        pending = self._given.mode is AutoresetMode.NEXT_STEP
        body: dict[str, Json] = {"seeds": seeds, "pending": pending, "options": None}
        piece.worker.send("reset", body, {"mask": np.ones(count, dtype=np.bool_)})
        piece.worker.wait()
        piece.phase = Phase.IDLE

    # --- everything else ----------------------------------------------------------------------------------------------

    def reset(self, seeds: Sequence[int | None], mask: Mask, options: Mapping[str, Json] | None = None) -> Started:
        """See `Lanes`."""
        plain = None if options is None else dict(options)
        for row in np.flatnonzero(mask).tolist():
            seed = seeds[row]
            self._seeds[row] = self._seeds[row] if seed is None else seed

        def ask(piece: Piece) -> None:
            body: dict[str, Json] = {"seeds": list(seeds[piece.rows]), "pending": False, "options": plain}
            piece.worker.send("reset", body, {"mask": mask[piece.rows]})

        told: list[tuple[int, dict[str, Any]]] = []
        for piece, letter in zip(self._pieces, self._ask_all(ask, overwrites=True), strict=True):
            told += _told(letter, piece)
        self._stranded &= ~mask
        return Started(observation=self._shared.copy()["observation"], columns={}, told=tuple(told))

    def _ask_all(self, ask: Callable[[Piece], None], *, overwrites: bool) -> list[Letter]:
        """Have ``ask`` send something to every worker and return the answers; a lost worker is replaced.

        Args:
            overwrites: whether a new worker is asked again. Its environments stay stranded until they are reset or set.

        Raises:
            SwarmError: the first error that a worker answered, after all have.
            PeerLost: environments are stranded, and what is asked for is what they held.
        """
        answers: list[Letter] = []
        failures: list[SwarmError] = []
        lost = [piece for piece in self._pieces if piece.phase is Phase.UNREACHED or not _sent(ask, piece)]
        for piece in self._pieces:
            try:
                if piece in lost:
                    raise PeerLost("it could not be asked")
                answers.append(piece.worker.wait())
            except PeerLost as error:
                self._stranded[piece.rows] = True
                self._replace(piece, error)
                if overwrites:
                    ask(piece)
                    answers.append(piece.worker.wait())
            except SwarmError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        if not overwrites:
            self.check_ready()
        return answers

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """See `Lanes`; where one worker refuses, all go back to the tasks from before."""
        if len(tasks) != self._given.num_envs:
            raise ConfigError(f"got {len(tasks)} tasks for {self._given.num_envs} environments")
        before = self._tasks or (TaskParameters(),) * self._given.num_envs
        try:
            self._ask_all(partial(_send_tasks, tuple(tasks)), overwrites=True)
        except ConfigError:
            self._ask_all(partial(_send_tasks, before), overwrites=True)
            raise
        self._tasks = tuple(tasks)

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """See `Lanes`."""
        letters = self._ask_all(lambda piece: piece.worker.send("get_state", {}), overwrites=False)
        return join_snapshots([letter.arrays for letter in letters])

    def set_state(self, state: States) -> None:
        """See `Lanes`; where one worker refuses, all go back to the state from before."""
        wrong = [name for name, array in state.items() if len(array) != self._given.num_envs]
        if wrong:
            raise ConfigError(f"snapshot array {wrong[0]!r} is not of {self._given.num_envs} environments")
        before = None if self._stranded.any() else self._state_or_none()
        try:
            self._send_state(state)
        except ConfigError:
            if before is None:
                self._stranded[:] = True  # some may be where the state says, and others not
            else:
                self._send_state(before)
            raise
        self._stranded[:] = False

    def _state_or_none(self) -> States | None:
        """The present state; ``None`` where a worker, and so a part of it, is lost."""
        try:
            return self.get_state()
        except PeerLost:
            return None

    def _send_state(self, state: States) -> None:
        def ask(piece: Piece) -> None:
            piece.worker.send("set_state", {}, {name: array[piece.rows] for name, array in state.items()})

        self._ask_all(ask, overwrites=True)

    def close(self) -> None:
        """See `Lanes`."""
        for piece in self._pieces:
            piece.worker.disconnect()
        for piece in self._pieces:
            piece.worker.close()
        if not self._closed:
            self._closed = True
            os.close(self._memory)


def make_lanes(given: LaneOptions, specimen: VectorEnv, workers: int, patience_s: float) -> Lanes:
    """Where ``workers`` processes (0: this one) step what ``given`` describes. Raises ``ConfigError``."""
    if not workers:
        return LocalLanes(given, given.make())
    if not isinstance(specimen.simulation, RobotSimulation):
        return WorkerLanes(given, specimen, workers, patience_s=patience_s)
    num_envs = given.num_envs
    crew = ProcessCrew(min(workers, num_envs), given.env_id, given.options, num_envs, patience_s=patience_s)
    try:
        return LocalLanes(given, given.make(crew=crew), crew)
    except BaseException:
        crew.close()
        raise


def _send_tasks(tasks: Sequence[TaskParameters], piece: Piece) -> None:
    piece.worker.send("set_tasks", {"tasks": [task_to_json(task) for task in tasks[piece.rows]]})


def _sent(ask: Callable[[Piece], None], piece: Piece) -> bool:
    try:
        ask(piece)
    except PeerLost:
        return False
    return True


def choose_cpus(num_workers: int) -> list[int] | list[None]:
    """One processor for each worker where there are as many as workers; else any may run anywhere.

    The one who wakes several workers at once draws them to its own processor, where they step one after the other.
    Where there are more processors than workers, some are idle, and which to use is the kernel's to know.
    """
    cpus = processors()
    can_choose = hasattr(os, "sched_setaffinity")
    return cpus if can_choose and len(cpus) == num_workers > 1 else [None] * num_workers


def _told(letter: Letter | None, piece: Piece) -> list[tuple[int, dict[str, Any]]]:
    if letter is None:
        return []
    return [(piece.rows.start + index, info) for index, info in decode_told(read(letter.body, "told", list))]
