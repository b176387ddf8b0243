"""Who steps the simulations on a `Board`: the process that owns them and, at the same time, threads or other processes.

Whoever waits for a step steps, too. Processes are woken by a byte, once for each step, and answer with a byte when they
find nothing more to take; one that dies or hangs leaves what it had taken undone, and is replaced while the others go
on. Nothing but such a loss can be seen in the results: who steps which simulation never changes a bit.

Letters: E environments.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import mujoco
import numpy as np
import structlog
from numpy.typing import NDArray

from env_bridge.shared_arrays import ArraySpec, SharedArrays, open_memory
from env_bridge.stepping import FEW_LOOKS, LOOKS, SOON, Stepper
from env_bridge.tasks import task_to_json
from env_bridge.worker_process import LONG_PATIENCE_S, PATIENCE_S, WorkerProcess, lost_text
from swarm.environment import TaskParameters
from swarm.errors import PeerLost
from swarm.messages import Json

log = structlog.get_logger(__name__)

MODEL: Final = "model"
MAX_REPLACED: Final = 5
REPLACED_WITHIN_S: Final = 30.0


class Crew(Protocol):
    """Steps what is on a board. Not thread-safe."""

    @property
    def num_replaced(self) -> int:
        """Processes that died or hung and were replaced."""
        ...

    def allocate(self, specs: Sequence[ArraySpec], model: mujoco.MjModel) -> Mapping[str, NDArray[Any]]:
        """Return arrays for a board, where the whole crew can reach them."""
        ...

    def join(self, own: Stepper, twin: Callable[[], Stepper]) -> None:
        """Make ready. ``own`` is the caller's, and ``twin`` makes others like it, of the same simulations."""
        ...

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Tell the others about tasks that were checked and given to ``own``."""
        ...

    def begin(self) -> None:
        """Have the others begin with what was written on the board."""
        ...

    def delegate(self) -> None:
        """The caller has other things to do than stepping until the others are done."""
        ...

    def finish(self) -> tuple[int, ...]:
        """Step what is left and wait for the others; return the simulations that were lost on the way.

        Raises:
            PeerLost: processes are lost again and again.
        """
        ...

    def is_at_hand(self) -> bool:
        """Whether all others are there and know their tasks, so that a step begins without waiting for any."""
        ...

    def descriptors(self) -> Sequence[int]:
        """What becomes readable when the others are done."""
        ...

    def pids(self) -> Sequence[int]:
        """Of the processes among the others."""
        ...

    def close(self) -> None:
        """End the others."""
        ...


class WithoutProcesses:
    """What is the same for each `Crew` that has no processes of its own."""

    num_replaced = 0

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Nothing: whoever steps knows them already."""

    def delegate(self) -> None:
        """Nothing: the caller's share is stepped when it waits."""

    def is_at_hand(self) -> bool:
        """Always."""
        return True

    def descriptors(self) -> Sequence[int]:
        """None."""
        return ()

    def pids(self) -> Sequence[int]:
        """None."""
        return ()


class ThreadCrew(WithoutProcesses):
    """The caller and W - 1 threads; see `Crew`. Stepping hardly needs the interpreter's lock, and models are shared."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers - 1, thread_name_prefix="stepping") if workers > 1 else None
        self._workers = workers
        self._others: list[Stepper] = []
        self._futures: list[Future[None]] = []

    def allocate(self, specs: Sequence[ArraySpec], model: mujoco.MjModel) -> Mapping[str, NDArray[Any]]:
        """See `Crew`."""
        return {spec.name: np.zeros(spec.shape, np.dtype(spec.dtype)) for spec in specs}

    def join(self, own: Stepper, twin: Callable[[], Stepper]) -> None:
        """See `Crew`."""
        self._own = own
        self._others = [twin() for _ in range(self._workers - 1)]

    def begin(self) -> None:
        """See `Crew`."""
        if self._pool is not None:
            self._futures = [self._pool.submit(other.step) for other in self._others]

    def finish(self) -> tuple[int, ...]:
        """See `Crew`."""
        self._own.step()
        for future in self._futures:
            future.result()
        return ()

    def close(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown()


class Mate:
    """A stepping process of a `ProcessCrew`, from its start on."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.started_s = time.monotonic()
        self.has_joined = False
        self.has_old_tasks = False

    @property
    def is_asked(self) -> bool:
        """Whether it is to step, or stepping."""
        return self.has_joined and self.worker.is_asked


