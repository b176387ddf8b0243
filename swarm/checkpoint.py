"""Checkpoints: one folder a committed round, complete or not there at all. Files are opaque bytes.

Performers `CheckpointStore.stage` their files; the coordinator's `CheckpointStore.commit` makes them visible::

    run_dir/staging/round-000043/member-state.safetensors        written, fsynced, renamed; no effect yet
    run_dir/checkpoints/round-000043/{manifest.json, ledger.json, member-state.safetensors, …}

The manifest names every file with size and sha256 and must read back as exactly the bytes that were written, so that
any flipped bit or missing byte is found; a damaged checkpoint is skipped and named, and the one before it is used.
A file that a round did not change is copied from the round before, so that damage to one is not damage to both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from swarm.errors import CheckpointError, ConfigError, SwarmError
from swarm.messages import Json
from swarm.names import NAME

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
LEDGER: Final = "ledger.json"
_ROUND: Final = re.compile(r"round-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Hexadecimal sha256 and size of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        round_index: the round that it committed; 0 is the initial checkpoint.
        rows: committed steps per experience stream.
        files: every file but the manifest, by name.
        versions: ``format`` of this file and the program that wrote it.
    """

    round_index: int
    rows: Mapping[str, int]
    files: Mapping[str, FileEntry]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


