from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agents
from agents.config import TeamConfig
from agents.export import Exported, export_policy, load_team
from agents.exported import ExportedPolicy
from agents.pinned import Pinned
from agents.rollout_policy import build_policy
from agents.torch_policy import TOLERANCE, largest_difference, onnx_step, torch_step
from swarm.environment import EnvironmentSpec
from swarm.errors import ConfigError
from swarm.policy import BLOCK_SIZE, PolicyInput
from tests.agents.made_runs import HALF_CHEETAH, ROWS, UNEVEN, make_run, sha256_of

STEPS = 50


@pytest.fixture(scope="module", params=[HALF_CHEETAH, UNEVEN], ids=["even", "uneven"])
def spec(request: pytest.FixtureRequest) -> EnvironmentSpec:
    return request.param


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, spec: EnvironmentSpec) -> Path:
    path = tmp_path_factory.mktemp("made") / "run"
    make_run(path, spec)
    return path


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Exported:
    return export_policy(run_dir, run_dir / "policy.safetensors")


@pytest.fixture(scope="module")
def policy(exported: Exported) -> ExportedPolicy:
    return agents.load_policy(exported.path)


def observations(spec: EnvironmentSpec, num_envs: int) -> np.ndarray:
    drawn = 3 * np.random.default_rng(1).standard_normal((STEPS, num_envs, spec.observation_size)) + 1
    return drawn.astype(np.float32)


def test_exported_policy_acts_as_the_run_does_to_the_last_bit(
    run_dir: Path, policy: ExportedPolicy, spec: EnvironmentSpec
) -> None:
    pinned = Pinned(run_dir, make_team(run_dir), 1)
    acting = build_policy(
        pinned.seat_weights(("state",) * BLOCK_SIZE, deployed=True), {"seats": ["state"] * BLOCK_SIZE}
    )
    rng = np.random.default_rng(0)
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    ours, theirs = policy.initial_state(BLOCK_SIZE), np.zeros((BLOCK_SIZE, acting.state_size), np.float32)
    for observation in observations(spec, BLOCK_SIZE):
        reward, reset = rng.standard_normal(BLOCK_SIZE).astype(np.float32), rng.random(BLOCK_SIZE) < 0.1
        noise = np.zeros((BLOCK_SIZE, spec.action_size), np.float32)
        expected, theirs = acting.act(
            PolicyInput(reset=reset, observation=observation, reward=reward, state=theirs, noise=noise)
        )
        action, ours = policy.step(observation, ours, reward=reward, reset=reset)
        scaled = (low + (expected.astype(np.float64) + 1) * 0.5 * (high - low)).astype(np.float32)
        np.testing.assert_array_equal(action, expected if spec is HALF_CHEETAH else scaled)
        np.testing.assert_array_equal(ours, theirs)


def make_team(run_dir: Path) -> TeamConfig:
    return load_team(run_dir)


@pytest.mark.parametrize("num_envs", [1, 5, 20])
def test_each_environment_gets_the_same_bits_whatever_their_number(
    policy: ExportedPolicy, spec: EnvironmentSpec, num_envs: int
) -> None:
    many, few = policy.initial_state(24), policy.initial_state(num_envs)
    for observation in observations(spec, 24):
        reward = observation[:, 1]
        expected, many = policy.step(observation, many, reward=reward)
        action, few = policy.step(observation[:num_envs], few, reward=reward[:num_envs])
        np.testing.assert_array_equal(action, expected[:num_envs])
        np.testing.assert_array_equal(few, many[:num_envs])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.dtype(">f4"), object])
def test_a_state_of_another_type_is_taken_by_its_values(
    policy: ExportedPolicy, spec: EnvironmentSpec, dtype: Any
) -> None:
    observation = np.ones((3, spec.observation_size))
    state = np.full((3, policy.card.state_size), 0.25)
    expected = policy.step(observation, state.astype(np.float32), reward=0.0)
    for found, wanted in zip(policy.step(observation, state.astype(dtype), reward=0.0), expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)


def test_a_single_observation_gives_a_single_action(policy: ExportedPolicy, spec: EnvironmentSpec) -> None:
    observation = observations(spec, 1)[0]
    batched, _ = policy.step(observation, policy.initial_state(), reward=0.0)
    action, _ = policy.step(observation[0].astype(np.float64), policy.initial_state(), reward=0.0)
    assert action.shape == (spec.action_size,)
    np.testing.assert_array_equal(action, batched[0])


