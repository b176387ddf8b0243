"""Composing drawn panels into pictures, and writing them: MP4 and GIF films, PNG contact sheets. No MuJoCo.

Letters: H and W pixels.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

import imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from env_bridge.clips import VideoOptions, unfinished_path
from swarm.errors import ConfigError

GAP: Final = 4
BACKGROUND: Final = (24, 26, 30)
INK: Final = (255, 255, 255)
GIF_WIDTH: Final = 320
GIF_FRAMES: Final = 150
GIF_FPS: Final = 30.0
"""At most; browsers slow down what is shorter than two hundredths of a second."""
GIF_COLOURS: Final = 128
SHRINK: Final = 0.8
SMALLEST: Final = 48
SHEET_WIDTH: Final = 1920
SMALLEST_FONT: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One clip's part of a frame: ``image`` (H, W, 3) uint8, its label, and a note on the moment."""

    image: NDArray[np.uint8]
    label: str
    note: str

    def ended(self) -> Panel:
        """The same picture, said to be the last one."""
        return self if self.note.endswith("ended") else replace(self, note=f"{self.note}, ended")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """Panels side by side: frame ``number`` of ``in_all``, counted from 1."""

    panels: tuple[Panel, ...]
    number: int
    in_all: int


class Picture(Protocol):
    """A file that is made of frames; it appears with `publish`, after all its siblings are finished."""

    def add(self, frame: Frame) -> None:
        """Take the next frame."""
        ...

    def finish(self) -> None:
        """Write everything, beside the place where it will appear. Raises ``ConfigError`` where that fails."""
        ...

    def publish(self) -> None:
        """Let the file appear in its place."""
        ...

    def close(self) -> None:
        """Let go of everything, finished or not."""
        ...


