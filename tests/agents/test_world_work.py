from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from agents.config import TeamConfig
from agents.learning.world_state import WorldState, world_to_arrays
from agents.pinned import Pinned, world_file
from agents.plan import SHARED
from agents.world_quality import trust
from agents.world_work import MAX_SKIPS, apply_to_world, combine_gradients, member_gradients
from swarm.checkpoint import LEDGER, CheckpointStore
from swarm.messages import Arrays, Gradient
from tests.agents.made_runs import make_run


@pytest.fixture
def team(tmp_path: Path) -> TeamConfig:
    """A team with one committed round of random rows in ``tmp_path / 'run'``."""
    torch.set_num_threads(1)
    return make_run(tmp_path / "run")


@pytest.fixture
def pinned(tmp_path: Path, team: TeamConfig) -> Pinned:
    return Pinned(tmp_path / "run", team, 1)


def published(pinned: Pinned, change: Callable[[str, Arrays], Arrays] = lambda _, arrays: arrays) -> list[Gradient]:
    """The members' gradients of round 2; ``change`` may spoil some."""
    found = []
    for name in pinned.team.members:
        made = member_gradients(pinned, name, 2)
        arrays = change(name, made.arrays)
        found.append(Gradient(owner=name, version=2, kind="member", num_samples=made.num_samples, arrays=arrays))
    return found


def test_each_member_sends_gradients_of_the_encoder_and_of_its_own_head(pinned: Pinned) -> None:
    sizes, config = pinned.world(SHARED).sizes, pinned.team.world
    assert sizes.heads == len(pinned.team.members) == 5
    one, two = (member_gradients(pinned, name, 2).arrays["prediction"] for name in pinned.team.members[:2])
    assert one.shape == (config.gradients_per_round, sizes.num_part)
    assert not np.array_equal(one, two)


def test_a_refused_sender_leaves_only_its_own_head_where_it_was(pinned: Pinned) -> None:
    def spoil(name: str, arrays: Arrays) -> Arrays:
        return {kind: np.full_like(array, np.nan) if name == "meta" else array for kind, array in arrays.items()}

    combined = combine_gradients(pinned, SHARED, published(pinned, spoil), 2)
    assert combined.skipped == ("meta:prediction:not-finite",)
    data, _, quality = apply_to_world(pinned, SHARED, combined.arrays, 2)
    after, before = load(data), pinned.world(SHARED)
    for index, name in enumerate(pinned.team.members):
        span = before.sizes.span(index)
        moved = not np.array_equal(after["theta"][span], before.theta[span].numpy())
        assert moved == (name != "meta")
    assert not np.array_equal(after["theta"][: before.sizes.num_shared], before.theta[: before.sizes.num_shared])
    assert after["skips"].tolist() == [0, 0, 0, 0, 1, 0]
    assert "rolled_back_to" not in quality


def test_the_next_world_is_the_same_bits_whoever_makes_it(tmp_path: Path, team: TeamConfig) -> None:
    made = []
    for _ in range(2):
        pinned = Pinned(tmp_path / "run", team, 1)
        made.append(apply_to_world(pinned, SHARED, combine_gradients(pinned, SHARED, published(pinned), 2).arrays, 2))
    assert made[0][0] == made[1][0]
    assert made[0][2] == made[1][2]


def commit_world(path: Path, pinned: Pinned, round_index: int, world: WorldState) -> None:
    """Commit another round that differs from the pinned one only in its world model."""
    store = CheckpointStore(path)
    manifest = store.read_manifest(pinned.base)
    files = {
        name: store.stage(round_index, name, store.path(pinned.base, name).read_bytes())
        for name in manifest.files
        if name not in (world_file(SHARED), LEDGER)
    }
    files[world_file(SHARED)] = store.stage(round_index, world_file(SHARED), save(world_to_arrays(world)))
    store.commit(round_index, files, rows=dict(manifest.rows), ledger=store.load_ledger(manifest))


def test_ten_skips_in_a_row_bring_back_the_newest_world_that_predicts(tmp_path: Path, pinned: Pinned) -> None:
    good = pinned.world(SHARED)
    counts = np.full(6, MAX_SKIPS - 1)
    commit_world(tmp_path / "run", pinned, 2, replace(good, theta=torch.full_like(good.theta, torch.nan), skips=counts))
    broken = Pinned(tmp_path / "run", pinned.team, 2)
    gradients = [replace(gradient, version=3) for gradient in published(broken)]
    combined = combine_gradients(broken, SHARED, gradients, 3)
    assert len(combined.skipped) == 5
    data, _, quality = apply_to_world(broken, SHARED, combined.arrays, 3)
    after = load(data)
    np.testing.assert_array_equal(after["theta"], good.theta.numpy())
    assert after["skips"].tolist() == [0] * 6
    assert quality["rolled_back_to"] == 1
    assert "error" not in quality
    assert "calibration_error" not in quality


def test_one_skip_fewer_changes_nothing_but_the_count(tmp_path: Path, pinned: Pinned) -> None:
    good = pinned.world(SHARED)
    commit_world(tmp_path / "run", pinned, 2, replace(good, skips=np.full(6, MAX_SKIPS - 2)))
    before = Pinned(tmp_path / "run", pinned.team, 2)
    nothing: Arrays = {"refused": np.ones(5, np.int64)}
    data, _, quality = apply_to_world(before, SHARED, nothing, 3)
    np.testing.assert_array_equal(load(data)["theta"], good.theta.numpy())
    assert load(data)["skips"].tolist() == [MAX_SKIPS - 1] * 6
    assert "rolled_back_to" not in quality


def test_trust_is_measured_on_rows_of_environments_that_did_not_calibrate_it(pinned: Pinned) -> None:
    found = trust(pinned, SHARED)
    assert found["calibration_error"] < found["raw_calibration_error"]  # type: ignore[operator]
    assert len(found["reliability"]) == 8  # type: ignore[arg-type]
    assert 0 <= found["imagined_steps"] <= pinned.team.world.imagine_horizon  # type: ignore[operator]