def test_actions_stay_within_the_limits_of_the_environment_and_reach_for_them(
    policy: ExportedPolicy, spec: EnvironmentSpec
) -> None:
    drawn = 1e3 * observations(spec, 24)
    actions = np.concatenate([policy.step(rows, policy.initial_state(24), reward=0.0)[0] for rows in drawn])
    low, high = (np.array(limit, np.float32) for limit in (spec.action_low, spec.action_high))
    assert (actions >= low).all()
    assert (actions <= high).all()
    assert ((actions.max(0) - actions.min(0)) > 0.05 * (high - low)).all()


def test_a_reset_is_the_initial_state(policy: ExportedPolicy, spec: EnvironmentSpec) -> None:
    first, second, third = observations(spec, 4)[:3]
    _, state = policy.step(first, policy.initial_state(4), reward=0.0)
    _, state = policy.step(second, state, reward=1.0)
    again = policy.step(third, state, reward=5.0, reset=np.array([True, False, True, False]))
    fresh = policy.step(third, policy.initial_state(4), reward=0.0)
    went_on = policy.step(third, state, reward=5.0)
    for one, new, old in zip(again, fresh, went_on, strict=True):
        np.testing.assert_array_equal(one[[0, 2]], new[[0, 2]])
        np.testing.assert_array_equal(one[[1, 3]], old[[1, 3]])
        assert (one[0] != old[0]).any()


def test_torch_module_equals_the_policy(policy: ExportedPolicy) -> None:
    step = torch_step(policy.as_torch())
    assert largest_difference(policy, step, num_steps=STEPS, num_envs=7) < TOLERANCE


def test_a_wrong_module_is_seen_to_differ(policy: ExportedPolicy) -> None:
    module = policy.as_torch()
    module.enc_theta.add_(0.05)
    assert largest_difference(policy, torch_step(module), num_steps=STEPS, num_envs=7) > 100 * TOLERANCE


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_policies_with_other_encoders_are_exported_too(tmp_path: Path, encoder: str) -> None:
    make_run(tmp_path / "run", UNEVEN, overrides=[f"member.encoder={encoder}"])
    written = export_policy(tmp_path / "run", tmp_path / "p.safetensors")
    assert written.card["policy"]["encoder"] == encoder
    policy = agents.load_policy(written.path)
    assert largest_difference(policy, torch_step(policy.as_torch()), num_steps=STEPS, num_envs=7) < TOLERANCE
    assert policy.export_pt2(tmp_path / "p.pt2") < TOLERANCE


@pytest.mark.parametrize("num_envs", [1, 9])
def test_torch_export_program_equals_the_policy(exported_pt2: Path, even_policy: ExportedPolicy, num_envs: int) -> None:
    step = torch_step(torch.export.load(str(exported_pt2)).module())
    assert largest_difference(even_policy, step, num_steps=STEPS, num_envs=num_envs) < TOLERANCE


