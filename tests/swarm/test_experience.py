from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.errors import CheckpointError, ConfigError, InvalidTransition
from swarm.experience import ExperienceReader, ExperienceWriter, StreamSpec

SPEC = StreamSpec(name="nominal", observation_size=3, action_size=2, task_size=4, capacity_steps=50)


def columns(num_steps: int, seed: int = 0, spec: StreamSpec = SPEC) -> dict[str, NDArray[np.generic]]:
    draw = np.random.default_rng(seed)
    return {
        name: (draw.random((num_steps, *shape)) * 9).astype(dtype) for name, (shape, dtype) in spec.columns().items()
    }


def assert_equal(found: dict[str, NDArray[np.generic]], expected: dict[str, NDArray[np.generic]]) -> None:
    assert set(found) == set(expected)
    for name, column in expected.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)


def test_written_steps_are_read_back_exactly(tmp_path: Path) -> None:
    with ExperienceWriter(tmp_path, SPEC) as writer:
        assert writer.write(0, columns(10, seed=1)) == 10
        assert writer.write(10, columns(5, seed=2)) == 15
        writer.flush()
    reader = ExperienceReader(tmp_path / "nominal")
    assert reader.spec == SPEC
    assert_equal(reader.columns(10), columns(10, seed=1))
    assert_equal({k: v[10:] for k, v in reader.columns(15).items()}, columns(5, seed=2))


def test_reader_sees_later_writes_of_another_process_without_reopening(tmp_path: Path) -> None:
    with ExperienceWriter(tmp_path, SPEC) as writer:
        reader = ExperienceReader(tmp_path / "nominal")
        writer.write(0, columns(3))
        assert_equal(reader.columns(3), columns(3))


def test_reader_sees_only_the_steps_it_asks_for_and_cannot_write(tmp_path: Path) -> None:
    with ExperienceWriter(tmp_path, SPEC) as writer:
        writer.write(0, columns(10))
    found = ExperienceReader(tmp_path / "nominal").columns(4)
    assert {len(column) for column in found.values()} == {4}
    with pytest.raises(ValueError, match="read-only"):
        found["reward"][0, 0] = 1.0


def test_steps_of_a_lost_round_are_overwritten_when_it_is_redone(tmp_path: Path) -> None:
    with ExperienceWriter(tmp_path, SPEC) as writer:
        writer.write(0, columns(4, seed=1))
        writer.write(4, columns(9, seed=2))
    with ExperienceWriter.open(tmp_path / "nominal") as writer:
        writer.write(4, columns(6, seed=3))
    found = ExperienceReader(tmp_path / "nominal").columns(10)
    assert_equal({k: v[:4] for k, v in found.items()}, columns(4, seed=1))
    assert_equal({k: v[4:] for k, v in found.items()}, columns(6, seed=3))


def test_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with ExperienceWriter(tmp_path, SPEC), pytest.raises(ConfigError, match="is being written by another process"):
        ExperienceWriter(tmp_path, SPEC)
    ExperienceWriter(tmp_path, SPEC).close()


def test_lock_falls_with_its_process_and_its_rows_stay(tmp_path: Path) -> None:
    script = (
        "import os, sys; import numpy as np; from pathlib import Path\n"
        "from swarm.experience import ExperienceWriter\n"
        "writer = ExperienceWriter.open(Path(sys.argv[1]))\n"
        "c = {n: np.ones((2, *s), d) for n, (s, d) in writer.spec.columns().items()}\n"
        "writer.write(0, c); os.kill(os.getpid(), 9)"
    )
    ExperienceWriter(tmp_path, SPEC).close()
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "nominal")], check=False)
    assert ended.returncode == -9
    with ExperienceWriter(tmp_path, SPEC):
        found = ExperienceReader(tmp_path / "nominal").columns(2)
    assert all((column == 1).all() for column in found.values())


