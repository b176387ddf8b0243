"""A private directory for the sockets of one swarm, and the removal of those that dead launchers left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swarm.errors import ConfigError
from swarm.names import MAX_SOCKET_PATH

PREFIX: Final = "swarm-"
LONGEST_NAME: Final = 24


@contextlib.contextmanager
def socket_directory(parent: Path | None = None) -> Iterator[Path]:
    """Make a 0700 directory, hold its lock while the context is open, remove it afterwards.

    Args:
        parent: where to make it; by default the system's temporary directory, or ``/tmp`` where that path is too long.

    Raises:
        ConfigError: no place with a short enough path can be written.
    """
    root = parent or _short_temporary_root()
    with contextlib.suppress(OSError):  # sweeping is a courtesy to the disk; this swarm does not depend on it
        sweep(root)
    try:
        # Locked under a hidden name first: a sweep by another launcher must not find it without its lock.
        hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=root))
    except OSError as error:
        raise ConfigError(f"sockets cannot be placed in {root}: {error.strerror}; set TMPDIR to a short path") from None
    descriptor = _take_lock(hidden)
    assert descriptor is not None
    path = hidden.rename(root / hidden.name[1:])
    try:
        if len(str(path)) + 1 + LONGEST_NAME > MAX_SOCKET_PATH:
            raise ConfigError(f"socket paths below {path} would be too long; set TMPDIR to a shorter path")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep(root: Path) -> list[Path]:
    """Remove the directories of launchers that are gone (their lock is free); return which."""
    removed = []
    for path in sorted(root.glob(f"{PREFIX}*")):
        if not path.is_dir() or path.stat().st_uid != os.getuid() or not (path / "lock").exists():
            continue
        descriptor = _take_lock(path)
        if descriptor is None:
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)
        removed.append(path)
    return removed


def _take_lock(path: Path) -> int | None:
    """Return the descriptor that holds the directory's lock, ``None`` where another process holds it."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _short_temporary_root() -> Path:
    root = Path(tempfile.gettempdir())
    too_long = len(str(root)) + len(PREFIX) + 10 + LONGEST_NAME > MAX_SOCKET_PATH
    return Path("/tmp") if too_long else root
