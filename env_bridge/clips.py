"""What is to be drawn, and how: plain data of films and contact sheets.

Letters: T steps, Q generalised positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swarm.errors import ConfigError

ADVICE: Final = "install the Debian package libosmesa6 (apt-get install libosmesa6) and set MUJOCO_GL=osmesa"
FORMS: Final = (".mp4", ".gif", ".png")
MAX_CLIPS: Final = 4
MAX_LABEL: Final = 200
MAX_SECONDS: Final = 600
CLIPS: Final = "clips"
Positions = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """What one picture shows: episodes of one robot, one after the other.

    Attributes:
        episodes: generalised positions (T, Q) of each episode, one row a step.
        env_id: whose model to draw and how long a step lasts.
        label: text above the picture.
        heading: where the robot shall go, in radians, 0 = +x; drawn as an arrow on the ground.
        velocity: how fast it shall go, in m/s; drawn as a post that moves at that speed.
        goal: where it shall arrive, (x, y) in metres; drawn as a disc on the ground.
        xml_file: draw this model instead, for an environment made with another ``xml_file``.
    """

    episodes: Sequence[Positions]
    env_id: str
    label: str = ""
    heading: float | None = None
    velocity: float | None = None
    goal: tuple[float, float] | None = None
    xml_file: str | None = None

    def check(self) -> None:
        """Raise ``ConfigError`` for a clip that cannot be drawn; whether it fits the robot, the child says."""
        if not sum(len(episode) for episode in self.episodes):
            raise ConfigError(f"clip of {self.env_id} holds no step to draw")
        if len(self.label) > MAX_LABEL or not self.label.isprintable():
            raise ConfigError(f"label {self.label[:20]!r}…: expected at most {MAX_LABEL} printable characters")
        marks = (self.heading, self.velocity, *(self.goal or ()))
        if not all(mark is None or np.isfinite(mark) for mark in marks):
            raise ConfigError(f"clip {self.label!r}: heading, velocity and goal must be finite, got {marks}")

    def to_json(self) -> dict[str, Any]:
        """Plain data of everything but the positions."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "episodes"}
        return plain | {"num_episodes": len(self.episodes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOptions:
    """How films and contact sheets look.

    Attributes:
        width: pixels of each clip's picture; clips stand side by side.
        height: pixels.
        every: draw each ``every``-th step; ``None``: as many as make about 25 pictures a second.
        seconds: length at most, in the robot's time.
        fps: frames per second of the film; ``None``: real time.
        columns: pictures in a row of a contact sheet.
        rows: rows of a contact sheet.
        gif_bytes: size that a GIF may have; its pictures are made smaller until it fits.
    """

    width: int = 480
    height: int = 360
    every: int | None = None
    seconds: float = 10.0
    fps: float | None = None
    columns: int = 4
    rows: int = 3
    gif_bytes: int = 8 << 20

    def check(self) -> None:
        """Raise ``ConfigError`` for values that no film can have (sizes must be even for the encoder)."""
        if not (16 <= self.width <= 4096 and 16 <= self.height <= 4096) or self.width % 2 or self.height % 2:
            raise ConfigError(f"video size {self.width}x{self.height}: expected even numbers from 16 to 4096")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"video every={self.every}: expected a number of steps above 0")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise ConfigError(f"video of {self.seconds:g} s: expected more than 0 and at most {MAX_SECONDS} s")
        if self.fps is not None and not 0 < self.fps <= 240:
            raise ConfigError(f"video fps={self.fps:g}: expected a number from 0 to 240")
        if not (1 <= self.columns <= 20 and 1 <= self.rows <= 20):
            raise ConfigError(f"contact sheet {self.columns}x{self.rows}: expected 1 to 20 pictures each way")
        if self.gif_bytes < 1 << 10:
            raise ConfigError(f"gif_bytes={self.gif_bytes}: expected at least {1 << 10}")


def unfinished_path(target: Path) -> Path:
    """Where ``target`` is written until it is complete."""
    return target.with_name(f".{target.stem}.unfinished{target.suffix}")
