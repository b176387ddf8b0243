"""The command ``swarm bench``: what it lists, refuses and imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios import bench
from swarm.errors import ConfigError


def test_programs_that_measure_are_listed_and_what_they_share_is_not(tmp_path: Path) -> None:
    (tmp_path / "speed.py").write_text('"""A benchmark."""\n\ndef measure(threads):\n    return {}\n')
    (tmp_path / "timing.py").write_text('"""Shared."""\n')
    assert bench.names(tmp_path) == ("speed",)
    assert {"bridge", "ssm", "update", "maml"} <= set(bench.names())


def test_a_benchmark_may_name_its_own_numbers_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "speed.py"
    path.write_text('"""A benchmark."""\nOTHER, THREADS_MAX = 1, 4\n')
    assert bench.numbers_of_threads(path, [1, 2]) == [1, 2]
    path.write_text('"""A benchmark."""\nTHREADS = (1,)\n')
    assert bench.numbers_of_threads(path, [1, 2]) == (1,)


def test_an_unknown_benchmark_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown benchmark 'nonsense'; known: .*update"):
        bench.run("nonsense", [1])
