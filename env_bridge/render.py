"""Films of recorded positions: `render_video` and `contact_sheet`, which draw in a child process.

Drawing happens in a child (``python -m env_bridge.render``), because a broken GL driver ends its process. Without a
screen, MuJoCo draws through EGL, or else in software through OSMesa (Debian package ``libosmesa6``).

Letters: T steps, E environments, Q generalised positions.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

from env_bridge.clips import ADVICE, CLIPS, FORMS, MAX_CLIPS, Clip, VideoOptions, unfinished_path
from swarm.errors import ConfigError
from swarm.lifeline import die_with_parent

HEADLESS: Final = ("egl", "osmesa")
"""What may draw where there is neither a screen nor a choice, in the order in which they are tried."""


def check_rendering() -> str | None:
    """``None`` where a frame can be drawn, else one line that says what to do. Starts a child process, or two."""
    try:
        find_backend()
    except ConfigError as error:
        return str(error)
    return None


def find_backend() -> str | None:
    """What draws here, as a value of ``MUJOCO_GL``; ``None``: MuJoCo's own choice, for a screen.

    Each is tried by drawing a frame in a child process; what has drawn once is not tried again.

    Raises:
        ConfigError: no frame can be drawn; one line that says what to do.
    """
    chosen, screen = os.environ.get("MUJOCO_GL"), os.environ.get("DISPLAY")
    for backend in (chosen,) if chosen is not None or screen else HEADLESS:
        try:
            _try_frame(backend, screen)
            return backend
        except ConfigError as error:
            failure = error
    raise failure


@functools.cache
def _try_frame(backend: str | None, screen: str | None) -> None:
    """Draw a frame in a child process. Raises ``ConfigError``, which is not kept: what is missing may be installed."""
    command = [sys.executable, "-m", "env_bridge.render", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(backend))
    if done.returncode != 0:
        raise ConfigError(_failure(done.returncode, done.stderr, backend))


def _environment(backend: str | None) -> dict[str, str]:
    """A child's environment."""
    return dict(os.environ) | ({} if backend is None else {"MUJOCO_GL": backend})


