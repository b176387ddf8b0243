"""What only the user can mend ends a run at once, in one line and with exit code 2, wherever it was found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.agents.made_runs import make_run


def test_a_mistake_found_by_an_agent_in_another_process_is_not_tried_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    make_run(run_dir)
    (run_dir / "experience" / "nominal" / "reward.bin").write_bytes(b"short")
    argv = [sys.executable, "-m", "scenarios", "resume", str(run_dir), "--json"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout, ended.stderr
    outcome = json.loads(ended.stdout)
    assert (outcome["status"], outcome["user_error"], outcome["round_index"]) == ("failed", True, 1)
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("swarm: error: round 2 cannot be performed: ")
    assert "reward.bin is damaged: got 5 bytes" in line
    assert "was repeated" not in outcome["reason"]
