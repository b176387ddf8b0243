"""Films: frames are chosen, positions checked, all files appear together; where GL is missing, one line says so."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from env_bridge import Clip, VideoOptions, check_rendering, contact_sheet, render, render_video
from env_bridge.drawing import check_positions, choose_steps, load_clips
from env_bridge.models import ASSETS
from env_bridge.render import find_backend, main
from env_bridge.rollout import run_rollout
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import ConfigError

UNAVAILABLE = check_rendering()
needs_gl = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
SMALL = VideoOptions(width=96, height=64, columns=2, rows=2)
STANDING = np.array([0.0, 0.0, 0.75, 1.0, *[0.0] * 11])
"""An Ant above the origin."""


def ant(num_steps: int, x: float = 0.0) -> Clip:
    positions = np.tile(STANDING, (num_steps, 1))
    positions[:, 0] = x
    return Clip(episodes=[positions], env_id="Ant-v4")


def test_frames_are_every_nth_step_of_each_episode_up_to_the_limit() -> None:
    assert choose_steps([5, 3], 2, 4) == [(0, 0), (0, 2), (0, 4), (1, 0)]


def read_video(path: Path, width: int, height: int) -> np.ndarray:
    """All frames of a film."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@needs_gl
def test_film_of_a_rollout_shows_the_robot_move(tmp_path: Path) -> None:
    tasks = (TaskParameters(),) * 8
    request = RolloutRequest(
        env_id="HalfCheetah-v4", tasks=tasks, seed=0, num_steps=20, policy="random", noise_seed=1, record_qpos=True
    )
    qpos = run_rollout(request).columns["qpos"].astype(np.float64)
    heard: list[tuple[int, int]] = []
    clip = Clip(episodes=[qpos[:, 0]], env_id="HalfCheetah-v4", label="random")
    (path,) = render_video(
        clip,
        tmp_path / "run.mp4",
        options=replace(SMALL, every=2),
        on_frame=lambda drawn, in_all: heard.append((drawn, in_all)),
    )
    assert heard == [(number, 10) for number in range(1, 11)]
    frames = read_video(path, 96, 64)
    assert len(frames) == 10
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).max() > 50
    assert list(tmp_path.iterdir()) == [path]


