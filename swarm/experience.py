"""The experience store: one folder a stream, one raw memory-mapped file a column. One writer, many readers.

Rows are counted in *steps* T of the whole block: step t holds one transition of each of ``num_envs`` environments, so
that ``rows == 25`` with 8 environments are 200 transitions. Rows exist for a reader once their round is committed: it
asks for the committed number of steps and never looks beyond; what a lost round wrote there is overwritten when that
round is redone. Files have their full size from the start and are sparse: they take disk space as they fill.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from swarm.errors import CheckpointError, ConfigError, InvalidTransition, SwarmError
from swarm.messages import Arrays
from swarm.policy import BLOCK_SIZE

FORMAT: Final = 1
HEADER: Final = "header.json"
Column = tuple[tuple[int, ...], np.dtype[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """Sizes of one stream.

    Attributes:
        name: of its folder.
        task_size: length of the task parameter vector stored with each transition; may be 0.
        capacity_steps: most steps T that it can hold.
    """

    name: str
    observation_size: int
    action_size: int
    task_size: int
    capacity_steps: int
    num_envs: int = BLOCK_SIZE

    def columns(self) -> dict[str, Column]:
        """Shape behind (T,) and dtype of each column.

        ``observation``, ``next_observation`` (E, O), ``action`` (E, A), ``task`` (E, K), ``reward`` (E,) float32;
        ``terminated``, ``truncated``, ``reset`` (an episode starts here), ``valid`` (E,) bool; ``member`` (E,) int32:
        index of the member that acted.
        """
        E = self.num_envs
        real, flag = np.dtype(np.float32), np.dtype(np.bool_)
        return {
            "observation": ((E, self.observation_size), real),
            "action": ((E, self.action_size), real),
            "reward": ((E,), real),
            "next_observation": ((E, self.observation_size), real),
            "terminated": ((E,), flag),
            "truncated": ((E,), flag),
            "reset": ((E,), flag),
            "valid": ((E,), flag),
            "member": ((E,), np.dtype(np.int32)),
            "task": ((E, self.task_size), real),
        }


class ExperienceWriter:
    """The one writer of a stream; use as a context manager or call `close`."""

    def __init__(self, root: Path, spec: StreamSpec) -> None:
        """Open ``root / spec.name``, or make it.

        Raises:
            ConfigError: another process writes it, it was made with other sizes, or the disk cannot hold it.
        """
        self.spec = spec
        self.folder = root / spec.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_fd = _lock(self.folder)
            try:
                _make(self.folder, spec)
                self._columns = {
                    name: _map(self.folder, spec, name, shape, dtype, "r+")
                    for name, (shape, dtype) in spec.columns().items()
                }
            except BaseException:
                os.close(self._lock_fd)
                raise
        except OSError as error:
            raise ConfigError(f"cannot write the experience stream {self.folder}: {error.strerror}") from None
        self._closed = False

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the stream that is in ``folder``. Raises ``ConfigError`` like the constructor."""
        spec = read_spec(folder)
        if spec.name != folder.name:
            raise CheckpointError(f"{folder / HEADER} names the stream {spec.name!r}; give the folder its name back")
        return cls(folder.parent, spec)

    def write(self, first_step: int, columns: Arrays) -> int:
        """Store T steps from ``first_step`` on, over whatever was there; return the step after the last.

        The rows survive the death of this process at once, and of the machine after `flush`.

        Args:
            first_step: normally the committed number of steps.
            columns: every column of the stream, each (T, E, …) of exactly its dtype.

        Raises:
            InvalidTransition: a column is missing, unknown or of another shape or dtype, or the steps do not fit;
                nothing was written.
        """
        if self._closed:
            raise InvalidTransition(f"stream {self.spec.name!r} is closed")
        num_steps = self._check(first_step, columns)
        for name, column in columns.items():
            self._columns[name][first_step : first_step + num_steps] = column
        return first_step + num_steps

    def flush(self) -> None:
        """Return once everything written is on disk. Raises ``SwarmError`` where the disk fails."""
        try:
            for column in self._columns.values():
                if isinstance(column, np.memmap):
                    column.flush()
        except OSError as error:
            raise SwarmError(f"cannot write {self.folder}: {error.strerror}; free space, then resume") from None

    def close(self) -> None:
        """Release the stream for another writer. Does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._columns.clear()
            os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, first_step: int, columns: Arrays) -> int:
        expected = self.spec.columns()
        if set(columns) != set(expected):
            wrong = sorted(set(columns) ^ set(expected))
            raise InvalidTransition(f"stream {self.spec.name!r}: missing or unknown columns {wrong}")
        num_steps = len(columns["reward"])
        if first_step < 0 or first_step + num_steps > self.spec.capacity_steps:
            raise InvalidTransition(
                f"stream {self.spec.name!r}: got steps {first_step} to {first_step + num_steps}, "
                f"expected them within 0 to {self.spec.capacity_steps} (its capacity)"
            )
        for name, (shape, dtype) in expected.items():
            column = columns[name]
            if column.shape != (num_steps, *shape) or column.dtype != dtype:
                raise InvalidTransition(
                    f"stream {self.spec.name!r}, column {name!r}: got {column.shape} {column.dtype}, "
                    f"expected {(num_steps, *shape)} {dtype}"
                )
        return num_steps


class ExperienceReader:
    """A reader of the stream in folder ``root`` (the folder that holds ``header.json``); any number at once."""

    def __init__(self, root: Path) -> None:
        """Map the stream. Raises ``CheckpointError`` where it is missing, damaged or of another version."""
        self.folder = root
        self.spec = read_spec(root)
        self._columns: dict[str, NDArray[np.generic]] = {}
        for name, (shape, dtype) in self.spec.columns().items():
            try:
                self._columns[name] = _map(root, self.spec, name, shape, dtype, "r")
            except (OSError, ValueError) as error:
                raise CheckpointError(f"experience column {root / name}.bin cannot be read: {error}") from None

    def columns(self, num_steps: int) -> dict[str, NDArray[np.generic]]:
        """Read-only views (num_steps, E, …) of the first ``num_steps`` steps, without a copy.

        Raises:
            InvalidTransition: there are not that many.
        """
        if not 0 <= num_steps <= self.spec.capacity_steps:
            raise InvalidTransition(
                f"stream {self.spec.name!r}: got num_steps={num_steps}, expected 0 to {self.spec.capacity_steps}"
            )
        return {name: column[:num_steps] for name, column in self._columns.items()}


def read_spec(folder: Path) -> StreamSpec:
    """Sizes of the stream in ``folder``. Raises ``CheckpointError``."""
    path = folder / HEADER
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; is this an experience stream?") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not of format {FORMAT}; use the version that wrote it")
    sizes = {f.name: raw.get(f.name) for f in fields(StreamSpec)}
    name = sizes.pop("name")
    checked = {key: value for key, value in sizes.items() if type(value) is int and value >= 0}
    if not isinstance(name, str) or set(checked) != set(sizes) or set(raw) != {*sizes, "name"}:
        raise CheckpointError(f"{path} is damaged: got {raw}, expected the sizes of a stream")
    return StreamSpec(name=name, **checked)


def _make(folder: Path, spec: StreamSpec) -> None:
    """Make column files of full size, then the header, so that a stream with a header is complete."""
    if (folder / HEADER).exists():
        found = read_spec(folder)
        if found != spec:
            raise ConfigError(f"experience stream {folder} was made with {found}, got {spec}; use a new run directory")
        return
    for name, (shape, dtype) in spec.columns().items():
        with open(folder / f"{name}.bin", "wb") as file:
            file.truncate(spec.capacity_steps * int(np.prod(shape)) * dtype.itemsize)
    header: Mapping[str, object] = {"format": FORMAT, **asdict(spec)}
    temporary = folder / f".{HEADER}"
    with open(temporary, "w") as file:
        json.dump(header, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / HEADER)


def _map(
    folder: Path, spec: StreamSpec, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], mode: str
) -> NDArray[np.generic]:
    full = (spec.capacity_steps, *shape)
    path = folder / f"{name}.bin"
    expected = int(np.prod(full)) * dtype.itemsize
    found = path.stat().st_size
    if found != expected:
        raise CheckpointError(f"experience column {path} is damaged: got {found} bytes, expected {expected}")
    if expected == 0:  # an empty file cannot be mapped
        empty: NDArray[np.generic] = np.zeros(full, dtype)
        empty.setflags(write=mode != "r")
        return empty
    if mode == "r":
        return np.memmap(path, dtype=dtype, mode="r", shape=full)
    return np.memmap(path, dtype=dtype, mode="r+", shape=full)


def _lock(folder: Path) -> int:
    lock_fd = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        raise ConfigError(
            f"experience stream {folder} is being written by another process; stop it or choose another run directory"
        ) from None
    return lock_fd
