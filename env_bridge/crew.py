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
from env_bridge.stepping import LOOKS, SOON, Stepper, look_for_byte
from env_bridge.tasks import task_to_json
from env_bridge.worker_process import PATIENCE_S, WorkerProcess, lost_text
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

    def descriptors(self) -> Sequence[int]:
        """What becomes readable when the others are done."""
        ...

    def pids(self) -> Sequence[int]:
        """Of the processes among the others."""
        ...

    def close(self) -> None:
        """End the others."""
        ...


class ThreadCrew:
    """The caller and W - 1 threads; see `Crew`. Stepping hardly needs the interpreter's lock."""

    num_replaced = 0

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

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Nothing: threads share the models."""

    def begin(self) -> None:
        """See `Crew`."""
        if self._pool is not None:
            self._futures = [self._pool.submit(other.step) for other in self._others]

    def delegate(self) -> None:
        """Nothing: the caller's share is stepped when it waits."""

    def finish(self) -> tuple[int, ...]:
        """See `Crew`."""
        self._own.step()
        for future in self._futures:
            future.result()
        return ()

    def descriptors(self) -> Sequence[int]:
        """None."""
        return ()

    def pids(self) -> Sequence[int]:
        """None."""
        return ()

    def close(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown()


class Helper:
    """A stepping process of a `ProcessCrew`, from its start on."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.has_joined = False
        self.is_asked = False
        self.has_old_tasks = False


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
        self._byte = np.zeros(1, np.uint8)
        self._helpers: list[Helper] = []
        self._is_lossy = False
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
            self._helpers = [self._start() for _ in range(self._workers)]
            for helper in self._helpers:
                self._admit(helper)
        except BaseException:
            self.close()
            raise

    def _start(self) -> Helper:
        assert self._memory is not None, "allocate comes first"
        helper = Helper(WorkerProcess(self._memory, patience_s=self._patience_s))
        with contextlib.suppress(PeerLost):  # whoever waits for it finds that it has ended
            helper.worker.send("join", self._body | {"tasks": _to_json(self._tasks)})
        return helper

    def _admit(self, helper: Helper) -> None:
        """Wait until a process has joined."""
        helper.worker.wait()
        helper.has_joined = True
        if helper.has_old_tasks:
            self._send_tasks(helper)

    def _has_joined(self, helper: Helper) -> bool:
        """Whether a process that was started has joined by now."""
        if helper.worker.poll(0.0):
            if helper.worker.is_ready:
                self._admit(helper)
            else:
                helper.worker.wait_ready()
        return helper.has_joined

    def _send_tasks(self, helper: Helper) -> None:
        helper.worker.send("set_tasks", {"tasks": _to_json(self._tasks)})
        helper.worker.wait()
        helper.has_old_tasks = False

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """See `Crew`."""
        self._tasks = tuple(tasks)
        for place, helper in enumerate(self._helpers):
            helper.has_old_tasks = True
            if helper.has_joined:
                try:
                    self._send_tasks(helper)
                except PeerLost as error:
                    self._replace(place, error)

    def begin(self) -> None:
        """See `Crew`."""
        self._steps_itself, self._is_lossy = True, False
        self._board.counters[SOON] = True  # a caller who waits has nothing else to do
        for place in range(self._workers - 1):
            self._wake(place)

    def delegate(self) -> None:
        """See `Crew`."""
        self._board.counters[SOON] = False
        self._wake(self._workers - 1)
        self._steps_itself = not any(helper.is_asked for helper in self._helpers)

    def _wake(self, place: int) -> None:
        """Tell a process to step, if it has joined by now."""
        helper = self._helpers[place]
        try:
            if not helper.has_joined and not self._has_joined(helper):
                return
            helper.worker.send_step()
            helper.is_asked = True
        except PeerLost as error:
            self._replace(place, error)

    def finish(self) -> tuple[int, ...]:
        """See `Crew`."""
        if self._steps_itself:
            self._own.step()
        for place, helper in enumerate(self._helpers):
            if not helper.is_asked:
                continue
            try:
                came = look_for_byte(helper.worker.descriptor, self._byte, LOOKS)
                helper.worker.wait_step(self._byte.tobytes() if came else None)
                helper.is_asked = False
            except PeerLost as error:
                self._is_lossy = True
                self._replace(place, error)
        if not self._is_lossy:
            return ()
        self._own.step()  # what nobody took
        return tuple(self._board.left_behind().tolist())

    def _replace(self, place: int, error: PeerLost) -> None:
        """Start another process; it helps as soon as it can. Raises ``PeerLost`` where that was too often."""
        self._replacements.note(lost_text(error, self._helpers[place].worker.kill()), error)
        self._helpers[place] = self._start()

    def descriptors(self) -> Sequence[int]:
        """See `Crew`."""
        return [helper.worker.descriptor for helper in self._helpers if helper.is_asked]

    def pids(self) -> Sequence[int]:
        """See `Crew`."""
        return [helper.worker.process.pid for helper in self._helpers]

    def close(self) -> None:
        """See `Crew`."""
        for helper in self._helpers:
            helper.worker.disconnect()
        for helper in self._helpers:
            helper.worker.close()
        self._helpers = []
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None


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