def test_files_are_sparse(tmp_path: Path) -> None:
    spec = replace(SPEC, capacity_steps=100_000)
    ExperienceWriter(tmp_path, spec).close()
    stat = (tmp_path / "nominal" / "observation.bin").stat()
    assert stat.st_size == 100_000 * 8 * 3 * 4
    assert stat.st_blocks * 512 < 100_000


def test_stream_without_task_parameters_has_an_empty_column(tmp_path: Path) -> None:
    spec = replace(SPEC, task_size=0)
    with ExperienceWriter(tmp_path, spec) as writer:
        writer.write(0, columns(2, spec=spec))
        writer.flush()
    assert ExperienceReader(tmp_path / "nominal").columns(2)["task"].shape == (2, 8, 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"action": np.zeros((5, 8, 3), np.float32)}, r"column 'action': got \(5, 8, 3\) float32"),
        ({"reward": np.zeros((5, 8), np.float64)}, r"column 'reward': got \(5, 8\) float64"),
        ({"valid": np.zeros((4, 8), np.bool_)}, r"column 'valid': got \(4, 8\) bool"),
        ({"extra": np.zeros((5, 8), np.bool_)}, r"unknown columns \['extra'\]"),
    ],
)
def test_columns_that_do_not_fit_are_refused_whole(
    tmp_path: Path, change: dict[str, NDArray[np.generic]], told: str
) -> None:
    with ExperienceWriter(tmp_path, SPEC) as writer:
        with pytest.raises(InvalidTransition, match=told):
            writer.write(0, {**columns(5), **change})
        assert not ExperienceReader(tmp_path / "nominal").columns(5)["observation"].any()


def test_missing_column_is_named(tmp_path: Path) -> None:
    incomplete = columns(5)
    del incomplete["member"]
    with ExperienceWriter(tmp_path, SPEC) as writer, pytest.raises(InvalidTransition, match="'member'"):
        writer.write(0, incomplete)


@pytest.mark.parametrize("first_step", [-1, 46, 1_000])
def test_steps_outside_the_capacity_are_refused(tmp_path: Path, first_step: int) -> None:
    with ExperienceWriter(tmp_path, SPEC) as writer, pytest.raises(InvalidTransition, match="within 0 to 50"):
        writer.write(first_step, columns(5))


def test_more_steps_than_there_are_cannot_be_read(tmp_path: Path) -> None:
    ExperienceWriter(tmp_path, SPEC).close()
    with pytest.raises(InvalidTransition, match="num_steps=51"):
        ExperienceReader(tmp_path / "nominal").columns(51)


def test_stream_of_other_sizes_is_not_overwritten(tmp_path: Path) -> None:
    ExperienceWriter(tmp_path, SPEC).close()
    with pytest.raises(ConfigError, match="use a new run directory"):
        ExperienceWriter(tmp_path, replace(SPEC, action_size=6))


def test_closed_writer_refuses_to_write(tmp_path: Path) -> None:
    writer = ExperienceWriter(tmp_path, SPEC)
    writer.close()
    writer.close()
    with pytest.raises(InvalidTransition, match="is closed"):
        writer.write(0, columns(1))


@pytest.mark.parametrize("header", ["", "{", "[]", '{"format": 2}', '{"format": 1, "name": "nominal"}'])
def test_damaged_header_is_named(tmp_path: Path, header: str) -> None:
    ExperienceWriter(tmp_path, SPEC).close()
    (tmp_path / "nominal" / "header.json").write_text(header)
    with pytest.raises(CheckpointError, match=r"header\.json"):
        ExperienceReader(tmp_path / "nominal")


def test_truncated_column_is_named(tmp_path: Path) -> None:
    ExperienceWriter(tmp_path, SPEC).close()
    (tmp_path / "nominal" / "reward.bin").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"reward\.bin is damaged: got 100 bytes"):
        ExperienceReader(tmp_path / "nominal")


def test_folder_that_is_no_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this an experience stream"):
        ExperienceReader(tmp_path)
