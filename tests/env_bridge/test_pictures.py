"""Composing and writing pictures, without MuJoCo: layout, labels, times and sizes; files appear only when whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from env_bridge.clips import VideoOptions
from env_bridge.pictures import GIF_FRAMES, Frame, Panel, compose, open_picture
from swarm.errors import ConfigError

OPTIONS = VideoOptions(width=128, height=96, columns=3, rows=2)


def grey(level: int, label: str = "", note: str = "") -> Panel:
    return Panel(image=np.full((96, 128, 3), level, np.uint8), label=label, note=note)


def film(in_all: int, *, noisy: bool = False) -> list[Frame]:
    """Frames that get brighter; noise is what does not compress."""
    frames = []
    for number in range(in_all):
        panel = grey(round(50 + 150 * number / max(1, in_all - 1)))
        if noisy:
            rng = np.random.default_rng(number)
            panel = replace(panel, image=rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
        frames.append(Frame(panels=(panel,), number=number + 1, in_all=in_all))
    return frames


def write(path: Path, frames: list[Frame], fps: float, options: VideoOptions = OPTIONS) -> Path:
    with open_picture(path, fps, options) as picture:
        for frame in frames:
            picture.add(frame)
        picture.finish()
        assert not path.exists()
        picture.publish()
    return path


def test_labels_and_notes_are_written_on_strips_at_the_edges() -> None:
    plain, written = (
        np.asarray(compose(Frame(panels=(panel,), number=1, in_all=1))) for panel in (grey(120), grey(120, "a", "b"))
    )
    assert (plain == 120).all()
    assert (written[30:70] == 120).all()
    assert written[:15].max() > 200
    assert written[:15].min() < 80
    assert written[-15:].max() > 200


def test_label_that_is_too_long_is_cut_and_stays_inside() -> None:
    long = np.asarray(compose(Frame(panels=(grey(120, "wide " * 60),), number=1, in_all=1)))
    assert long.shape == (96, 128, 3)
    assert (long[:15, -5:] == long[0, -1]).all(), "nothing runs into the right edge"


def test_panels_stand_side_by_side_with_even_width() -> None:
    two = Frame(panels=(grey(50), grey(200)), number=1, in_all=1)
    image = np.asarray(compose(two))
    assert image.shape == (96, 128 * 2 + 4, 3)
    assert (image[48, :128] == 50).all()
    assert (image[48, 132:] == 200).all()
    assert compose(two, panel_width=63).width % 2 == 0


def test_panel_that_is_held_says_so_once() -> None:
    assert grey(1, note="0.50 s").ended().ended().note == "0.50 s, ended"


@pytest.mark.parametrize(("in_all", "fps"), [(7, 22.2), (40, 66.7), (1, 25.0)])
def test_gif_lasts_as_long_as_the_film(in_all: int, fps: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gif", film(in_all), fps)
    with Image.open(path) as gif:
        lengths = []
        for index in range(gif.n_frames):  # type: ignore[attr-defined]
            gif.seek(index)
            lengths.append(gif.info.get("duration", 1000 / fps))
    assert sum(lengths) == pytest.approx(1000 * in_all / fps, abs=10 + 20 * (in_all == 1))


def test_gif_of_many_frames_leaves_some_out_and_keeps_its_length(tmp_path: Path) -> None:
    frames = film(3 * GIF_FRAMES)
    for number, frame in enumerate(frames):  # neighbours that look the same would be merged
        frame.panels[0].image[:] = 0
        frame.panels[0].image[:, number % 128] = 255
    with Image.open(write(tmp_path / "a.gif", frames, 25.0)) as gif:
        assert gif.n_frames == GIF_FRAMES  # type: ignore[attr-defined]
        assert gif.info["duration"] == 120


def test_gif_is_made_smaller_until_it_fits(tmp_path: Path) -> None:
    frames = film(8, noisy=True)
    free = write(tmp_path / "free.gif", frames, 25.0)
    limit = free.stat().st_size // 2
    tight = write(tmp_path / "tight.gif", frames, 25.0, replace(OPTIONS, gif_bytes=limit))
    assert tight.stat().st_size <= limit
    with Image.open(free) as large, Image.open(tight) as small:
        assert small.width < large.width == 128


def test_gif_that_cannot_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="8 frames do not fit into 1024 bytes; film fewer seconds"):
        write(tmp_path / "a.gif", film(8, noisy=True), 25.0, replace(OPTIONS, gif_bytes=1024))
    assert not list(tmp_path.iterdir())


def tile_levels(path: Path) -> list[int]:
    """Grey levels of the middles of the tiles of a 3 x 2 sheet."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows, columns = ((pixels.shape[0] - 4) // 100, (pixels.shape[1] - 4) // 132)
    return [
        int(pixels[4 + 100 * row + 48, 4 + 132 * column + 64, 0]) for row in range(rows) for column in range(columns)
    ]


def test_contact_sheet_shows_moments_evenly_spaced_from_the_first_to_the_last(tmp_path: Path) -> None:
    assert tile_levels(write(tmp_path / "a.png", film(51), 25.0)) == [50, 80, 110, 140, 170, 200]


def test_contact_sheet_of_fewer_frames_than_places_shows_all_of_them(tmp_path: Path) -> None:
    assert tile_levels(write(tmp_path / "a.png", film(2), 25.0)) == [50, 200]


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_interrupted_picture_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_picture(tmp_path / f"a.{suffix}", 25.0, OPTIONS) as picture:
            picture.add(film(3)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_folder_that_goes_away_is_one_line(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    with pytest.raises(ConfigError, match="cannot be written"):
        write(folder / f"a.{suffix}", film(2), 25.0)
