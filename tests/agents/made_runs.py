"""Run directories for tests that need no training: one committed round of new-born members and random rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from agents.config import TeamConfig
from agents.ledger import Ledger, Standing
from agents.pinned import ENVIRONMENT_FILE, fresh_files
from agents.rollouts import TASK_SIZE
from scenarios.scenario import Scenario, load_preset
from swarm.checkpoint import CheckpointStore
from swarm.environment import EnvironmentSpec
from swarm.experience import ExperienceWriter, StreamSpec

ROWS = 40
HALF_CHEETAH = EnvironmentSpec(
    env_id="HalfCheetah-v4",
    observation_size=17,
    action_size=6,
    action_low=(-1.0,) * 6,
    action_high=(1.0,) * 6,
    max_episode_steps=1000,
    timestep_s=0.05,
)
UNEVEN = replace(
    HALF_CHEETAH, action_low=(-1.0, -0.4, 0.0, -2.0, -1.0, 5.0), action_high=(1.0, 0.4, 1.0, 3.0, 2.0, 9.0)
)


def make_run(
    path: Path,
    spec: EnvironmentSpec = HALF_CHEETAH,
    *,
    reported: str = "state",
    snapshot: Mapping[str, NDArray[np.generic]] | None = None,
    overrides: Sequence[str] = (),
) -> TeamConfig:
    """Write a run directory whose round 1 is committed and whose reported member is ``reported``; return its team.

    Args:
        snapshot: where the environments stand; ``None``: no file says so.
        overrides: of the scenario's settings.
    """
    scenario: Scenario = load_preset("smoke").with_task(spec.env_id).with_overrides(overrides)
    team = scenario.team
    path.mkdir(parents=True)
    (path / "scenario.toml").write_text(scenario.to_toml())
    _write_rows(path, spec)
    store = CheckpointStore(path)
    files = {name: store.stage(1, name, data) for name, data in fresh_files(team, spec).items()}
    if snapshot is not None:
        files[ENVIRONMENT_FILE] = store.stage(1, ENVIRONMENT_FILE, save(dict(snapshot)))
    ledger = Ledger(
        env_steps=8 * ROWS, best="meta", standings={"meta": Standing(mean_return=7.5, distance_m=1.0, round_index=1)}
    )
    state = {"ledger": ledger.to_json(), "summary": {}, "environment": json.loads(json.dumps(asdict(spec)))}
    store.commit(1, files, rows={"nominal": ROWS, "shifted": 0}, ledger=state)
    after = {"member": reported, "version": 1, "returns": [1.0, 3.0], "distances": [0.5, 0.7], "lengths": [100, 100]}
    (path / "evaluation.json").write_text(json.dumps({"after": after}))
    return team


def _write_rows(path: Path, spec: EnvironmentSpec) -> None:
    rng = np.random.default_rng(3)
    stream = StreamSpec(
        name="nominal",
        observation_size=spec.observation_size,
        action_size=spec.action_size,
        task_size=TASK_SIZE,
        capacity_steps=ROWS,
    )
    columns = {name: np.zeros((ROWS, *shape), dtype) for name, (shape, dtype) in stream.columns().items()}
    for name in ("observation", "next_observation"):
        columns[name] = (3 * rng.standard_normal(columns[name].shape) + 1).astype(np.float32)
    columns["observation"][..., 0] = 2.0  # a column without variance, which the normaliser drops
    columns["reward"] = rng.standard_normal(columns["reward"].shape).astype(np.float32)
    columns["valid"][:] = True
    with ExperienceWriter(path / "experience", stream) as writer:
        writer.write(0, columns)
        writer.flush()


def tampered_card(path: Path, *keys: str, value: object) -> None:
    """Write ``value`` into the card of the policy ``path`` at the place that ``keys`` name; ``...`` removes it."""
    card_path = path.with_suffix(".json")
    card = json.loads(card_path.read_text())
    table = card
    for key in keys[:-1]:
        table = table[key]
    if value is ...:
        del table[keys[-1]]
    else:
        table[keys[-1]] = value
    card_path.write_text(json.dumps(card))


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
