"""Is this machine fit for a run? Each finding says what was found and, where needed, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Final, Literal

from packaging.requirements import Requirement

from scenarios.run_directory import installed_version
from swarm.names import MAX_SOCKET_PATH

Level = Literal["ok", "warn", "fail"]
GIGABYTE: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check; ``advice`` is empty where nothing needs doing."""

    check: str
    level: Level
    found: str
    advice: str = ""


def examine(folder: Path) -> list[Finding]:
    """Make all checks; ``folder`` is where runs would be written. Takes a few seconds, for a trial frame."""
    checks: Sequence[Callable[[], list[Finding]]] = (
        check_versions,
        check_cores,
        check_threads,
        check_memory,
        lambda: check_disk(folder),
        check_ipc,
        check_port,
        check_rendering,
    )
    return [finding for check in checks for finding in check()]


def check_versions() -> list[Finding]:
    """Python and every required package, against the ranges of the package's metadata."""
    found = platform.python_version()
    advice = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer"
    findings = [Finding(check="python", level="fail" if advice else "ok", found=found, advice=advice)]
    for text in requires("ssm-swarm") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        findings.append(_check_package(requirement))
    return findings


def check_cores() -> list[Finding]:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        advice = "a run works on one core, but slowly; use --processes 1"
        return [Finding(check="cores", level="warn", found=str(cores), advice=advice)]
    return [Finding(check="cores", level="ok", found=str(cores))]


def check_threads() -> list[Finding]:
    """Thread settings; the nodes of a run get one thread each, whatever is set here."""
    value = os.environ.get("OMP_NUM_THREADS")
    if value in (None, "1"):
        return [Finding(check="threads", level="ok", found="one per process (set for every child)")]
    advice = "embedding a swarm inline computes with this many threads, which is slower: export OMP_NUM_THREADS=1"
    return [Finding(check="threads", level="warn", found=f"OMP_NUM_THREADS={value}", advice=advice)]


def check_memory() -> list[Finding]:
    """Memory that is available now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [Finding(check="memory", level="ok", found="not known on this system")]
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
    found = f"{available / GIGABYTE:.1f} GB available"
    if available < 4 * GIGABYTE:
        return [Finding(check="memory", level="warn", found=found, advice="close programs, or use --processes 1")]
    return [Finding(check="memory", level="ok", found=found)]


def check_disk(folder: Path) -> list[Finding]:
    """Space and write permission where runs are written."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / GIGABYTE:.1f} GB free at {existing}"
    if not os.access(existing, os.W_OK):
        return [Finding(check="disk", level="fail", found=f"{existing} cannot be written", advice="use --out DIR")]
    if free < GIGABYTE:
        level: Level = "fail" if free < GIGABYTE // 10 else "warn"
        return [Finding(check="disk", level=level, found=found, advice="free some space, or use --out DIR elsewhere")]
    return [Finding(check="disk", level="ok", found=found)]


def check_ipc() -> list[Finding]:
    """Whether processes can meet on a Unix socket in a private directory."""
    import zmq

    try:
        with tempfile.TemporaryDirectory(prefix="swarm-") as folder, zmq.Context() as context:
            path = f"{folder}/{'x' * 24}"
            with context.socket(zmq.PUB) as socket:
                socket.bind(f"ipc://{path}")
    except (OSError, zmq.ZMQError) as error:
        advice = "set TMPDIR to a writable folder on a local disk, with a short path"
        return [Finding(check="ipc", level="fail", found=str(error), advice=advice)]
    if len(path) > MAX_SOCKET_PATH - 20:
        advice = f"Unix socket paths end at {MAX_SOCKET_PATH} characters: set TMPDIR to a shorter one"
        return [Finding(check="ipc", level="warn", found=f"long temporary path {path}", advice=advice)]
    return [Finding(check="ipc", level="ok", found=f"Unix sockets work below {tempfile.gettempdir()}")]


def check_port() -> list[Finding]:
    """Whether a loopback port can be bound."""
    import zmq

    try:
        with zmq.Context() as context, context.socket(zmq.PUB) as socket:
            port = socket.bind_to_random_port("tcp://127.0.0.1")
    except zmq.ZMQError as error:
        advice = "local runs use Unix sockets and do not need it; machines of a cluster do"
        return [Finding(check="ports", level="warn", found=str(error), advice=advice)]
    return [Finding(check="ports", level="ok", found=f"bound 127.0.0.1:{port} for a moment")]


def check_rendering() -> list[Finding]:
    """Whether a frame can be drawn, tried in a child process."""
    from env_bridge import check_rendering as draw_a_frame

    advice = draw_a_frame()
    if advice is None:
        return [Finding(check="rendering", level="ok", found="a frame was drawn")]
    return [Finding(check="rendering", level="warn", found="no frame can be drawn: no video", advice=advice)]


def _check_package(requirement: Requirement) -> Finding:
    found = installed_version(requirement.name)
    if found is not None and requirement.specifier.contains(found, prereleases=True):
        return Finding(check=requirement.name, level="ok", found=found)
    return Finding(
        check=requirement.name,
        level="fail",
        found=found or "not installed",
        advice=f"pip install '{requirement.name}{requirement.specifier}'",
    )
