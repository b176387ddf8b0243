"""``swarm video``: any policy on disk is found and filmed, alone or beside another, and what cannot be is one line."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.deployment import AdaptedPolicy, Deployment, save_adapted
from agents.export import export_policy
from agents.pinned import Pinned
from env_bridge import check_rendering
from scenarios.cli import build_parser, main
from scenarios.filming import Source, episodes_of, find_source
from scenarios.video_command import FilmPlan, Progress, plan_film
from swarm.environment import EnvironmentSpec, RolloutResult, TaskParameters
from swarm.errors import ConfigError
from tests.agents.made_runs import HALF_CHEETAH, make_run

UNAVAILABLE = check_rendering()
needs_gl = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
ANT = EnvironmentSpec(
    env_id="Ant-v4",
    observation_size=27,
    action_size=8,
    action_low=(-1.0,) * 8,
    action_high=(1.0,) * 8,
    max_episode_steps=1000,
    timestep_s=0.05,
)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run ``run`` in the current folder, with one committed round."""
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"))
    return Path("run")


@pytest.fixture
def policy_path(run_dir: Path) -> Path:
    return export_policy(run_dir, Path("policy.safetensors"), member="meta").path


def plan(*argv: str) -> FilmPlan:
    return plan_film(build_parser().parse_args(["video", *argv]))


def test_run_checkpoint_policy_and_adapted_file_are_told_apart(run_dir: Path, policy_path: Path) -> None:
    (run_dir / "adapted").mkdir()
    assert find_source(run_dir) == Source(path=run_dir, run_dir=run_dir)
    checkpoint = find_source(run_dir / "checkpoints" / "round-000001", member="meta")
    assert checkpoint.run_dir == run_dir.resolve()
    assert (checkpoint.round_index, checkpoint.member) == (1, "meta")
    assert find_source(policy_path) == Source(path=policy_path)
    adapted = find_source(run_dir / "adapted" / "heavy.safetensors")
    assert adapted == Source(path=run_dir, run_dir=run_dir, adapted="heavy")


def test_files_are_named_after_what_is_filmed(run_dir: Path, policy_path: Path) -> None:
    assert plan("run").paths == (run_dir / "video.mp4",)
    assert plan("run", "--format", "both", "--sheet").paths == (
        run_dir / "video.mp4",
        run_dir / "video.gif",
        run_dir / "video.png",
    )
    assert plan("run", "--round", "1", "--shift", "gravity=1.5,crippled=2").paths == (
        run_dir / "video-round-1-gravity-1.5-crippled-2.mp4",
    )
    assert plan("policy.safetensors", "--beside", "run").paths == (Path("policy-beside-run.mp4"),)
    assert plan("run", "--out", "a.b.gif", "--sheet", "3x2").paths == (Path("a.b.gif"), Path("a.b.png"))
    assert plan("run", "--out", "a.png").paths == (Path("a.png"),)


def test_options_are_read(run_dir: Path) -> None:
    read = plan("run", "--size", "640x480", "--seconds", "2.5", "--sheet", "5x1", "--seed", "7", "--shift", "mass=2")
    assert (read.options.width, read.options.height, read.options.seconds) == (640, 480, 2.5)
    assert (read.options.columns, read.options.rows) == (5, 1)
    assert (read.seed, read.shift) == (7, TaskParameters(mass=2.0))


def test_positions_are_cut_into_episodes_without_rows_that_do_not_count() -> None:
    steps = np.arange(8, dtype=np.float64)
    columns = {
        "qpos": np.broadcast_to(steps[:, None, None], (8, 2, 3)),
        "valid": np.array([[True, True]] * 4 + [[True, False]] * 4),
        "terminated": np.zeros((8, 2), np.bool_),
        "truncated": np.zeros((8, 2), np.bool_),
    }
    columns["terminated"][2, 0] = columns["truncated"][5, 0] = True
    columns["valid"][6, 0] = False
    columns["terminated"][3, 1] = True
    result = RolloutResult(
        columns=columns, snapshot={}, policy_state=np.zeros((2, 1), np.float32), episodes=(), num_steps=12
    )
    assert [episode[:, 0].tolist() for episode in episodes_of(result, 0)] == [[0, 1, 2], [3, 4, 5], [7]]
    assert [episode[:, 0].tolist() for episode in episodes_of(result, 1)] == [[0, 1, 2, 3]]


