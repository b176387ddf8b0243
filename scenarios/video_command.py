"""The command ``swarm video``: which policies, which files, and its progress line."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

from agents.deployment import load_adapted
from env_bridge.clips import FORMS, VideoOptions
from env_bridge.render import check_paths
from env_bridge.tasks import parse_shift, task_to_json
from scenarios.filming import Source, find_source
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

TWO_NUMBERS: Final = re.compile(r"(\d{1,4})x(\d{1,4})")
SHEET_SUFFIX: Final = ".png"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmPlan:
    """What ``swarm video`` was asked for, checked; see `scenarios.filming.film`."""

    sources: tuple[Source, ...]
    paths: tuple[Path, ...]
    shift: TaskParameters | None
    seed: int | None
    options: VideoOptions
    what: str


def plan_film(arguments: argparse.Namespace) -> FilmPlan:
    """Read the options of ``swarm video``. Raises ``ConfigError`` for what cannot be filmed or written."""
    shift = None if arguments.shift is None else parse_shift(arguments.shift)
    source = find_source(
        arguments.source, round_index=arguments.round, member=arguments.member, adapted=arguments.adapted
    )
    sources = [source] if arguments.beside is None else [source, find_source(arguments.beside)]
    for one in sources:
        if one.run_dir is not None and one.adapted is not None:
            load_adapted(one.run_dir, one.adapted)
    width, height = _two_numbers("--size", arguments.size)
    columns, rows = _two_numbers("--sheet", arguments.sheet or "4x3")
    options = VideoOptions(width=width, height=height, columns=columns, rows=rows, seconds=arguments.seconds)
    options.check()
    paths = _paths(arguments, source, arguments.out or _default_path(sources, shift))
    check_paths(paths)
    what = "filming " + " beside ".join(str(one.path) for one in sources)
    return FilmPlan(sources=tuple(sources), paths=paths, shift=shift, seed=arguments.seed, options=options, what=what)


def _paths(arguments: argparse.Namespace, source: Source, out: Path) -> tuple[Path, ...]:
    """The files to write: films by ``--format`` or else by the suffix, and the contact sheet."""
    form = arguments.format
    if arguments.out is not None and out.suffix not in FORMS:
        raise ConfigError(f"--out {out}: expected a file name ending in {', '.join(FORMS)}")
    suffixes = {"mp4": [".mp4"], "gif": [".gif"], "both": [".mp4", ".gif"], None: [out.suffix]}[form]
    if form is not None and arguments.out is not None and out.suffix not in suffixes:
        raise ConfigError(f"--out {out} and --format {form} do not agree; leave one of them out")
    if arguments.sheet is not None and SHEET_SUFFIX not in suffixes:
        suffixes = [*suffixes, SHEET_SUFFIX]
    return tuple(out.with_name(out.name.removesuffix(out.suffix) + suffix) for suffix in suffixes)


def _default_path(sources: list[Source], shift: TaskParameters | None) -> Path:
    """``video.mp4`` of the run, or beside a policy file its name; with a name of its own for all but the plain film."""
    source = sources[0]
    parts = [] if source.adapted is None else [source.adapted]
    parts += [str(part) for part in (source.member,) if part is not None]
    parts += [] if source.round_index is None else [f"round-{source.round_index}"]
    parts += [] if shift is None else [f"{key}-{value:g}" for key, value in task_to_json(shift).items()]
    parts += [f"beside-{other.path.resolve().stem}" for other in sources[1:]]
    if source.run_dir is not None:
        return source.run_dir / ("-".join(["video", *parts]) + ".mp4")
    return source.path.with_name("-".join([source.path.stem, *parts]) + ".mp4")


def _two_numbers(option: str, text: str) -> tuple[int, int]:
    found = TWO_NUMBERS.fullmatch(text)
    if found is None:
        raise ConfigError(f"{option} {text!r}: expected two numbers such as 4x3")
    return int(found[1]), int(found[2])


class Progress:
    """A line that says how many frames are drawn; silent where the output is no terminal."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._is_terminal = output.isatty()
        self._is_open = False

    def __enter__(self) -> Self:
        """Show nothing yet."""
        return self

    def show(self, drawn: int, in_all: int) -> None:
        """Say how far the drawing is."""
        if self._is_terminal:
            self._is_open = True
            self._output.write(f"\rdrawing frame {drawn} of {in_all}")
            self._output.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the line."""
        if self._is_open:
            self._output.write("\n")