def render_video(
    clips: Clip | Sequence[Clip],
    *paths: str | Path,
    options: VideoOptions | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Draw clips side by side, once, into each of ``paths``; blocks until they are written.

    Args:
        clips: one to four; a clip that ends before the others holds its last picture.
        paths: files to write, together or not at all: an MP4 or GIF film, or a PNG contact sheet, by their suffixes.
        options: sizes and speed.
        on_frame: told (frames drawn, frames in all) after each frame.

    Returns:
        The paths.

    Raises:
        ConfigError: no GL, an unknown environment or suffix, or positions that do not fit; one line that says what to
            do. Nothing is written then, and files that were there stay as they were.
    """
    chosen, targets = options or VideoOptions(), check_paths(paths)
    chosen.check()
    shown = [clips] if isinstance(clips, Clip) else list(clips)
    if not 1 <= len(shown) <= MAX_CLIPS:
        raise ConfigError(f"got {len(shown)} clips, expected 1 to {MAX_CLIPS}")
    for clip in shown:
        clip.check()
    arrays = {
        f"{number:02d}/{index:06d}": np.ascontiguousarray(episode)
        for number, clip in enumerate(shown)
        for index, episode in enumerate(clip.episodes)
    }
    with tempfile.TemporaryDirectory(prefix="video-") as folder:
        source = Path(folder) / "positions.safetensors"
        save_file(arrays, source, metadata={CLIPS: json.dumps([clip.to_json() for clip in shown])})
        command = [sys.executable, "-m", "env_bridge.render", "--parent", str(os.getpid()), "--input", str(source)]
        for target in targets:
            command += ["--output", str(target)]
        try:
            _run([*command, *_to_arguments(chosen)], on_frame)
        finally:
            for target in targets:  # a child that was killed could not remove them itself
                unfinished_path(target).unlink(missing_ok=True)
    return targets


def contact_sheet(
    clips: Clip | Sequence[Clip],
    path: str | Path,
    *,
    options: VideoOptions | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw ``columns`` × ``rows`` moments of clips, evenly spaced and with their times, into a PNG; see `render_video`.

    Raises:
        ConfigError: as `render_video`, or ``path`` does not end in .png.
    """
    if Path(path).suffix != ".png":
        raise ConfigError(f"contact sheet {str(path)!r}: expected a file name ending in .png")
    return render_video(clips, path, options=options, on_frame=on_frame)[0]


def check_paths(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    """The files to write. Raises ``ConfigError`` for other suffixes, and for folders that are not there."""
    targets = tuple(Path(path) for path in paths)
    if not targets:
        raise ConfigError(f"no file to write; name one that ends in one of {', '.join(FORMS)}")
    for target in targets:
        if target.suffix not in FORMS:
            raise ConfigError(f"{str(target)!r}: expected a file name ending in {', '.join(FORMS)}")
        if not target.parent.is_dir() or target.is_dir():
            raise ConfigError(f"{str(target)!r}: expected a file in a folder that exists; create it first")
    return targets


def _to_arguments(options: VideoOptions) -> list[str]:
    return [
        word
        for name, value in asdict(options).items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def _run(command: list[str], on_frame: Callable[[int, int], None] | None) -> None:
    """Run the child to its end, passing on its lines ``frame i n``; end it if the caller is interrupted."""
    backend = os.environ.get("MUJOCO_GL")
    if backend is None:
        backend = find_backend()
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment(backend))
        with child:
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    words = line.split()
                    if on_frame is not None and words[:1] == ["frame"]:
                        on_frame(int(words[1]), int(words[2]))
            except BaseException:
                child.kill()
                raise
        if child.returncode != 0:
            errors.seek(0)
            raise ConfigError(_failure(child.returncode, errors.read(), backend))


def _failure(code: int, text: str, backend: str | None) -> str:
    """One line for a child that ended with ``code``; only what it says itself (exit code 2) is passed on."""
    lines = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    if code == 2 and lines:
        return lines[-1]
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
    what = f"rendering with MUJOCO_GL={backend or '(unset)'}"
    return f"{what} ended {how} ({last[:200]}); if that is its GL library: {ADVICE}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The child: draw films, or one frame with ``--check``; exit code 2 with one line for what the user can mend."""
    given = _parser().parse_args(arguments)
    if given.parent is not None:
        die_with_parent(given.parent)
    options = VideoOptions(**{field.name: getattr(given, field.name) for field in fields(VideoOptions)})
    try:
        options.check()
        from env_bridge import drawing  # imports mujoco: only in the child

        if given.check:
            drawing.try_frame(given.env_id)
        elif given.input is None:
            raise ConfigError("drawing a film needs --input and --output")
        else:
            clips = drawing.load_clips(given.input, given.env_id)
            drawing.draw(clips, check_paths(given.output), options, _print_progress)
    except ConfigError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m env_bridge.render", description="Draw recorded positions.")
    parser.add_argument("--check", action="store_true", help="only try whether a frame can be drawn")
    parser.add_argument("--parent", type=int, default=None, help="process to end with")
    parser.add_argument("--env-id", default="HalfCheetah-v4", help="whose model to draw (default %(default)s)")
    parser.add_argument("--input", type=Path, help="safetensors: what render_video wrote, or qpos (T, Q) or (T, E, Q)")
    parser.add_argument(
        "--output", type=Path, action="append", default=[], help="MP4, GIF or PNG file; may be repeated"
    )
    kinds: Mapping[str, type] = {"fps": float, "seconds": float}
    for field in fields(VideoOptions):
        kind = kinds.get(field.name, int)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    return parser


def _print_progress(drawn: int, in_all: int) -> None:
    sys.stdout.write(f"frame {drawn} {in_all}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
