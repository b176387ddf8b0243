"""Videos: frames are chosen, positions are checked, and where GL is missing one line says what to install."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from safetensors.numpy import save_file

from env_bridge.drawing import choose_steps, load_positions
from env_bridge.render import VideoOptions, check_rendering, main, render_video
from env_bridge.rollout import run_rollout
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import ConfigError

UNAVAILABLE = check_rendering()
needs_gl = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


def test_frames_are_every_nth_step_of_each_episode_up_to_the_limit() -> None:
    options = VideoOptions(every=2, max_frames=4)
    assert choose_steps([5, 3], options) == [(0, 0), (0, 2), (0, 4), (1, 0)]


def read_video(path: Path) -> np.ndarray:
    """All frames of a 320x240 video."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 240, 320, 3)


@needs_gl
def test_video_of_a_rollout_shows_the_robot_move(tmp_path: Path) -> None:
    tasks = (TaskParameters(),) * 8
    request = RolloutRequest(
        env_id="HalfCheetah-v4", tasks=tasks, seed=0, num_steps=20, policy="random", noise_seed=1, record_qpos=True
    )
    qpos = run_rollout(request).columns["qpos"].astype(np.float64)
    heard: list[tuple[int, int]] = []
    path = render_video(
        qpos[:, 0], "HalfCheetah-v4", tmp_path / "run.mp4", on_frame=lambda drawn, total: heard.append((drawn, total))
    )
    assert heard == [(number, 10) for number in range(1, 11)]
    frames = read_video(path)
    assert frames.shape == (10, 240, 320, 3)
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).max() > 50
    assert list(tmp_path.iterdir()) == [path]


def test_missing_gl_is_one_line_that_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    advice = check_rendering()
    assert advice is not None
    assert "\n" not in advice
    assert "libosmesa6" in advice
    assert "MUJOCO_GL=osmesa" in advice
    with pytest.raises(ConfigError, match="libosmesa6"):
        render_video(np.zeros((3, 9)), "HalfCheetah-v4", tmp_path / "run.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"qpos": np.zeros((4, 15))}, r"expected floats \(T, 9\) for HalfCheetah-v4"),
        ({"qpos": np.full((4, 9), np.nan)}, "not finite"),
        ({"qpos": np.zeros((0, 9))}, "no step to draw"),
        ({"qpos": np.zeros((4, 9), dtype=np.int64)}, "expected floats"),
    ],
)
def test_positions_that_do_not_fit_are_one_line(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    save_file(arrays, tmp_path / "in.safetensors")
    with pytest.raises(ConfigError, match=message):
        load_positions(tmp_path / "in.safetensors", 9, "HalfCheetah-v4")


def test_rollout_file_gives_one_episode_an_environment(tmp_path: Path) -> None:
    save_file({"qpos": np.zeros((4, 8, 9)), "reward": np.zeros((4, 8))}, tmp_path / "in.safetensors")
    assert [episode.shape for episode in load_positions(tmp_path / "in.safetensors", 9, "")] == [(4, 9)] * 8


def test_damaged_or_missing_file_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    for name in ("bad.safetensors", "missing.safetensors"):
        code = main(["--input", str(tmp_path / name), "--output", str(tmp_path / "run.mp4")])
        assert code == 2
        text = capsys.readouterr().err
        assert "cannot be read" in text
        assert text.count("\n") == 1


def test_sizes_that_no_encoder_takes_are_refused() -> None:
    for wrong in ({"width": 321}, {"height": 0}, {"every": 0}, {"fps": -1.0}):
        with pytest.raises(ConfigError):
            replace(VideoOptions(), **wrong).check()  # type: ignore[arg-type]