class CheckpointStore:
    """The checkpoints of one run directory. One process commits; any process stages and reads."""

    def __init__(self, run_dir: Path, keep: int = 3) -> None:
        """Keep the newest ``keep`` checkpoints, at least two: the one before the newest stays readable."""
        if keep < 1:
            raise ConfigError(f"got keep={keep} checkpoints, expected at least 1")
        self.run_dir = run_dir
        self._keep = max(2, keep)
        self._root = run_dir / "checkpoints"
        self._staging = run_dir / "staging"

    def path(self, round_index: int, name: str) -> Path:
        """Where file ``name`` of a committed round is."""
        return self._root / _folder(round_index) / _checked_name(name)

    def staged_path(self, round_index: int, name: str) -> Path:
        """Where file ``name`` of a round in progress is."""
        return self._staging / _folder(round_index) / _checked_name(name)

    def stage(self, round_index: int, name: str, data: bytes | memoryview) -> str:
        """Write a file of a round in progress, whole and durable; return its sha256.

        Staging twice replaces: contracts are pure functions, so that a repeated one writes the same bytes.
        """
        target = self.staged_path(round_index, name)
        with _disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_durably(target, data)
        return hashlib.sha256(data).hexdigest()

    def commit(
        self, round_index: int, files: Mapping[str, str], *, rows: Mapping[str, int], ledger: Mapping[str, Json]
    ) -> Manifest:
        """Make a round visible at once and for good; then prune old checkpoints and staged files.

        Committing a round again replaces it.

        Args:
            round_index: its number.
            files: expected sha256 by name of what was staged; files that the previous checkpoint has and ``files`` does
                not name are taken over unchanged.
            rows: committed steps per experience stream.
            ledger: JSON-like state of the coordinator.

        Raises:
            CheckpointError: a staged file is missing or has another digest; nothing was committed.
            SwarmError: the disk failed; nothing was committed.
        """
        building = self._root / f".building-{_folder(round_index)}"
        with _disk_errors(building):
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            entries = self._gather(round_index, files, building)
            ledger_bytes = _render(ledger)
            write_durably(building / LEDGER, ledger_bytes)
            entries[LEDGER] = FileEntry(sha256=hashlib.sha256(ledger_bytes).hexdigest(), bytes=len(ledger_bytes))
            manifest = Manifest(
                round_index=round_index,
                rows=dict(sorted(rows.items())),
                files=dict(sorted(entries.items())),
                versions={"format": str(FORMAT), "ssm-swarm": version("ssm-swarm")},
            )
            content = asdict(manifest)
            write_durably(building / MANIFEST, _render({**content, "seal": _seal(content)}))
            self._publish(building, self._root / _folder(round_index))
            self._prune(round_index)
        return manifest

    def latest(self) -> tuple[Manifest | None, list[Skipped]]:
        """The newest checkpoint whose every byte is as committed, and the newer ones that had to be skipped."""
        skipped: list[Skipped] = []
        for round_index in reversed(self.rounds()):
            try:
                return self.verify(round_index), skipped
            except CheckpointError as error:
                skipped.append(Skipped(path=self._root / _folder(round_index), reason=str(error)))
        return None, skipped

    def verify(self, round_index: int) -> Manifest:
        """Read a checkpoint in full. Raises ``CheckpointError`` naming the first damage."""
        manifest = self.read_manifest(round_index)
        for name, entry in manifest.files.items():
            found = _entry_of(_read(self.path(round_index, name)))
            if found != entry:
                raise CheckpointError(
                    f"{self.path(round_index, name)} is damaged: got {found.bytes} bytes with sha256 "
                    f"{found.sha256[:12]}…, expected {entry.bytes} bytes with {entry.sha256[:12]}…"
                )
        return manifest

    def read_manifest(self, round_index: int) -> Manifest:
        """Read and check the manifest alone. Raises ``CheckpointError``."""
        path = self.path(round_index, MANIFEST)
        data = _read(path)
        try:
            manifest = _parse_manifest(data)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from None
        if manifest.round_index != round_index:
            raise CheckpointError(f"{path} says round {manifest.round_index}, expected {round_index}")
        return manifest

    def load_ledger(self, manifest: Manifest) -> dict[str, Json]:
        """The coordinator's ledger of a checkpoint. Raises ``CheckpointError`` where it is damaged."""
        path = self.path(manifest.round_index, LEDGER)
        data = _read(path)
        if hashlib.sha256(data).hexdigest() != manifest.files[LEDGER].sha256:
            raise CheckpointError(f"{path} is damaged: its sha256 is not that of the manifest")
        ledger: dict[str, Json] = json.loads(data)
        return ledger

    def _gather(self, round_index: int, files: Mapping[str, str], building: Path) -> dict[str, FileEntry]:
        """Link staged files into ``building`` and copy taken-over ones, each verified."""
        entries: dict[str, FileEntry] = {}
        sources = {name: (self.staged_path(round_index, name), digest) for name, digest in files.items()}
        if reserved := {MANIFEST, LEDGER} & set(files):
            raise ConfigError(f"got the reserved file name {sorted(reserved)[0]!r}; the store writes it itself")
        previous = [index for index in self.rounds() if index < round_index]
        if previous:
            for name, entry in self.read_manifest(previous[-1]).files.items():
                if name != LEDGER:
                    sources.setdefault(name, (self.path(previous[-1], name), entry.sha256))
        for name, (source, digest) in sources.items():
            data = _read(source)
            entries[name] = _entry_of(data)
            if entries[name].sha256 != digest:
                raise CheckpointError(
                    f"{source} has sha256 {entries[name].sha256[:12]}…, expected {digest[:12]}…; perform its task again"
                )
            if name in files:
                os.link(source, building / name)
            else:
                _write_synced(building / name, data)
        return entries

    def _publish(self, building: Path, target: Path) -> None:
        _fsync(building)
        replaced = target.with_name(f".replaced-{target.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():  # damaged, or committed by a life that died before it could say so
            os.rename(target, replaced)
        os.rename(building, target)
        _fsync(self._root)
        shutil.rmtree(replaced, ignore_errors=True)

    def _prune(self, newest: int) -> None:
        committed = [index for index in self.rounds() if index <= newest]
        for round_index in committed[: -self._keep]:
            shutil.rmtree(self._root / _folder(round_index))
        for round_index in _rounds(self._staging):
            if round_index <= newest:
                shutil.rmtree(self._staging / _folder(round_index), ignore_errors=True)

    def rounds(self) -> list[int]:
        """Numbers of the committed rounds that are kept, ascending; their contents are not checked."""
        return _rounds(self._root)


def digest(manifest: Manifest) -> str:
    """The 'final weights digest': sha256 over name and sha256 of all ``member-*`` and ``world-*`` files, by name."""
    total = hashlib.sha256()
    for name, entry in sorted(manifest.files.items()):
        if name.startswith(("member-", "world-")):
            total.update(f"{name} {entry.sha256}\n".encode())
    return total.hexdigest()


def _parse_manifest(data: bytes) -> Manifest:
    raw = json.loads(data)
    if raw["versions"]["format"] != str(FORMAT):
        raise ValueError(f"format {raw['versions']['format']}, this program reads {FORMAT}")
    if _seal({key: value for key, value in raw.items() if key != "seal"}) != raw["seal"] or _render(raw) != data:
        raise ValueError("its bytes are not those that were written")
    return Manifest(
        round_index=raw["round_index"],
        rows=raw["rows"],
        files={name: FileEntry(**entry) for name, entry in raw["files"].items()},
        versions=raw["versions"],
    )


def _render(content: Mapping[str, Json]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()


def _seal(content: Mapping[str, Json]) -> str:
    return hashlib.sha256(_render(content)).hexdigest()


def _folder(round_index: int) -> str:
    return f"round-{round_index:06d}"


def _rounds(root: Path) -> list[int]:
    """Round numbers of the folders below ``root``, ascending."""
    if not root.is_dir():
        return []
    matches = (_ROUND.fullmatch(entry.name) for entry in root.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(f"got the file name {name!r}; expected letters, digits, '.', '_', '-', at most 64")
    return name


def _entry_of(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def write_durably(target: Path, data: bytes | memoryview) -> None:
    """Temporary file in the same folder, fsync, rename, fsync the folder. Raises ``OSError``."""
    temporary = target.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        _write_synced(temporary, data)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _fsync(target.parent)


def _write_synced(path: Path, data: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SwarmError(
            f"cannot write {path}: {error.strerror}; free space or repair the disk, then resume: "
            "the last committed round is kept"
        ) from error
