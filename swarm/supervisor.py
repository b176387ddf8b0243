"""Starts processes, notices their end at once, restarts them within a budget, and leaves none behind.

Each child is a fresh interpreter or program in a session of its own, with one BLAS thread, and holds the read end of a
pipe on its standard input: end of file there means that the supervisor's process is gone. What it writes goes to its
log; what it leaves in its status file is its last word. No pipe is read from a child: a grandchild that lives on with
an inherited one must not hide the child's death.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import structlog

from swarm.errors import ConfigError, SwarmError, traceback_of
from swarm.messages import Message, PeerDown

TERMINATE_S: Final = 1.0
KILL_S: Final = 0.8
MAX_EVENTS: Final = 10_000
ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """At most ``budget`` restarts within ``window_s``; the n-th of them waits ``first_delay_s`` · 2ⁿ⁻¹."""

    budget: int = 5
    window_s: float = 30.0
    first_delay_s: float = 0.1
    max_delay_s: float = 2.0


class RestartBudget:
    """Pure: which restart may happen when."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._restarts_s: deque[float] = deque()

    def spend(self, now_s: float) -> float | None:
        """Return the delay before the next restart, or ``None`` where the budget is used up."""
        while self._restarts_s and now_s - self._restarts_s[0] > self._policy.window_s:
            self._restarts_s.popleft()
        if len(self._restarts_s) >= self._policy.budget:
            return None
        delay_s = self._policy.first_delay_s * 2.0 ** len(self._restarts_s)
        self._restarts_s.append(now_s)
        return min(delay_s, self._policy.max_delay_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProcessSpec:
    """A process to keep alive.

    Attributes:
        argv: program and arguments.
        env: added to this process's environment.
        agents: names of the agents that it hosts; their death is published when it ends.
        log_path: takes standard output and error, appended; ``None``: discarded.
        status_path: file in which the process may leave a last word; removed before each start.
        prepare: called with the incarnation before each start, to write what ``argv`` names.
        final_codes: exit codes after which it is not restarted; 2 says that the user must act.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    agents: tuple[str, ...] = ()
    log_path: Path | None = None
    status_path: Path | None = None
    prepare: Callable[[int], None] | None = None
    final_codes: frozenset[int] = frozenset({2})


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Life ``incarnation`` (from 1) of process ``name`` runs."""

    name: str
    incarnation: int
    process_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """A process ended by itself: with ``code``, or by ``signal``; ``last_word`` is its status file."""

    name: str
    incarnation: int
    code: int | None
    signal: str | None
    last_word: str
    restarting: bool

    @property
    def how(self) -> str:
        """Readable cause."""
        return f"ended by {self.signal}" if self.signal else f"exited with code {self.code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """Process ``name`` runs again, ``downtime_s`` after its end."""

    name: str
    incarnation: int
    process_id: int
    downtime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """Process ``name`` is not started again; the reason names the cause, the log and the last words."""

    name: str
    reason: str


ProcessEvent: TypeAlias = Started | Exited | Restarted | GaveUp


@dataclass(slots=True, eq=False)
class _Child:
    spec: ProcessSpec
    budget: RestartBudget
    process: asyncio.subprocess.Process | None = None
    lifeline: int | None = None
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps processes alive while it is open: ``async with Supervisor() as supervisor: await supervisor.start(spec)``.

    Args:
        publish: publishes `PeerDown` for each agent of a process that ended.
        on_event: called with each event, on the loop; must not block.

    Attributes:
        events: the newest `MAX_EVENTS` events.
    """

    def __init__(
        self,
        *,
        policy: RestartPolicy | None = None,
        publish: Callable[[Message], object] | None = None,
        on_event: Callable[[ProcessEvent], None] | None = None,
    ) -> None:
        self.events: deque[ProcessEvent] = deque(maxlen=MAX_EVENTS)
        self._policy = policy or RestartPolicy()
        self._publish = publish or (lambda _: None)
        self._on_event = on_event
        self._children: dict[str, _Child] = {}

    async def __aenter__(self) -> Self:
        """Nothing to open."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop every process."""
        await self.stop()

    async def start(self, spec: ProcessSpec) -> None:
        """Start ``spec`` and keep it alive. Raises ``ConfigError`` where its program cannot be started at all."""
        if spec.name in self._children:
            raise ConfigError(f"process {spec.name!r} is supervised already; give each process its own name")
        child = _Child(spec, RestartBudget(self._policy))
        self._children[spec.name] = child
        process = await self._spawn(child, 1)
        self._note(Started(name=spec.name, incarnation=1, process_id=process.pid))
        child.task = asyncio.create_task(self._watch_over(child, process), name=f"supervise {spec.name}")

    def process_id(self, name: str) -> int | None:
        """Return the id of the living process ``name``."""
        child = self._children.get(name)
        process = child.process if child is not None else None
        return process.pid if process is not None and process.returncode is None else None

    async def stop(self) -> None:
        """End all processes: SIGTERM, after a second SIGKILL; all within two seconds, also when cancelled meanwhile."""
        tasks = [child.task for child in self._children.values() if child.task is not None]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            for process in self._living():
                _signal_group(process.pid, signal.SIGTERM)
            await _wait_all(self._living(), TERMINATE_S)
        finally:
            for child in self._children.values():
                if child.process is not None:
                    _signal_group(child.process.pid, signal.SIGKILL)
                _close_lifeline(child)
        await _wait_all(self._living(), KILL_S)
        self._children.clear()

    def _living(self) -> list[asyncio.subprocess.Process]:
        processes = [child.process for child in self._children.values()]
        return [process for process in processes if process is not None and process.returncode is None]

    # --- one process --------------------------------------------------------------------------------------------------

    async def _spawn(self, child: _Child, incarnation: int) -> asyncio.subprocess.Process:
        spec = child.spec
        if spec.status_path is not None:
            spec.status_path.unlink(missing_ok=True)
        if spec.prepare is not None:
            spec.prepare(incarnation)
        read_fd, child.lifeline = os.pipe()
        log_fd = _open_log(spec.log_path)
        try:
            child.process = await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=read_fd,
                stdout=log_fd,
                stderr=log_fd,
                env={**os.environ, **ONE_THREAD, **spec.env},
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"process {spec.name!r}: {spec.argv[0]} cannot be started: {error.strerror}") from None
        finally:
            os.close(read_fd)
            os.close(log_fd)
        return child.process

    async def _watch_over(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        """Keep the process alive; whatever ends that is an event, never a lost exception of a task."""
        try:
            await self._keep(child, process)
        except Exception as error:
            log.error("supervision_failed", process=child.spec.name, stack=traceback_of(error))
            reason = f"supervision of process {child.spec.name} failed: {type(error).__name__}: {error}"
            self._note(GaveUp(name=child.spec.name, reason=reason))

    async def _keep(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        clock = asyncio.get_running_loop()
        incarnation = 1
        while True:
            code = await process.wait()
            ended_s = clock.time()
            _signal_group(process.pid, signal.SIGKILL)  # whatever the process left behind in its session
            _close_lifeline(child)
            delay_s = None if code in child.spec.final_codes else child.budget.spend(ended_s)
            exited = _exited(child.spec, incarnation, code, restarting=delay_s is not None)
            self._mourn(child.spec, exited)
            if delay_s is None:
                if code != 0:
                    self._note(GaveUp(name=child.spec.name, reason=self._reason(child.spec, exited)))
                return
            await asyncio.sleep(delay_s)
            incarnation += 1
            try:
                process = await self._spawn(child, incarnation)
            except (SwarmError, OSError) as error:
                self._note(GaveUp(name=child.spec.name, reason=str(error)))
                return
            downtime_s = clock.time() - ended_s
            self._note(
                Restarted(name=child.spec.name, incarnation=incarnation, process_id=process.pid, downtime_s=downtime_s)
            )

    def _mourn(self, spec: ProcessSpec, exited: Exited) -> None:
        """Tell everyone at once, before any heartbeat is missed."""
        for agent in spec.agents:
            down = PeerDown(agent=agent, reason=f"process {spec.name} {exited.how}", restarting=exited.restarting)
            try:
                self._publish(down)
            except SwarmError as error:  # the bus is not open yet, or not any more: heartbeats will tell
                log.warning("death_not_published", agent=agent, reason=str(error))
        self._note(exited)

    def _reason(self, spec: ProcessSpec, exited: Exited) -> str:
        if exited.code in spec.final_codes:
            return exited.last_word or f"process {spec.name} {exited.how}"
        logged = _tail(spec.log_path)
        return (
            f"process {spec.name} {exited.how} and was restarted {self._policy.budget} times within "
            f"{self._policy.window_s:g} s"
            + (f"; it last said: {logged}" if logged else "")
            + (f"; see {spec.log_path}" if spec.log_path is not None else "")
        )

    def _note(self, event: ProcessEvent) -> None:
        self.events.append(event)
        log.info("process_event", kind=type(event).__name__, process=event.name)
        if self._on_event is not None:
            self._on_event(event)


def _open_log(path: Path | None) -> int:
    if path is None:
        return os.open(os.devnull, os.O_WRONLY)
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _close_lifeline(child: _Child) -> None:
    if child.lifeline is not None:
        os.close(child.lifeline)
        child.lifeline = None


def _exited(spec: ProcessSpec, incarnation: int, code: int, *, restarting: bool) -> Exited:
    return Exited(
        name=spec.name,
        incarnation=incarnation,
        code=code if code >= 0 else None,
        signal=signal.Signals(-code).name if code < 0 else None,
        last_word=_last_word(spec.status_path),
        restarting=restarting,
    )


def _signal_group(process_id: int, signum: signal.Signals) -> None:
    """Signal the session that the child leads; it may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signum)


async def _wait_all(processes: list[asyncio.subprocess.Process], timeout_s: float) -> None:
    """Wait until all have ended, at most ``timeout_s``."""
    living = [asyncio.ensure_future(process.wait()) for process in processes if process.returncode is None]
    if living:
        _, pending = await asyncio.wait(living, timeout=timeout_s)
        for future in pending:
            future.cancel()


def _last_word(path: Path | None) -> str:
    return path.read_text(errors="replace").strip() if path is not None and path.exists() else ""


def _tail(path: Path | None) -> str:
    if path is None or not path.exists():
        return ""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 4096))
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