class ProcessCrew:
    """The caller and W processes, of which as many step at a time as there would be without the caller; see `Crew`.

    W - 1 are woken at the beginning of a step and the last one only where the caller delegates its share.

    Args:
        workers: W.
        env_id: a Gymnasium id of a robot of `env_bridge.robots`.
        options: constructor options of its class.
        num_envs: E.
        patience_s: a process that has not answered a step after so many seconds hangs.
    """

    def __init__(
        self, workers: int, env_id: str, options: Mapping[str, Json], num_envs: int, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._workers = workers
        self._body: dict[str, Json] = {"env_id": env_id, "options": dict(options), "num_envs": num_envs}
        self._patience_s = patience_s
        self._tasks: tuple[TaskParameters, ...] = ()
        self._mates: list[Mate] = []
        self._steps_itself = True
        self._memory: int | None = None
        self._replacements = Replacements()

    @property
    def num_replaced(self) -> int:
        """See `Crew`."""
        return self._replacements.count

    def allocate(self, specs: Sequence[ArraySpec], model: mujoco.MjModel) -> Mapping[str, NDArray[Any]]:
        """See `Crew`; the model lies in the same memory, so that the others have the very same one."""
        compiled = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, compiled)
        specs = [*specs, ArraySpec(name=MODEL, dtype="|u1", shape=compiled.shape)]
        self._body["specs"] = [spec.to_json() for spec in specs]
        self._memory = open_memory()
        self._shared = SharedArrays(self._memory, specs, create=True)
        self._shared.arrays[MODEL][:] = compiled
        return self._shared.arrays

    def join(self, own: Stepper, twin: Callable[[], Stepper]) -> None:
        """See `Crew`. Raises ``ConfigError`` where a process cannot be what this one is."""
        self._own, self._board = own, own.board
        try:
            for _ in range(self._workers):
                self._mates.append(self._start())
            for mate in self._mates:
                self._admit(mate)
        except BaseException:
            self.close()
            raise

    def _start(self) -> Mate:
        assert self._memory is not None, "allocate comes first"
        mate = Mate(WorkerProcess(self._memory, patience_s=self._patience_s))
        with contextlib.suppress(PeerLost):  # whoever waits for it finds that it has ended
            mate.worker.send("join", self._body | {"tasks": _to_json(self._tasks)})
        return mate

    def _admit(self, mate: Mate) -> None:
        """Wait until a process has joined."""
        mate.worker.wait()
        mate.has_joined = True

    def _has_joined(self, mate: Mate) -> bool:
        """Whether a process that was started has joined by now. Raises ``PeerLost`` where it takes too long."""
        if not mate.has_joined and mate.worker.poll(0.0):
            if mate.worker.is_ready:
                self._admit(mate)
            else:
                mate.worker.wait_ready()
        if not mate.has_joined and time.monotonic() - mate.started_s > LONG_PATIENCE_S:
            raise PeerLost(f"it did not start within {LONG_PATIENCE_S:g} s")
        return mate.has_joined

    def _send_tasks(self, mate: Mate) -> None:
        mate.worker.send("set_tasks", {"tasks": _to_json(self._tasks)})

    def _end_sending(self, mate: Mate) -> None:
        mate.worker.wait()
        mate.has_old_tasks = False

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """See `Crew`; whom this does not reach, because of an interrupt or a later start, is told before it steps."""
        self._tasks = tuple(tasks)
        for mate in self._mates:
            mate.has_old_tasks = True
        for tell in (self._send_tasks, self._end_sending):  # all set to work before the first is waited for
            for place, mate in enumerate(self._mates):
                if mate.has_joined:
                    self._replacing(place, tell)

    def begin(self) -> None:
        """See `Crew`."""
        self._steps_itself = True
        self._board.counters[SOON] = True  # a caller who waits has nothing else to do
        for place in range(self._workers - 1):
            self._replacing(place, self._wake)

    def delegate(self) -> None:
        """See `Crew`."""
        self._board.counters[SOON] = False
        self._replacing(self._workers - 1, self._wake)
        self._steps_itself = not any(mate.is_asked for mate in self._mates)

    def _wake(self, mate: Mate) -> None:
        """Tell a process to step, if it has joined by now."""
        if self._has_joined(mate):
            if mate.has_old_tasks:
                self._send_tasks(mate)
                self._end_sending(mate)
            mate.worker.send_step()

    def finish(self) -> tuple[int, ...]:
        """See `Crew`; interrupted, it goes on where it is called again."""
        if self._steps_itself:
            self._own.step()
        failures: list[PeerLost] = []
        for place in range(len(self._mates)):  # all have ended before anything is said of one
            try:
                self._replacing(place, self._await)
            except PeerLost as error:
                failures.append(error)
        if failures:
            raise failures[0]
        if self._board.is_done():
            return ()
        self._own.step()  # what nobody took
        return tuple(self._board.left_behind().tolist())

    def _await(self, mate: Mate) -> None:
        if mate.is_asked:
            mate.worker.look_for_answer(LOOKS if self._steps_itself else FEW_LOOKS)
            mate.worker.wait_step()

    def _replacing(self, place: int, talk: Callable[[Mate], None]) -> None:
        """Talk with a process; where it is lost, start another, which helps as soon as it can.

        Raises:
            PeerLost: that was too often.
        """
        mate = self._mates[place]
        try:
            talk(mate)
        except PeerLost as error:
            self._replacements.note(lost_text(error, mate.worker.kill()), error)
            self._mates[place] = self._start()

    def is_at_hand(self) -> bool:
        """See `Crew`."""
        return all(mate.has_joined and not mate.has_old_tasks and mate.worker.is_alive for mate in self._mates)

    def descriptors(self) -> Sequence[int]:
        """See `Crew`."""
        return [mate.worker.descriptor for mate in self._mates if mate.is_asked]

    def pids(self) -> Sequence[int]:
        """See `Crew`."""
        return [mate.worker.process.pid for mate in self._mates]

    def close(self) -> None:
        """See `Crew`."""
        for mate in self._mates:
            mate.worker.disconnect()
        for mate in self._mates:
            mate.worker.close()
        self._mates = []
        memory, self._memory = self._memory, None
        if memory is not None:
            os.close(memory)


class Replacements:
    """Counts stepping workers that were replaced."""

    def __init__(self) -> None:
        self.count = 0
        self._at: deque[float] = deque(maxlen=MAX_REPLACED)

    def note(self, how: str, error: PeerLost) -> None:
        """Count one more, lost as ``how`` says. Raises ``PeerLost`` where that was too often of late."""
        now = time.monotonic()
        if len(self._at) == MAX_REPLACED and now - self._at[0] < REPLACED_WITHIN_S:
            raise PeerLost(f"{how}, the {MAX_REPLACED + 1}th within {REPLACED_WITHIN_S:g} s: giving up") from error
        self._at.append(now)
        self.count += 1
        log.warning("replacing a stepping worker", reason=how)


def _to_json(tasks: Sequence[TaskParameters]) -> list[Json]:
    return [task_to_json(task) for task in tasks]
