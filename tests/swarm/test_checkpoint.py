from __future__ import annotations

import os
import random
import resource
from pathlib import Path

import pytest

from swarm.checkpoint import CheckpointStore, Manifest, digest
from swarm.errors import CheckpointError, ConfigError, SwarmError

NAMES = ("member-a.bin", "member-b.bin", "world-all.bin", "environment.bin")


def content(round_index: int, name: str) -> bytes:
    return random.Random(f"{round_index} {name}").randbytes(300)


def commit(store: CheckpointStore, round_index: int, names: tuple[str, ...] = NAMES) -> Manifest:
    files = {name: store.stage(round_index, name, content(round_index, name)) for name in names}
    return store.commit(round_index, files, rows={"nominal": 25 * round_index}, ledger={"round": round_index})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def test_committed_round_is_found_with_its_files_rows_and_ledger(store: CheckpointStore) -> None:
    committed = commit(store, 1)
    manifest, skipped = store.latest()
    assert (manifest, skipped) == (committed, [])
    assert manifest is not None
    assert manifest.rows == {"nominal": 25}
    assert store.load_ledger(manifest) == {"round": 1}
    assert {name: store.path(1, name).read_bytes() for name in NAMES} == {name: content(1, name) for name in NAMES}


def test_run_directory_without_checkpoints_has_none(store: CheckpointStore) -> None:
    assert store.latest() == (None, [])


def test_staged_files_have_no_effect_before_the_commit(store: CheckpointStore) -> None:
    commit(store, 1)
    store.stage(2, "member-a.bin", b"new")
    manifest, _ = store.latest()
    assert manifest is not None
    assert manifest.round_index == 1
    assert store.staged_path(2, "member-a.bin").read_bytes() == b"new"


def test_files_that_were_not_staged_are_taken_over(store: CheckpointStore) -> None:
    commit(store, 1)
    manifest = commit(store, 2, ("member-a.bin",))
    assert set(manifest.files) == {*NAMES, "ledger.json"}
    assert store.path(2, "member-a.bin").read_bytes() == content(2, "member-a.bin")
    assert store.path(2, "member-b.bin").read_bytes() == content(1, "member-b.bin")


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_in_the_newest_checkpoint_leaves_the_one_before_whole(store: CheckpointStore, name: str) -> None:
    commit(store, 1)
    before = commit(store, 2, ("member-a.bin",))
    commit(store, 3, ("member-a.bin",))
    damaged = store.path(3, name)
    with damaged.open("r+b") as file:  # in place, as a bad block would: the inode stays
        file.seek(150)
        flipped = file.read(1)[0] ^ 1
        file.seek(150)
        file.write(bytes([flipped]))
    manifest, skipped = store.latest()
    assert manifest == before
    assert [row.path.name for row in skipped] == ["round-000003"]
    assert store.path(2, "member-b.bin").read_bytes() == content(1, "member-b.bin")


def test_three_are_kept_and_staging_is_emptied(store: CheckpointStore, tmp_path: Path) -> None:
    for round_index in range(6):
        commit(store, round_index, NAMES if round_index == 0 else ("member-a.bin",))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"round-00000{n}" for n in (3, 4, 5)]
    assert list((tmp_path / "staging").iterdir()) == []
    assert store.path(5, "world-all.bin").read_bytes() == content(0, "world-all.bin")