@contextlib.contextmanager
def open_picture(target: Path, fps: float, options: VideoOptions) -> Iterator[Picture]:
    """The picture that the suffix of ``target`` asks for; what is unfinished at the end of the block is removed.

    Raises:
        ConfigError: within the block, for a file that cannot be written.
    """
    unfinished = unfinished_path(target)
    kinds: Mapping[str, type[Mp4 | Gif | Sheet]] = {".mp4": Mp4, ".gif": Gif, ".png": Sheet}
    try:
        with contextlib.closing(kinds[target.suffix](target, unfinished, fps, options)) as picture:
            yield picture
    except OSError as error:
        raise ConfigError(f"{str(target)!r} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


class Mp4:
    """A film in H.264."""

    def __init__(self, target: Path, unfinished: Path, fps: float, options: VideoOptions) -> None:
        self._target, self._unfinished = target, unfinished
        self._writer = imageio.get_writer(unfinished, fps=fps, codec="libx264", quality=7, macro_block_size=2)

    def add(self, frame: Frame) -> None:
        """Encode a frame."""
        self._writer.append_data(np.asarray(compose(frame)))

    def finish(self) -> None:
        """End the encoder."""
        self._writer.close()

    def publish(self) -> None:
        """Let the file appear."""
        self._unfinished.replace(self._target)

    def close(self) -> None:
        """End the encoder, which would else write on."""
        self._writer.close()


class Gif:
    """A film for pages that show no MP4: small, of at most `GIF_FRAMES` frames, in one palette of `GIF_COLOURS`."""

    def __init__(self, target: Path, unfinished: Path, fps: float, options: VideoOptions) -> None:
        self._target, self._unfinished = target, unfinished
        self._fps, self._most_bytes = fps, options.gif_bytes
        self._images: list[Image.Image] = []
        self._times_s: list[float] = []
        self._stride = 1
        self._in_all = 0

    def add(self, frame: Frame) -> None:
        """Keep every n-th frame, small."""
        self._in_all = frame.in_all
        self._stride = math.ceil(max(frame.in_all / GIF_FRAMES, self._fps / GIF_FPS - 0.01))
        if (frame.number - 1) % self._stride == 0:
            width = min(GIF_WIDTH, frame.panels[0].image.shape[1])
            self._images.append(compose(frame, panel_width=width))
            self._times_s.append((frame.number - 1) / self._fps)

    def finish(self) -> None:
        """Write it, smaller and smaller until it is small enough."""
        images = self._images
        while len(data := self._encode(images)) > self._most_bytes:
            width, height = (round(size * SHRINK) for size in images[0].size)
            if min(width, height) < SMALLEST:
                raise ConfigError(
                    f"{str(self._target)!r}: {len(images)} frames do not fit into {self._most_bytes} bytes; "
                    "film fewer seconds, or write an .mp4"
                )
            images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in self._images]
        self._unfinished.write_bytes(data)

    def _encode(self, images: Sequence[Image.Image]) -> bytes:
        """GIF counts hundredths of a second: each frame's end is rounded, so that the whole keeps its length."""
        ends = [*self._times_s[1:], self._in_all / self._fps]
        hundredths = [round(100 * end) - round(100 * start) for start, end in zip(self._times_s, ends, strict=True)]
        probes = [images[index] for index in sorted({0, len(images) // 2, len(images) - 1})]
        palette = _stacked(probes).quantize(GIF_COLOURS, method=Image.Quantize.MAXCOVERAGE)
        flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        buffer = io.BytesIO()
        durations = [max(10, 10 * count) for count in hundredths]
        flat[0].save(buffer, "GIF", save_all=True, append_images=flat[1:], duration=durations, loop=0, optimize=False)
        return buffer.getvalue()

    def publish(self) -> None:
        """Let the file appear."""
        self._unfinished.replace(self._target)

    def close(self) -> None:
        """Nothing is held but memory."""


class Sheet:
    """A contact sheet: moments evenly spaced over the film, each with its time, below the labels."""

    def __init__(self, target: Path, unfinished: Path, fps: float, options: VideoOptions) -> None:
        self._target, self._unfinished = target, unfinished
        self._columns, self._places = options.columns, options.columns * options.rows
        self._tiles: list[Image.Image] = []
        self._labels: list[str] = []

    def add(self, frame: Frame) -> None:
        """Keep the frames nearest to the moments; with fewer frames than places, all of them."""
        count = min(self._places, frame.in_all)
        moments = np.linspace(0, frame.in_all - 1, count).round().astype(int)
        if frame.number - 1 not in moments:
            return
        self._labels = [panel.label for panel in frame.panels]
        share = (SHEET_WIDTH // self._columns - GAP * len(frame.panels)) // len(frame.panels)
        width = max(1, min(share, frame.panels[0].image.shape[1]))
        self._tiles.append(compose(frame, panel_width=width, labelled=False))

    def finish(self) -> None:
        """Paste the tiles and write the PNG."""
        width, height = self._tiles[0].size
        columns = min(self._columns, len(self._tiles))
        rows = -(-len(self._tiles) // columns)
        total = columns * (width + GAP) + GAP
        font = _font(22)
        labels = [label for label in self._labels if label]
        head = GAP + (font.size + 10) * len(labels)
        sheet = Image.new("RGB", (total, int(head) + rows * (height + GAP)), BACKGROUND)
        pen = ImageDraw.Draw(sheet)
        for number, label in enumerate(labels):
            side = f"{('left', 'right')[number]}: " if len(self._labels) == 2 and len(labels) == 2 else ""
            pen.text((GAP + 4, GAP + 32 * number), _fitting(side + label, font, total - 16), fill=INK, font=font)
        for number, tile in enumerate(self._tiles):
            row, column = divmod(number, columns)
            sheet.paste(tile, (GAP + column * (width + GAP), int(head) + row * (height + GAP)))
        sheet.save(self._unfinished, "PNG", optimize=True)

    def publish(self) -> None:
        """Let the file appear."""
        self._unfinished.replace(self._target)

    def close(self) -> None:
        """Nothing is held but memory."""


def compose(frame: Frame, *, panel_width: int | None = None, labelled: bool = True) -> Image.Image:
    """Panels side by side, with their labels above and the notes below, written on them."""
    images = []
    for panel in frame.panels:
        image = Image.fromarray(panel.image)
        if panel_width is not None and panel_width != image.width:
            size = (panel_width, max(1, round(image.height * panel_width / image.width)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        images.append(_captioned(image, panel.label if labelled else "", panel.note))
    if len(images) == 1:
        return images[0]
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    whole = Image.new("RGB", (width + width % 2, images[0].height), BACKGROUND)
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + GAP
    return whole


def _captioned(image: Image.Image, label: str, note: str) -> Image.Image:
    """The image with texts on dark strips along its upper and lower edge."""
    font = _font(max(13, image.height // 20))
    strip = round(font.size * 1.5)
    for text, top in ((label, 0), (note, image.height - strip)):
        if text:
            shade = Image.new("RGB", (image.width, strip), BACKGROUND)
            box = (0, top, image.width, top + strip)
            image.paste(Image.blend(image.crop(box), shade, 0.65), box)
            used = _narrower(text, font, image.width - 12)
            fitting = _fitting(text, used, image.width - 12)
            ImageDraw.Draw(image).text((6, top + strip // 2), fitting, fill=INK, font=used, anchor="lm")
    return image


def _narrower(text: str, font: ImageFont.FreeTypeFont, width: int) -> ImageFont.FreeTypeFont:
    """The font, or a smaller one in which ``text`` fits into ``width`` pixels; never one that cannot be read."""
    while font.size > SMALLEST_FONT and font.getlength(text) > width:
        font = _font(round(font.size) - 1)
    return font


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, cut where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "a size was asked for"
    return font


def _stacked(images: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (images[0].width, sum(image.height for image in images)))
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return whole
