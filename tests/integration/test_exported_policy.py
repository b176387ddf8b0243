"""An exported policy in real physics: what the run evaluates, and what plain Gymnasium plays, is the same policy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import agents
from agents.export import export_policy, load_team
from agents.exported import ExportedPolicy
from agents.pinned import Pinned
from agents.rollouts import evaluation_blocks
from env_bridge.rollout import run_rollout
from env_bridge.vector_env import VectorEnv
from scenarios.examples.load_policy import play
from swarm.environment import EnvironmentSpec
from swarm.policy import BLOCK_SIZE
from tests.agents.made_runs import HALF_CHEETAH, make_run

HUMANOID = "Humanoid-v4"


def spec_of(env_id: str) -> EnvironmentSpec:
    env = VectorEnv(env_id, 1)
    try:
        return env.spec
    finally:
        env.close()


@pytest.mark.parametrize("env_id", [HALF_CHEETAH.env_id, HUMANOID])
def test_an_exported_policy_repeats_the_runs_episodes_to_the_last_bit(tmp_path: Path, env_id: str) -> None:
    spec = spec_of(env_id)
    make_run(tmp_path / "run", spec)
    pinned = Pinned(tmp_path / "run", load_team(tmp_path / "run"), 1)
    request = evaluation_blocks(pinned, "state", BLOCK_SIZE, None)[0]
    env = VectorEnv(env_id, BLOCK_SIZE, max_episode_steps=request.max_episode_steps)
    try:
        expected = run_rollout(request, env=env)
    finally:
        env.close()
    policy = agents.load_policy(export_policy(tmp_path / "run", tmp_path / "p.safetensors").path)
    found = replayed_returns(policy, request.seed, request.max_episode_steps)
    by_environment = {row.environment: row.total_reward for row in expected.episodes}
    assert found == [by_environment[e] for e in range(BLOCK_SIZE)]


def replayed_returns(policy: ExportedPolicy, seed: int, max_episode_steps: int | None) -> list[float]:
    """Play one episode in each environment of a block, as a program that knows nothing of rollouts would."""
    env = VectorEnv(policy.card.env_id, BLOCK_SIZE, max_episode_steps=max_episode_steps)
    env.seed([(seed, e) for e in range(BLOCK_SIZE)])
    observation, reward = env.reset(), np.zeros(BLOCK_SIZE)
    state, total, running = policy.initial_state(BLOCK_SIZE), np.zeros(BLOCK_SIZE), np.ones(BLOCK_SIZE, bool)
    try:
        while running.any():
            action, state = policy.step(observation, state, reward=reward)
            step = env.step(action, running)
            observation, reward = step.observation, np.where(running, step.reward, 0.0)
            total += reward
            running &= ~step.ended
    finally:
        env.close()
    return total.tolist()


def test_the_example_plays_an_episode_in_plain_gymnasium(tmp_path: Path) -> None:
    make_run(tmp_path / "run", spec_of("HalfCheetah-v5"))
    path = export_policy(tmp_path / "run", tmp_path / "p.safetensors").path
    argv = [sys.executable, "-m", "scenarios.examples.load_policy", str(path), "3"]
    played = subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True)
    assert re.fullmatch(r"HalfCheetah-v5: return -?\d+\.\d in 1000 steps\n", played.stdout)


def test_the_example_plays_no_policy_that_needs_the_rewards_of_a_task(tmp_path: Path) -> None:
    make_run(tmp_path / "run", spec_of("HalfCheetah-v5"))
    scenario = (tmp_path / "run" / "scenario.toml").read_text()
    (tmp_path / "run" / "scenario.toml").write_text(scenario.replace('suite = ""', 'suite = "halfcheetah-vel"'))
    path = export_policy(tmp_path / "run", tmp_path / "p.safetensors").path
    with pytest.raises(SystemExit, match="trained on the tasks of halfcheetah-vel"):
        play(path, seed=0)
