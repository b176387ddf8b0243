"""Videos of recorded positions: ``python -m env_bridge.render``, and `render_video` which runs it as a child process.

Drawing happens in a child, because a broken GL driver ends its process. Without a screen, MuJoCo draws in software
through OSMesa (Debian package ``libosmesa6``); about 0.05-0.1 s a frame.

Letters: T steps, Q generalised positions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from swarm.errors import ConfigError

ADVICE: Final = "install the Debian package libosmesa6 (apt-get install libosmesa6) and set MUJOCO_GL=osmesa"
Positions = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOptions:
    """How a video looks.

    Attributes:
        every: draw each ``every``-th step; the video plays in real time all the same, as long as ``fps`` is ``None``.
        max_frames: frames at most, in all.
        fps: frames per second; ``None``: real time.
    """

    width: int = 320
    height: int = 240
    every: int = 2
    max_frames: int = 200
    fps: float | None = None

    def check(self) -> None:
        """Raise ``ConfigError`` for values that no video can have (sizes must be even for the encoder)."""
        if not (16 <= self.width <= 4096 and 16 <= self.height <= 4096) or self.width % 2 or self.height % 2:
            raise ConfigError(f"video size {self.width}x{self.height}: expected even numbers from 16 to 4096")
        if self.every < 1 or self.max_frames < 1:
            raise ConfigError(f"video every={self.every}, max_frames={self.max_frames}: expected numbers above 0")
        if self.fps is not None and not 0 < self.fps <= 240:
            raise ConfigError(f"video fps={self.fps}: expected a number from 0 to 240")


def check_rendering() -> str | None:
    """``None`` where a frame can be drawn, else one line that says what to do. Starts a child process."""
    command = [sys.executable, "-m", "env_bridge.render", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    return None if done.returncode == 0 else _failure(done.returncode, done.stderr)


def child_environment() -> dict[str, str]:
    """This process's environment, with software rendering where there is neither a choice nor a screen."""
    environment = dict(os.environ)
    if "MUJOCO_GL" not in environment and not environment.get("DISPLAY"):
        environment["MUJOCO_GL"] = "osmesa"
    return environment


def render_video(
    episodes: Positions | Sequence[Positions],
    env_id: str,
    path: Path,
    *,
    options: VideoOptions | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw episodes one after the other into an MP4 at ``path``; blocks until it is written.

    Args:
        episodes: generalised positions (T, Q) of one episode, or several of them.
        env_id: whose model to draw.
        path: the file to write, atomically.
        options: sizes and speed.
        on_frame: told (frames drawn, frames in all) after each frame.

    Raises:
        ConfigError: no GL, an unknown environment or positions that do not fit; one line that says what to do.
    """
    chosen = options or VideoOptions()
    chosen.check()
    several = [episodes] if isinstance(episodes, np.ndarray) else list(episodes)
    arrays = {f"episode-{index:04d}": np.ascontiguousarray(item) for index, item in enumerate(several)}
    with tempfile.TemporaryDirectory(prefix="video-") as folder:
        source = Path(folder) / "positions.safetensors"
        save_file(arrays, source)
        command = [sys.executable, "-m", "env_bridge.render", "--env-id", env_id, "--input", str(source)]
        command += ["--output", str(path), *_to_arguments(chosen)]
        _run(command, on_frame)
    return path


def _to_arguments(options: VideoOptions) -> list[str]:
    arguments = ["--width", str(options.width), "--height", str(options.height)]
    arguments += ["--every", str(options.every), "--max-frames", str(options.max_frames)]
    return arguments if options.fps is None else [*arguments, "--fps", str(options.fps)]


def _run(command: list[str], on_frame: Callable[[int, int], None] | None) -> None:
    """Run the child to its end, passing on its lines ``frame i n``; end it if the caller is interrupted."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=child_environment())
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
            raise ConfigError(_failure(child.returncode, errors.read()))


def _failure(code: int, text: str) -> str:
    """One line for a child that ended with ``code``; only what it says itself (exit code 2) is passed on."""
    lines = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    if code == 2 and lines:
        return lines[-1]
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"rendering ended {how}, probably in its GL library; {ADVICE}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The child: draw a video, or one frame with ``--check``; exit code 2 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m env_bridge.render", description="Draw recorded positions to MP4.")
    parser.add_argument("--check", action="store_true", help="only try whether a frame can be drawn")
    parser.add_argument("--env-id", default="HalfCheetah-v4", help="whose model to draw (default %(default)s)")
    parser.add_argument("--input", type=Path, help="safetensors: qpos (T, Q) or (T, E, Q), or one array an episode")
    parser.add_argument("--output", type=Path, help="MP4 file to write")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--every", type=int, default=2, help="draw each n-th step (default %(default)s)")
    parser.add_argument("--max-frames", type=int, default=200)
    parser.add_argument("--fps", type=float, default=None, help="frames per second (default: real time)")
    given = parser.parse_args(arguments)
    options = VideoOptions(
        width=given.width, height=given.height, every=given.every, max_frames=given.max_frames, fps=given.fps
    )
    try:
        options.check()
        from env_bridge import drawing  # imports mujoco: only in the child

        if given.check:
            drawing.try_frame(given.env_id)
        elif given.input is None or given.output is None:
            raise ConfigError("drawing a video needs --input and --output")
        else:
            drawing.write_video(given.env_id, given.input, given.output, options, _print_progress)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _print_progress(drawn: int, in_all: int) -> None:
    sys.stdout.write(f"frame {drawn} {in_all}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
