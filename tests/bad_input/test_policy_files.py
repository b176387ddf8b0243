"""Exported policies that are damaged, mismatched or misused, and exports that cannot be: one line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import agents
from agents.export import export_policy
from scenarios.cli import main
from swarm.checkpoint import CheckpointStore
from swarm.errors import CheckpointError, ConfigError
from tests.agents.made_runs import make_run, sha256_of, tampered_card


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def policy_path(run_dir: Path, tmp_path: Path) -> Path:
    return export_policy(run_dir, tmp_path / "policy.safetensors").path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        agents.load_policy(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_flipped_byte_anywhere_in_the_weights_is_found(policy_path: Path) -> None:
    whole = policy_path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 40).astype(int).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1
        policy_path.write_bytes(bytes(damaged))
        assert "its card policy.json says" in refused(policy_path)
    policy_path.write_bytes(whole[:-1])
    assert "its card policy.json says" in refused(policy_path)
    policy_path.write_bytes(whole)
    agents.load_policy(policy_path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), "card", "format is 'card', version 1; expected 'ssm-swarm policy', version 1"),
        (("format_version",), 2, "version 2; expected 'ssm-swarm policy', version 1"),
        (("environment",), ..., "environment is None, expected a table"),
        (("environment", "id"), 5, "id is 5, expected a text"),
        (("environment", "observation_size"), 27, "says observation_size 27, the weights have 17"),
        (("environment", "observation_size"), True, "observation_size is True, expected a number from 1"),
        (("environment", "action_low"), [-1.0], "action_low and action_high are no limits of the same actions"),
        (("environment", "action_low"), [1.0] * 6, "action_low and action_high are no limits of the same actions"),
        (("environment", "action_low"), [None] * 6, "action_low holds something that is no finite number"),
        (("environment", "action_high"), [float("nan")] * 6, "action_high holds something that is no finite number"),
        (("policy", "state_size"), ..., "state_size is None, expected a number from 1"),
        (("policy", "state_size"), 71, "says state_size 71, the weights have 70"),
        (("weights", "sha256"), "0" * 64, "says 000000000000…"),
        (("weights",), [], "weights is [], expected a table"),
    ],
)
def test_a_wrong_card_is_refused_with_the_key(
    policy_path: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    tampered_card(policy_path, *keys, value=value)
    assert message in refused(policy_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_card_that_is_none_is_refused(policy_path: Path, content: bytes) -> None:
    policy_path.with_suffix(".json").write_bytes(content)
    assert "policy.json" in refused(policy_path)


def test_missing_files_and_other_formats_are_named(policy_path: Path, tmp_path: Path) -> None:
    assert "none.safetensors cannot be read: No such file" in refused(tmp_path / "none.safetensors")
    assert "is no .safetensors file" in refused(policy_path.with_suffix(".json"))
    policy_path.with_suffix(".json").unlink()
    assert "policy.json cannot be read: No such file" in refused(policy_path)


@pytest.mark.parametrize("name", ["enc.nu", "actor.b3", "norm.mean"])
def test_weights_that_lack_an_array_are_refused_even_with_a_matching_card(policy_path: Path, name: str) -> None:
    weights = load_file(policy_path)
    del weights[name]
    save_file(weights, policy_path)
    tampered_card(policy_path, "weights", "sha256", value=sha256_of(policy_path))
    assert f"acting weights lack '{name}'" in refused(policy_path)


def test_rubbish_with_a_matching_card_is_refused(policy_path: Path) -> None:
    policy_path.write_bytes(b"\xff" * 100)
    tampered_card(policy_path, "weights", "sha256", value=sha256_of(policy_path))
    assert "cannot be used" in refused(policy_path)


@pytest.mark.parametrize(
    ("observation", "num_states", "reward", "message"),
    [
        (np.zeros((1, 27)), 1, 0.0, r"got observations of shape \(1, 27\), expected \(E, 17\): .* HalfCheetah-v4"),
        (np.zeros(16), 1, 0.0, r"got observations of shape \(1, 16\)"),
        (np.zeros((2, 2, 17)), 2, 0.0, r"got observations of shape \(2, 2, 17\)"),
        (np.zeros((2, 17)), 1, 0.0, r"got a state of shape \(1, 70\) for 2 observations, expected \(2, 70\)"),
        (np.full((1, 17), np.nan), 1, 0.0, "not finite"),
        (np.full((1, 17), 1e300), 1, 0.0, "not finite"),
        (np.zeros((1, 17)), 1, np.inf, "not finite"),
    ],
)
def test_what_another_environment_gives_is_refused(
    policy_path: Path, observation: np.ndarray, num_states: int, reward: float, message: str
) -> None:
    policy = agents.load_policy(policy_path)
    with pytest.raises(ConfigError, match=message):
        policy.step(observation, policy.initial_state(num_states), reward=reward)
    with pytest.raises(ConfigError, match="got 0 environments"):
        policy.initial_state(0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("observation", [["a"] * 17] * 3, "got observations of type <U1, expected numbers"),
        ("observation", [[0.0] * 17] * 2 + [[0.0]], "got observations that cannot be taken for numbers"),
        ("observation", [[None] * 16 + ["a"]] * 3, "got observations that cannot be taken for numbers"),
        ("reward", np.zeros(2), r"got rewards of shape \(2,\), expected \(3,\), or one value for all"),
        ("reward", np.zeros((3, 1)), r"got rewards of shape \(3, 1\)"),
        ("reward", "high", "got rewards of type <U4"),
        ("reward", [0.0, np.nan, 0.0], "state that is not finite"),
        ("reset", np.zeros(2, np.bool_), r"got reset of shape \(2,\), expected \(3,\), or one value for all"),
        ("reset", "no", "got reset of type <U2, expected bool"),
        ("reset", [[True], [True, False]], "got reset that cannot be taken for an array"),
        ("state", np.full((3, 70), np.nan), "state that is not finite"),
        ("state", np.full((3, 70), 1e300), "state that is not finite"),
        ("state", [["a"] * 70] * 3, "got a state of type <U1, expected numbers"),
        ("state", None, "got a state of shape"),
    ],
)
def test_arguments_of_a_step_that_do_not_fit_are_refused_in_one_line(
    policy_path: Path, name: str, value: object, message: str
) -> None:
    policy = agents.load_policy(policy_path)
    given: dict[str, Any] = {"observation": np.zeros((3, 17)), "state": policy.initial_state(3), "reward": 0.0}
    with pytest.raises(ConfigError, match=message) as refused:
        policy.step(**{**given, name: value})
    assert "\n" not in str(refused.value)


def test_what_does_not_count_at_the_start_of_an_episode_may_be_anything(policy_path: Path) -> None:
    policy = agents.load_policy(policy_path)
    observation, state, reset = np.ones((3, 17)), policy.initial_state(3), np.array([False, True, False])
    expected = policy.step(observation, state, reward=0.0, reset=reset)
    state[1] = np.nan
    found = policy.step(observation, state, reward=[0.0, np.inf, 0.0], reset=reset)
    for mine, clean in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, clean)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_policy_that_loads(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run_dir)]) == 0
    printed = capsys.readouterr().out
    path = run_dir / "policy.safetensors"
    assert printed == f"wrote {path} and policy.json: member state as of round 1, mean return 2.0 (reported)\n"
    policy = agents.load_policy(path)
    policy.step(np.zeros((3, 17)), policy.initial_state(3), reward=np.zeros(3))
    argv = ["export", str(run_dir), "--member", "meta", "--round", "1", "--out", str(run_dir / "m.safetensors")]
    assert main([*argv, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["path"] == str(run_dir / "m.safetensors")
    assert written["card"]["policy"]["member"] == "meta"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--member", "oracle"], "unknown member 'oracle'; members of this run: coordinator, environment"),
        (["--round", "7"], "has no round 7; rounds that are kept: 1"),
        (["--round", "-1"], "'-1' is not a whole number from 0"),
        (["--format", "pickle"], "unknown format 'pickle'; known: safetensors, pt2, onnx"),
        (["--format", "onnx", "--out", "p.pt2"], "got the file name 'p.pt2', expected one that ends in '.onnx'"),
        (["--out", "p.pkl"], "got the file name 'p.pkl', expected one that ends in '.safetensors'"),
        (["--out", "none/p.safetensors"], "cannot write none/p.safetensors: No such file or directory"),
        (["--out", "none/p.pt2"], "cannot write none/p.pt2: No such file or directory"),
    ],
)
def test_an_export_that_cannot_be_is_refused_in_one_line(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert message in refused_command(capsys, str(run_dir), *argv)
    assert list(Path.cwd().iterdir()) == []


def refused_command(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    code = main(["export", *argv])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("swarm: error: ")
    return lines[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: flip(CheckpointStore(run).path(1, "member-state.safetensors")), "is damaged"),
        (lambda run: (run / "evaluation.json").write_text("{"), "evaluation.json is damaged"),
        (lambda run: (run / "environment.json").write_text("[]"), "environment.json is damaged"),
        (lambda run: (run / "scenario.toml").write_text("="), "scenario.toml cannot be used"),
        (lambda run: (run / "experience" / "nominal" / "reward.bin").unlink(), "reward.bin"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], message: str
) -> None:
    damage(run_dir)
    assert message in refused_command(capsys, str(run_dir), "--round", "1")
    assert not (run_dir / "policy.safetensors").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_way_to_get_it(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):  # None makes its import fail; the others need not be installed
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    line = refused_command(capsys, str(run_dir), "--format", "onnx")
    assert f"writing ONNX needs the package '{package}'" in line
    assert "pip install -e '.[export]'" in line