@needs_gl
def test_two_clips_stand_side_by_side_in_film_gif_and_contact_sheet(tmp_path: Path) -> None:
    near = ant(6)
    far = replace(ant(3), heading=0.5, velocity=1.0, goal=(1.0, 1.0), label="to the goal")
    paths = [tmp_path / f"two.{suffix}" for suffix in ("mp4", "gif", "png")]
    assert render_video([near, far], *paths, options=replace(SMALL, every=1)) == tuple(paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    film = read_video(paths[0], 2 * 96 + 4, 64).astype(int)
    assert len(film) == 6
    assert np.abs(film[0, 16:48, :96] - film[0, 16:48, -96:]).max() > 100, "the goal is marked on the right side only"
    with Image.open(paths[1]) as gif:
        assert (gif.n_frames, gif.size) == (6, (196, 64))  # type: ignore[attr-defined]
        assert gif.info["loop"] == 0
    with Image.open(paths[2]) as sheet:
        assert sheet.width == 2 * (196 + 4) + 4


@needs_gl
def test_model_of_ones_own_is_what_is_drawn(tmp_path: Path) -> None:
    own = tmp_path / "red.xml"
    own.write_text((ASSETS / "ant.xml").read_text().replace('rgba="0.8 0.6 0.4 1"', 'rgba="1 0 0 1"'))
    clips = [ant(1), replace(ant(1), xml_file=str(own))]
    contact_sheet(clips, tmp_path / "both.png", options=SMALL)
    with Image.open(tmp_path / "both.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 100) & (pixels[..., 1] < 50) & (pixels[..., 2] < 50)
    assert red[:, 100:].sum() > 20
    assert not red[:, :100].any()


@needs_gl
def test_camera_follows_the_robot(tmp_path: Path) -> None:
    """Sixty metres away, the picture differs only by the floor's pattern: the robot is still in its middle."""
    contact_sheet([ant(1), ant(1, x=60.0)], tmp_path / "far.png", options=SMALL)
    with Image.open(tmp_path / "far.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    middle = np.s_[4 + 20 : 4 + 30, 4 + 38 : 4 + 58]
    shifted = np.s_[4 + 20 : 4 + 30, 104 + 38 : 104 + 58]
    assert np.abs(pixels[middle] - pixels[shifted]).mean() < 10


@needs_gl
def test_what_fails_in_the_middle_leaves_the_old_files_as_they_were(tmp_path: Path) -> None:
    old, blocked = tmp_path / "old.mp4", tmp_path / "new.gif"
    old.write_bytes(b"yesterday's")
    diverged = ant(3)
    diverged.episodes[0][2, 0] = np.nan
    with pytest.raises(ConfigError, match="positions of episode 0 are not finite"):
        render_video([ant(3), diverged], old, blocked, options=SMALL)
    assert old.read_bytes() == b"yesterday's"
    assert list(tmp_path.iterdir()) == [old]


@needs_gl
def test_robots_of_different_steps_cannot_play_side_by_side(tmp_path: Path) -> None:
    humanoid = Clip(episodes=[np.zeros((3, 24))], env_id="Humanoid-v4")
    with pytest.raises(ConfigError, match=r"Ant-v4, Humanoid-v4 have steps of different length"):
        render_video([ant(3), humanoid], tmp_path / "x.mp4", options=SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["no-such-backend", "glfw"])
def test_missing_gl_is_one_line_that_names_the_package(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.delenv("DISPLAY", raising=False)
    advice = check_rendering()
    assert advice is not None
    assert "\n" not in advice
    assert f"MUJOCO_GL={backend}" in advice
    assert "libosmesa6" in advice
    assert "MUJOCO_GL=osmesa" in advice


def test_film_without_gl_is_refused_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    with pytest.raises(ConfigError, match="libosmesa6"):
        render_video(ant(3), tmp_path / "run.mp4")
    assert not list(tmp_path.iterdir())


@needs_gl
def test_interrupted_film_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(drawn: int, in_all: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_video(ant(40), tmp_path / "run.mp4", tmp_path / "run.gif", options=SMALL, on_frame=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (np.zeros((4, 15)), r"expected floats \(T, 9\) for HalfCheetah-v4"),
        (np.full((4, 9), np.nan), "not finite"),
        (np.zeros((0, 9)), "no step to draw"),
        (np.zeros((4, 9), dtype=np.int64), "expected floats"),
    ],
)
def test_positions_that_do_not_fit_are_one_line(episode: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_positions(Clip(episodes=[episode], env_id="HalfCheetah-v4"), 9)


@pytest.mark.parametrize(
    ("clips", "paths", "message"),
    [
        ([], ["a.mp4"], "got 0 clips, expected 1 to 4"),
        ([ant(1)] * 5, ["a.mp4"], "got 5 clips"),
        ([ant(1)], [], "no file to write"),
        ([ant(1)], ["a.avi"], "'a.avi': expected a file name ending in .mp4, .gif, .png"),
        ([ant(1)], ["a.mp4", "no/folder.gif"], "expected a file in a folder that exists"),
        ([ant(0)], ["a.mp4"], "clip of Ant-v4 holds no step to draw"),
        ([replace(ant(1), label="two\nlines")], ["a.mp4"], "expected at most 200 printable characters"),
        ([replace(ant(1), heading=float("inf"))], ["a.mp4"], "must be finite"),
    ],
)
def test_film_that_cannot_be_is_refused_before_a_process_is_started(
    clips: list[Clip], paths: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        render_video(clips, *paths)
    assert not list(tmp_path.iterdir())


def test_contact_sheet_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a file name ending in \.png"):
        contact_sheet(ant(1), tmp_path / "sheet.jpg")


def test_rollout_file_gives_one_episode_an_environment(tmp_path: Path) -> None:
    save_file({"qpos": np.zeros((4, 8, 9)), "reward": np.zeros((4, 8))}, tmp_path / "in.safetensors")
    (clip,) = load_clips(tmp_path / "in.safetensors", "HalfCheetah-v4")
    assert [episode.shape for episode in clip.episodes] == [(4, 9)] * 8


def test_damaged_or_missing_file_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    save_file({"reward": np.zeros(3)}, tmp_path / "other.safetensors")
    for name, text in (("bad", "cannot be read"), ("missing", "cannot be read"), ("other", "no array 'qpos'")):
        code = main(["--input", str(tmp_path / f"{name}.safetensors"), "--output", str(tmp_path / "run.mp4")])
        assert code == 2
        said = capsys.readouterr().err
        assert text in said
        assert said.count("\n") == 1


def test_sizes_that_no_encoder_takes_are_refused() -> None:
    for wrong in (
        {"width": 321},
        {"height": 0},
        {"every": 0},
        {"fps": -1.0},
        {"seconds": float("nan")},
        {"seconds": 0.0},
        {"rows": 0},
        {"gif_bytes": 9},
    ):
        with pytest.raises(ConfigError):
            replace(VideoOptions(), **wrong).check()  # type: ignore[arg-type]


@needs_gl
def test_what_draws_without_a_screen_is_found_by_trying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    working = find_backend() or render.HEADLESS[-1]
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(render, "HEADLESS", ("no-such-backend", working))
    assert find_backend() == working
    assert check_rendering() is None
    contact_sheet(ant(1), tmp_path / "ant.png", options=SMALL)
    monkeypatch.setattr(render, "HEADLESS", ("no-such-backend", "neither"))
    assert "MUJOCO_GL=neither" in str(check_rendering())
