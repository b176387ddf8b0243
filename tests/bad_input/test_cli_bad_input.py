from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scenarios.cli import main
from scenarios.run_directory import RunDirectory, swarm_command
from scenarios.scenario import load_preset
from tests.agents.made_runs import make_run


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run the command in this process; return its one error line, after checking that it is just that."""
    code = main(argv)
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("swarm: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "halfcheta"], "unknown scenario 'halfcheta'; did you mean 'halfcheetah'?"),
        (["run", "../none.toml"], "scenario file '../none.toml' does not exist"),
        (["run", "smoke", "--task", "Nope-v4"], "unknown environment 'Nope-v4'"),
        (["run", "smoke", "--task", "HalfCheetah-v99"], "unknown environment 'HalfCheetah-v99'"),
        (["run", "smoke", "--task", "../../etc"], "unknown environment '../../etc'"),
        (["run", "smoke", "--task", "CartPole-v1"], "CartPole-v1 has actions Discrete() and observations Box(4,)"),
        (
            ["run", "smoke", "--task", "Pendulum-v1"],
            "do without: --set rounds.shifted_every=0 --set rounds.adapt_every=0",
        ),
        (
            ["run", "smoke", "--task", "Pusher-v5", "--set", "task.crippled=7"],
            "crippled=7: Pusher has actuators 0 to 6",
        ),
        (["run", "smoke", "--task", "Pusher-v5", "--set", "task.velocity=1"], "Pusher-v5 has no target velocity"),
        (["run", "smoke", "--steps", "-5"], "team.budget_steps is -5; expected at least 1"),
        (["run", "smoke", "--steps", "many"], "team.budget_steps is 'many'; expected an integer"),
        (["run", "smoke", "--steps", "1e400"], "team.budget_steps is '1e400'; expected an integer"),
        (["run", "smoke", "--seed", "-1"], "team.seed is -1; expected at least 0"),
        (["run", "smoke", "--processes", "0"], "processes is 0; expected at least 1"),
        (["run", "smoke", "--mode", "telepathic"], "unknown mode 'telepathic'"),
        (["run", "smoke", "--agents", "meta,oracle"], "unknown agent 'oracle'"),
        (["run", "smoke", "--set", "sac.lerning_rate=1"], "did you mean 'sac.learning_rate'?"),
        (["run", "smoke", "--set", "sac.learning_rate=nan"], "expected a finite number"),
        (["run", "smoke", "--set", "task.crippled=99"], "crippled=99: HalfCheetah has actuators 0 to 5"),
        (["run", "smoke", "--set", "task.direction=1"], "HalfCheetah is planar"),
        (["run", "smoke", "--set", "suite=ant-dirs"], "did you mean 'ant-dir'"),
        (["run", "smoke", "--set", "suite=ant-dir"], "suite 'ant-dir' is for Ant, not for HalfCheetah-v4"),
        (["run", "smoke", "--set", "suite=shift-test"], "'shift-test' is for testing"),
        (["run", "halfcheetah-vel", "--task", "Ant-v4"], "suite 'halfcheetah-vel' is for HalfCheetah, not for Ant-v4"),
        (["run", "smoke", "--set", "team.train_tasks=3"], "unknown setting 'team.train_tasks'"),
        (["run", "smoke", "--set", "trials.episodes=0"], "team.trials.episodes is 0; expected at least 1"),
        (["run", "smoke", "--set", "nothing"], "override 'nothing' has no '='"),
        (["run", "smoke", "--set", "name=../../x"], "expected 1 to 64 letters"),
        (["run", "smoke", "--set", "team.agents=os:system,coordinator,environment"], "unknown agent 'os:system'"),
        (["run", "smoke", "--speed", "9"], "unrecognized arguments: --speed 9"),
        (["run"], "the following arguments are required: SCENARIO"),
        ([], "the following arguments are required: COMMAND"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["resume", "runs/none"], "run directory runs/none does not exist"),
        (["resume", "."], "is not a run directory: it has no scenario.toml"),
        (["evaluate", "runs/none"], "run directory runs/none does not exist"),
        (["evaluate", ".", "--episodes", "0"], "'0' is not a number from 1 to 10000"),
        (["video", "runs/none"], "run directory runs/none does not exist"),
    ],
)
def test_wrong_command_line_is_refused_in_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], argv: Sequence[str], message: str
) -> None:
    assert message in refused(capsys, *argv)
    assert list(Path.cwd().iterdir()) == []


def test_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way", encoding="utf-8")
    line = refused(capsys, "run", "smoke", "--out", "file/run")
    assert "cannot write to file/run" in line
    assert "--out" in line
    assert "cannot write to file" in refused(capsys, "run", "smoke", "--out", "file")


def test_folder_that_holds_something_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work", encoding="utf-8")
    assert "mine is not empty" in refused(capsys, "run", "smoke", "--out", "mine")
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_run_directory_without_a_committed_round_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    RunDirectory.create(Path("fresh"), load_preset("smoke"))
    for argv in (["evaluate", "fresh"], ["video", "fresh"], ["adapt", "fresh", "--shift", "gravity=2"]):
        assert f"fresh has no committed round; continue it with: {swarm_command()} resume fresh" in refused(
            capsys, *argv
        )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shift", "crippled=99"], "crippled=99: HalfCheetah has actuators 0 to 5"),
        (["--shift", "direction=1"], "HalfCheetah is planar"),
        (["--suite", "ant-dir"], "HalfCheetah is planar"),
        (["--shift", "gravity=2", "--episodes", "1"], "level climb takes at least 2 episodes"),
        (["--shift", "gravty=1.5"], "did you mean 'gravity'"),
        (["--shift", "gravity=nan"], "gravity"),
        (["--shift", ""], "changes nothing"),
        ([], "this run was trained on one task, so adapt needs one of --shift gravity=1.5,… and --suite shift-test"),
        (["--shift", "gravity=2", "--suite", "shift-test"], "argument --suite: not allowed with argument --shift"),
        (["--shift", "gravity=2", "--tasks", "3"], "--tasks says how many tasks of a suite"),
        (["--suite", "shift-tset"], "did you mean 'shift-test'"),
        (["--suite", "shift-test", "--tasks", "0"], "'0' is not a number from 1 to 10000"),
        (["--suite", "shift-test", "--save", "x"], "--save names one policy, got 6 tasks"),
        (["--shift", "gravity=2", "--save", "../x"], "got the name '../x' for an adapted policy"),
        (["--shift", "gravity=2", "--level", "best"], "invalid choice: 'best'"),
        (["--shift", "gravity=2", "--episodes", "none"], "'none' is not a number from 1 to 10000"),
        (["--shift", "gravity=2", "--seed", "-1"], "--seed"),
    ],
)
def test_an_adaptation_that_cannot_be_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    RunDirectory.create(Path("fresh"), load_preset("smoke"))
    assert message in refused(capsys, "adapt", "fresh", *argv)


@pytest.mark.parametrize("damage", ["", "name = 3", "name = 'x'\nunknown = 1", "\x00\xff", "[team"])
def test_damaged_scenario_of_a_run_is_named(capsys: pytest.CaptureFixture[str], damage: str) -> None:
    run = RunDirectory.create(Path("run"), load_preset("smoke"))
    run.scenario_file.write_bytes(damage.encode("latin-1"))
    assert "run/scenario.toml cannot be used" in refused(capsys, "resume", "run")


def test_a_run_whose_files_do_not_fit_its_settings_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("run"))
    scenario = Path("run/scenario.toml")
    text = scenario.read_text(encoding="utf-8")
    assert "actor_hidden = [64, 64]" in text
    scenario.write_text(text.replace("actor_hidden = [64, 64]", "actor_hidden = [64, 65]"), encoding="utf-8")
    assert "other network sizes?" in refused(capsys, "resume", "run")


def test_module_and_console_script_say_the_same_without_a_traceback() -> None:
    command = [sys.executable, "-m", "scenarios", "run", "smoke", "--mode", "telepathic"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("swarm: error: unknown mode 'telepathic'; known: collaborative, independent\n"), done.stderr


@pytest.mark.parametrize("command", [[], ["run"], ["resume"], ["evaluate"], ["adapt"], ["video"], ["list"], ["doctor"]])
def test_every_help_has_an_example_and_exit_codes(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "example: swarm" in text
    assert "exit codes: 0 ok" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from scenarios.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'rich', 'numpy', 'zmq', 'mujoco', 'gymnasium') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_resolving_a_scenario_imports_no_torch_and_no_physics() -> None:
    code = (
        "import sys; from scenarios.commands import resolve; from scenarios.cli import build_parser; "
        "resolve(build_parser().parse_args(['run', 'humanoid'])); "
        "print([m for m in ('torch', 'mujoco', 'gymnasium', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_list_as_json_can_be_read_by_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [scenario["name"] for scenario in found["scenarios"]]
    assert names == sorted(names)
    assert {"ant", "halfcheetah", "humanoid", "smoke", "halfcheetah-vel", "ant-dir"} <= set(names)
    assert "Ant-v4" in found["tasks"]
