from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scenarios import doctor


def test_each_finding_that_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path / "runs")
    checks = {finding.check for finding in findings}
    assert {"python", "torch", "mujoco", "cores", "threads", "memory", "disk", "ipc", "ports", "rendering"} <= checks
    for finding in findings:
        assert bool(finding.advice) == (finding.level != "ok"), finding


def test_wrong_version_and_missing_package_fail() -> None:
    old = doctor._check_package(Requirement("numpy>=99"))
    missing = doctor._check_package(Requirement("no-such-package-here>=1"))
    assert (old.level, missing.level) == ("fail", "fail")
    assert missing.found == "not installed"
    assert "pip install 'numpy>=99'" in old.advice


def test_thread_setting_that_slows_embedding_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    (finding,) = doctor.check_threads()
    assert finding.level == "warn"
    assert "export OMP_NUM_THREADS=1" in finding.advice


def test_temporary_folder_with_a_long_path_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    (finding,) = doctor.check_ipc()
    assert finding.level == "fail"
    assert "TMPDIR" in finding.advice