def film(capsys: pytest.CaptureFixture[str], *argv: str) -> list[Path]:
    code = main(["video", *argv, "--seconds", "0.4", "--size", "96x64", "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return [Path(path) for path in json.loads(said.out)["paths"]]


@needs_gl
def test_run_and_its_exported_policy_look_the_same_side_by_side(
    run_dir: Path, policy_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same member of the same round, from a checkpoint and from a file, in the same states of a shifted task."""
    left = str(run_dir / "checkpoints" / "round-000001")
    (path,) = film(
        capsys, left, "--member", "meta", "--beside", "policy.safetensors", "--shift", "mass=2", "--out", "two.png"
    )
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert sheet.width == 4 * (2 * 96 + 2 * 4) + 4
    tiles = pixels[-64 - 4 : -4, 4:]
    assert (tiles[:, :96] == tiles[:, 100 : 100 + 96]).all()
    assert tiles.std() > 10


@needs_gl
def test_adapted_policy_is_filmed_on_its_task_as_film_and_gif(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team = make_run(Path("other"))
    pinned = Pinned(Path("other"), team, 1)
    deployment = Deployment(member="meta", encoder="shared", weights=pinned.deployed_weights("meta"))
    task = TaskParameters(direction=math.pi)
    policy = AdaptedPolicy(deployment=deployment, task=task, env_id=HALF_CHEETAH.env_id, round_index=1, level="probe")
    save_adapted(run_dir, "back", policy)
    paths = film(capsys, "run", "--adapted", "back", "--format", "both")
    assert paths == [run_dir / "video-back.mp4", run_dir / "video-back.gif"]
    assert all(path.stat().st_size > 1000 for path in paths)
    assert not list(run_dir.glob(".*"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "--round", "7"], "run has no round 7; rounds that are kept: 1"),
        (["run/checkpoints/round-000001", "--round", "2"], "is round 1, got --round 2"),
        (["run/checkpoints/round-000009"], "has no round 9; rounds that are kept: 1"),
        (["run", "--member", "nobody"], "unknown member 'nobody'; members of this run: coordinator, environment"),
        (["run", "--adapted", "x"], "run has no adapted policy 'x'"),
        (["run", "--adapted", "x", "--round", "0"], "an adapted policy has both of its own"),
        (["run/adapted/x.safetensors"], "missing"),
        (["none"], "run directory none does not exist"),
        (["."], "is not a run directory"),
        (["none.safetensors"], "none.safetensors cannot be read"),
        (["policy.safetensors", "--round", "1"], "is one policy; --round belongs to a run directory"),
        (["run", "--beside", "none"], "run directory none does not exist"),
        (["run", "--beside", "ant"], "got policies of HalfCheetah-v4 and Ant-v4 side by side"),
        (["run", "--shift", "gravty=2"], "did you mean 'gravity'"),
        (["run", "--shift", "crippled=9"], "HalfCheetah has actuators 0 to 5"),
        (["ant", "--shift", "crippled=9"], "Ant has actuators 0 to 7"),
        (["run", "--out", "film.avi"], "--out film.avi: expected a file name ending in .mp4, .gif, .png"),
        (["run", "--out", "film"], "--out film: expected a file name ending in"),
        (["run", "--out", "film.gif", "--format", "mp4"], "do not agree"),
        (["run", "--out", "no/film.gif"], "expected a file in a folder that exists"),
        (["run", "--seconds", "0"], "video of 0 s: expected more than 0"),
        (["run", "--seconds", "nan"], "video of nan s"),
        (["run", "--seconds", "ten"], "invalid float value: 'ten'"),
        (["run", "--size", "481x360"], "video size 481x360: expected even numbers"),
        (["run", "--size", "big"], "--size 'big': expected two numbers such as"),
        (["run", "--sheet", "0x3"], "contact sheet 0x3: expected 1 to 20"),
        (["run", "--format", "avi"], "invalid choice: 'avi'"),
    ],
)
def test_film_that_cannot_be_is_one_line_with_exit_code_two_and_nothing_is_written(
    argv: list[str], message: str, policy_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("ant"), ANT)
    if message == "missing":
        message = "run has no adapted policy 'x'; it has: none"
        Path("run/adapted").mkdir()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    assert main(["video", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if not line.startswith("filming ")]
    assert line.startswith("swarm: error: ")
    assert message in line
    assert "Traceback" not in line
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before


def test_environment_without_positions_cannot_be_filmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = replace(HALF_CHEETAH, env_id="LinearQuadratic-v0", observation_size=2, action_size=1)
    make_run(Path("flat"), replace(spec, action_low=(-1.0,), action_high=(1.0,)))
    assert main(["video", "flat", "--seconds", "1"]) == 2
    assert "not a MuJoCo environment" in capsys.readouterr().err
    assert not list(Path("flat").glob("video*"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_line_is_for_terminals_only() -> None:
    for output, expected in (
        (Terminal(), "\rdrawing frame 1 of 2\rdrawing frame 2 of 2\n"),
        (io.StringIO(), ""),
    ):
        with Progress(output) as progress:
            progress.show(1, 2)
            progress.show(2, 2)
        assert output.getvalue() == expected


def test_progress_that_never_began_ends_without_a_line() -> None:
    output = Terminal()

    def refused() -> None:
        with Progress(output):
            raise ConfigError("no")

    with pytest.raises(ConfigError):
        refused()
    assert output.getvalue() == ""
