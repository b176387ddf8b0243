from __future__ import annotations

from collections.abc import Callable, Mapping
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
from agents.world_work import MAX_SKIPS, NextWorld, apply_to_world, combine_gradients, member_gradients
from swarm.checkpoint import CheckpointStore
from swarm.errors import SwarmError
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


def next_world(made: NextWorld) -> Arrays:
    return load(made.files[world_file(SHARED)])


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
    made = apply_to_world(pinned, SHARED, combined.arrays, 2)
    after, before = next_world(made), pinned.world(SHARED)
    for index, name in enumerate(pinned.team.members):
        span = before.sizes.span(index)
        moved = not np.array_equal(after["theta"][span], before.theta[span].numpy())
        assert moved == (name != "meta")
    assert not np.array_equal(after["theta"][: before.sizes.num_shared], before.theta[: before.sizes.num_shared])
    assert after["skips"].tolist() == [0, 0, 0, 0, 1, 0]
    assert made.troubles == ()


def test_the_next_world_is_the_same_bits_whoever_makes_it(tmp_path: Path, team: TeamConfig) -> None:
    made = []
    for _ in range(2):
        pinned = Pinned(tmp_path / "run", team, 1)
        made.append(apply_to_world(pinned, SHARED, combine_gradients(pinned, SHARED, published(pinned), 2).arrays, 2))
    assert made[0].files == made[1].files
    assert made[0].quality == made[1].quality


def commit(path: Path, team: TeamConfig, round_index: int, files: Mapping[str, bytes]) -> Pinned:
    """Commit another round in which only ``files`` differ from the round before."""
    store = CheckpointStore(path)
    manifest = store.read_manifest(round_index - 1)
    staged = {name: store.stage(round_index, name, data) for name, data in files.items()}
    store.commit(round_index, staged, rows=dict(manifest.rows), ledger=store.load_ledger(manifest))
    return Pinned(path, team, round_index)


def broken(world: WorldState, skips: int = 0) -> dict[str, bytes]:
    """A world model of NaN, as a file to commit."""
    spoilt = replace(world, theta=torch.full_like(world.theta, torch.nan), skips=np.full(6, skips))
    return {world_file(SHARED): save(world_to_arrays(spoilt))}


LEFT_OUT = "a step of the world model shared was left out: it led to what is not finite"
SET_BACK = "the world model shared was set back to round 1: 10 skips in a row"
NOTHING: Arrays = {"refused": np.ones(5, np.int64)}


def test_ten_skips_in_a_row_bring_back_the_newest_world_that_predicts(tmp_path: Path, pinned: Pinned) -> None:
    good = pinned.world(SHARED)
    before = commit(tmp_path / "run", pinned.team, 2, broken(good, MAX_SKIPS - 1))
    gradients = [replace(gradient, version=3) for gradient in published(before)]
    combined = combine_gradients(before, SHARED, gradients, 3)
    assert len(combined.skipped) == 5
    made = apply_to_world(before, SHARED, combined.arrays, 3)
    np.testing.assert_array_equal(next_world(made)["theta"], good.theta.numpy())
    assert next_world(made)["skips"].tolist() == [0] * 6
    assert made.troubles == (LEFT_OUT, SET_BACK)
    assert "error" not in made.quality
    assert "calibration_error" not in made.quality


def test_a_good_world_outlives_the_checkpoints_of_ten_rounds_of_skips(tmp_path: Path, pinned: Pinned) -> None:
    good, path = pinned.world(SHARED), tmp_path / "run"
    before = commit(path, pinned.team, 2, broken(good))
    for round_index in range(3, 3 + MAX_SKIPS):
        made = apply_to_world(before, SHARED, NOTHING, round_index)
        assert (SET_BACK in made.troubles) == (round_index == 2 + MAX_SKIPS)
        before = commit(path, pinned.team, round_index, made.files)
    assert CheckpointStore(path).rounds() == [10, 11, 12]
    assert made.troubles == (LEFT_OUT, SET_BACK)
    assert torch.equal(before.world(SHARED).theta, good.theta)
    assert before.world(SHARED).skips.tolist() == [0] * 6


def test_where_no_world_is_good_the_tenth_skip_says_so(tmp_path: Path, pinned: Pinned) -> None:
    before = pinned
    for round_index in (2, 3, 4):
        before = commit(tmp_path / "run", pinned.team, round_index, broken(pinned.world(SHARED), MAX_SKIPS - 1))
    with pytest.raises(SwarmError, match=r"world model shared of round 4 .* start the run anew"):
        apply_to_world(before, SHARED, NOTHING, 5)


@pytest.mark.parametrize("place", ["prediction/shared", "prediction/head-2"])
@pytest.mark.parametrize("value", [np.nan, 1e30])
def test_a_step_to_what_is_not_finite_is_left_out_and_counted(pinned: Pinned, place: str, value: float) -> None:
    combined = combine_gradients(pinned, SHARED, published(pinned), 2).arrays
    spoilt = {**combined, place: np.full_like(combined[place], value)}
    made = apply_to_world(pinned, SHARED, spoilt, 2)
    np.testing.assert_array_equal(next_world(made)["theta"], pinned.world(SHARED).theta.numpy())
    assert next_world(made)["skips"].tolist() == [1, 0, 0, 0, 0, 0]
    assert made.troubles == (LEFT_OUT,)


def test_a_usable_step_ends_the_count_of_skips(tmp_path: Path, pinned: Pinned) -> None:
    skipping = commit(tmp_path / "run", pinned.team, 2, apply_to_world(pinned, SHARED, NOTHING, 2).files)
    assert skipping.world(SHARED).skips.tolist() == [1] * 6
    usable = combine_gradients(pinned, SHARED, published(pinned), 2).arrays
    assert next_world(apply_to_world(skipping, SHARED, usable, 3))["skips"].tolist() == [0] * 6


def test_one_skip_fewer_changes_nothing_but_the_count(tmp_path: Path, pinned: Pinned) -> None:
    good = pinned.world(SHARED)
    file = save(world_to_arrays(replace(good, skips=np.full(6, MAX_SKIPS - 2))))
    before = commit(tmp_path / "run", pinned.team, 2, {world_file(SHARED): file})
    made = apply_to_world(before, SHARED, NOTHING, 3)
    np.testing.assert_array_equal(next_world(made)["theta"], good.theta.numpy())
    assert next_world(made)["skips"].tolist() == [MAX_SKIPS - 1] * 6
    assert made.troubles == ()


def test_trust_is_measured_on_rows_of_environments_that_did_not_calibrate_it(pinned: Pinned) -> None:
    found = trust(pinned, SHARED)
    assert found["calibration_error"] < found["raw_calibration_error"]  # type: ignore[operator]
    assert len(found["reliability"]) == 8  # type: ignore[arg-type]
    assert 0 <= found["imagined_steps"] <= pinned.team.world.imagine_horizon  # type: ignore[operator]