@pytest.mark.parametrize("num_envs", [1, 9])
def test_onnx_model_equals_the_policy(exported_onnx: Path, uneven_policy: ExportedPolicy, num_envs: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    step = onnx_step(onnxruntime.InferenceSession(str(exported_onnx), providers=["CPUExecutionProvider"]))
    assert largest_difference(uneven_policy, step, num_steps=STEPS, num_envs=num_envs) < TOLERANCE


@pytest.fixture(scope="module")
def even_policy(tmp_path_factory: pytest.TempPathFactory) -> ExportedPolicy:
    return one_policy(tmp_path_factory.mktemp("even"), HALF_CHEETAH)


@pytest.fixture(scope="module")
def uneven_policy(tmp_path_factory: pytest.TempPathFactory) -> ExportedPolicy:
    return one_policy(tmp_path_factory.mktemp("uneven"), UNEVEN)


@pytest.fixture(scope="module")
def exported_pt2(tmp_path_factory: pytest.TempPathFactory, even_policy: ExportedPolicy) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "policy.pt2"
    assert even_policy.export_pt2(path) < TOLERANCE
    return path


@pytest.fixture(scope="module")
def exported_onnx(tmp_path_factory: pytest.TempPathFactory, uneven_policy: ExportedPolicy) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    path = tmp_path_factory.mktemp("onnx") / "policy.onnx"
    assert uneven_policy.export_onnx(path) < TOLERANCE
    return path


def one_policy(folder: Path, spec: EnvironmentSpec) -> ExportedPolicy:
    make_run(folder / "run", spec)
    return agents.load_policy(export_policy(folder / "run", folder / "p.safetensors").path)


def test_card_says_what_the_policy_is(exported: Exported, spec: EnvironmentSpec) -> None:
    card = json.loads(exported.card_path.read_text())
    assert card == exported.card
    assert card["environment"]["id"] == spec.env_id
    assert card["environment"]["action_high"] == list(spec.action_high)
    assert card["policy"]["member"] == "state"
    assert card["policy"]["state_size"] == 2 * 32 + 6
    assert card["training"] | {"round": 1, "env_steps": 8 * ROWS, "seed": 0} == card["training"]
    assert card["evaluation"]["episodes"] == "reported"
    assert card["evaluation"]["mean_return"] == 2.0
    assert card["evaluation"]["num_episodes"] == 2
    assert card["weights"]["sha256"] == sha256_of(exported.path)
    assert card["weights"]["bytes"] == exported.path.stat().st_size
    assert card["licence"] == "MIT"
    assert 'agents.load_policy("policy.safetensors")' in card["usage"][1]


def test_another_member_is_told_by_its_selection_episodes_or_as_not_evaluated(run_dir: Path, tmp_path: Path) -> None:
    meta = export_policy(run_dir, tmp_path / "m.safetensors", member="meta")
    assert meta.card["evaluation"] == {"episodes": "selection", "round": 1, "mean_return": 7.5, "distance_m": 1.0}
    adaptation = export_policy(run_dir, tmp_path / "a.safetensors", member="adaptation", round_index=1)
    assert adaptation.card["evaluation"] is None
    assert agents.load_policy(meta.path).card.sha256 != agents.load_policy(adaptation.path).card.sha256


def test_card_says_over_what_the_policy_remembers(exported: Exported, tmp_path: Path) -> None:
    assert exported.card["policy"]["remembers"] == "an episode"
    make_run(tmp_path / "run")
    scenario = (tmp_path / "run" / "scenario.toml").read_text()
    (tmp_path / "run" / "scenario.toml").write_text(scenario.replace('suite = ""', 'suite = "halfcheetah-vel"'))
    card = export_policy(tmp_path / "run", tmp_path / "p.safetensors").card
    assert card["policy"]["remembers"] == "a trial of 5 episodes"
    assert (card["environment"]["suite"], card["environment"]["max_episode_steps"]) == ("halfcheetah-vel", 200)


def test_without_reported_episodes_the_best_member_so_far_is_written(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    card = export_policy(tmp_path / "run", tmp_path / "p.safetensors").card
    assert card["policy"]["member"] == "meta"


def test_a_pinned_round_can_be_exported(run_dir: Path, exported: Exported, tmp_path: Path) -> None:
    pinned = Pinned(run_dir, make_team(run_dir), 1)
    assert export_policy(pinned, tmp_path / "policy.safetensors").card["weights"] == exported.card["weights"]
    with pytest.raises(ConfigError, match="got round 2 and a pinned round 1"):
        export_policy(pinned, tmp_path / "policy.safetensors", round_index=2)


def test_exporting_again_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    for member in ("meta", "state"):
        export_policy(tmp_path / "run", tmp_path / "out" / "p.safetensors", member=member)
    assert agents.load_policy(tmp_path / "out" / "p.safetensors").card.content["policy"]["member"] == "state"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p.json", "p.safetensors"]


def test_other_forms_have_cards_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    first = export_policy(tmp_path / "run", tmp_path / "p.safetensors")
    second = export_policy(tmp_path / "run", tmp_path / "p.pt2", form="pt2")
    assert second.card_path.name == "p.pt2.json"
    assert second.card["weights"]["sha256"] == sha256_of(second.path)
    assert second.card["largest_difference"] < TOLERANCE
    agents.load_policy(first.path)


def test_loading_and_acting_imports_no_torch(exported: Exported) -> None:
    code = (
        "import sys, agents\n"
        "policy = agents.load_policy(sys.argv[1])\n"
        "policy.step([[0.0] * 17] * 3, policy.initial_state(3), reward=0.0)\n"
        "sys.exit('torch' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, str(exported.path)]
    assert subprocess.run(argv, check=False, timeout=60).returncode == 0