def test_the_round_before_the_newest_is_kept_even_if_one_is_asked_for(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for round_index in range(3):
        commit(store, round_index)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["round-000001", "round-000002"]


def test_staged_file_with_another_digest_is_not_committed(store: CheckpointStore) -> None:
    commit(store, 1)
    files = {"member-a.bin": store.stage(2, "member-a.bin", b"new")}
    store.stage(2, "member-a.bin", b"other")
    with pytest.raises(CheckpointError, match=r"member-a\.bin has sha256 .*perform its task again"):
        store.commit(2, files, rows={}, ledger={})
    manifest, skipped = store.latest()
    assert manifest is not None
    assert (manifest.round_index, skipped) == (1, [])


def test_missing_staged_file_is_named(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match=r"member-a\.bin cannot be read"):
        store.commit(1, {"member-a.bin": "0" * 64}, rows={}, ledger={})


def test_round_can_be_committed_again(store: CheckpointStore) -> None:
    commit(store, 1)
    first = commit(store, 2)
    assert commit(store, 2) == first
    files = {"member-a.bin": store.stage(2, "member-a.bin", b"redone")}
    store.commit(2, files, rows={"nominal": 50}, ledger={})
    assert store.path(2, "member-a.bin").read_bytes() == b"redone"
    assert store.latest()[1] == []


def test_damaged_round_is_replaced_when_it_is_redone(store: CheckpointStore) -> None:
    commit(store, 1)
    commit(store, 2)
    store.path(2, "manifest.json").unlink()
    commit(store, 2)
    manifest, skipped = store.latest()
    assert manifest is not None
    assert (manifest.round_index, skipped) == (2, [])


def test_commit_that_died_half_way_leaves_no_trace(store: CheckpointStore, tmp_path: Path) -> None:
    commit(store, 1)
    building = tmp_path / "checkpoints" / ".building-round-000002"
    building.mkdir()
    (building / "member-a.bin").write_bytes(b"half")
    manifest, skipped = store.latest()
    assert manifest is not None
    assert (manifest.round_index, skipped) == (1, [])
    commit(store, 2)
    assert not building.exists()


def test_truncation_anywhere_is_skipped_and_named(store: CheckpointStore) -> None:
    commit(store, 1)
    commit(store, 2)
    draw = random.Random(0)
    paths = [store.path(2, name) for name in (*NAMES, "ledger.json", "manifest.json")]
    for _ in range(200):
        path = draw.choice(paths)
        assert_skipped(store, path, path.read_bytes()[: draw.randrange(path.stat().st_size)])


def test_single_flipped_bit_is_skipped_and_named(store: CheckpointStore) -> None:
    commit(store, 1)
    commit(store, 2)
    draw = random.Random(0)
    paths = [store.path(2, name) for name in (*NAMES, "ledger.json", "manifest.json", "manifest.json")]
    for _ in range(1_000):
        path = draw.choice(paths)
        damaged = bytearray(path.read_bytes())
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        assert_skipped(store, path, bytes(damaged))


def assert_skipped(store: CheckpointStore, path: Path, damaged: bytes) -> None:
    intact = path.read_bytes()
    path.write_bytes(damaged)
    manifest, skipped = store.latest()
    path.write_bytes(intact)
    assert manifest is not None
    assert manifest.round_index == 1
    (entry,) = skipped
    assert entry.path == path.parent
    assert str(path) in entry.reason
    assert "\n" not in entry.reason


def test_damaged_ledger_is_refused(store: CheckpointStore) -> None:
    manifest = commit(store, 1)
    store.path(1, "ledger.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"ledger\.json is damaged"):
        store.load_ledger(manifest)


def test_final_weights_digest_depends_on_members_and_worlds_alone(store: CheckpointStore) -> None:
    first = digest(commit(store, 1))
    files = {"environment.bin": store.stage(2, "environment.bin", b"other")}
    assert digest(store.commit(2, files, rows={}, ledger={"other": True})) == first
    files = {"member-b.bin": store.stage(3, "member-b.bin", b"other")}
    assert digest(store.commit(3, files, rows={}, ledger={})) != first


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\n", "a\0", "x" * 65])
def test_file_names_stay_inside_the_run_directory(store: CheckpointStore, name: str) -> None:
    with pytest.raises(ConfigError, match="got the file name"):
        store.stage(1, name, b"")
    with pytest.raises(ConfigError, match="got the file name"):
        store.path(1, name)


def test_reserved_names_are_refused(store: CheckpointStore) -> None:
    files = {"ledger.json": store.stage(1, "ledger.json", b"{}")}
    with pytest.raises(ConfigError, match="reserved"):
        store.commit(1, files, rows={}, ledger={})


def test_full_disk_keeps_the_last_committed_round(store: CheckpointStore, tmp_path: Path) -> None:
    commit(store, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(SwarmError, match=r"cannot write .*the last committed round is kept"):
            store.stage(2, "member-a.bin", b"x" * 5_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "staging" / "round-000002") == []
    assert store.latest()[0] is not None


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep=0"):
        CheckpointStore(tmp_path, keep=0)
