from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from scenarios.report import print_summary, sheets, write_report
from scenarios.run_directory import RunDirectory
from scenarios.run_records import read_history
from scenarios.scenario import load_preset
from swarm.errors import CheckpointError

WriteRun = Callable[..., RunDirectory]
PNG = b"\x89PNG\r\n\x1a\n"


def test_report_of_a_full_run_holds_tables_plots_incidents_and_commands(write_run: WriteRun) -> None:
    run = write_run(100)
    write_report(run)
    text = run.report_file.read_text(encoding="utf-8")
    for name in ("learning", "allocation", "bids", "world", "calibration", "trust", "speed"):
        assert f"({name}.png)" in text
        assert (run.path / f"{name}.png").read_bytes().startswith(PNG)
    assert "| before | meta | 10 | -55.0 ± 30.3 |" in text
    assert "| after | meta | 10 | 1545.0 ± 30.3 |" in text
    assert "- bridge exited: killed by signal 9" in text
    assert "- bridge restarted: attempt 1" in text
    assert "- 2 inputs that were no messages were rejected (truncated)" in text
    assert f"swarm resume {run.path}" in text
    assert f"swarm evaluate {run.path}" in text
    assert "The budget is spent. 20000 of 20000 environment steps" in text


def test_report_of_a_run_that_was_interrupted_in_its_first_round_still_appears(write_run: WriteRun) -> None:
    for rounds in (0, 1):
        run = write_run(rounds, evaluated=False, name=f"short-{rounds}")
        write_report(run)
        text = run.report_file.read_text(encoding="utf-8")
        assert "The run ended before its budget was spent." in text
        assert f"swarm resume {run.path}" in text


def test_report_of_a_run_without_any_committed_round_says_so(write_run: WriteRun) -> None:
    run = write_run(-1)
    write_report(run)
    assert "No round is committed" in run.report_file.read_text(encoding="utf-8")


def test_what_learning_skipped_is_summed_up_over_all_rounds(write_run: WriteRun) -> None:
    run = write_run(3)
    rows = [json.loads(line) for line in run.metrics_file.read_text(encoding="utf-8").splitlines()]
    for index, skipped in ((1, 4), (2, 3)):
        rows[index]["losses"] = {"meta": {"skipped": skipped}}
        rows[index]["world"] = {"skipped": ["state:prediction:stale"], "troubles": []}
    rows[3]["world"] = {"troubles": ["the world model shared was set back to round 1"]}
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_report(run)
    text = run.report_file.read_text(encoding="utf-8")
    assert "- an update of member meta was skipped: not finite (7 times)" in text
    assert "- the prediction gradients of state were refused: stale (2 times)" in text
    assert "- the world model shared was set back to round 1 (1 time)" in text
    assert "skipped" not in "".join(read_history(write_run(3, name="other")).incidents())


def test_interventions_are_named(write_run: WriteRun) -> None:
    scenario = load_preset("smoke").with_overrides(["faults.replace=proposals", "faults.stop=gradients"])
    run = write_run(3, scenario=scenario)
    write_report(run)
    text = run.report_file.read_text(encoding="utf-8")
    assert "- each payload on topic proposals was replaced by that of the round before" in text
    assert "- messages on topic gradients were stopped" in text


def test_agents_table_sums_auctioned_seats_and_lots(write_run: WriteRun) -> None:
    history = read_history(write_run(10))
    (agents,) = (sheet for sheet in sheets(history) if sheet.headings[0] == "agent")
    rows = {row[0]: row for row in agents.rows}
    assert rows["coordinator"][1] == str(2 * 7)  # rounds 4 to 10 were auctioned
    assert rows["adaptation"][1] == "0"
    assert rows["coordinator"][2] == str(sum(4 + index % 3 for index in range(4, 11)))
    assert rows["adaptation"][3] == "10"  # trained the coordinator's member in each round


def test_summary_is_printed_with_the_same_tables(write_run: WriteRun) -> None:
    run, stream = write_run(5), StringIO()
    print_summary(run, Console(file=stream, width=160))
    text = stream.getvalue()
    assert "Return before and after" in text
    assert "Seats and lots won at auction" in text
    assert "What each topic carried" in text
    assert f"swarm resume {run.path}" in text


def test_torn_last_line_is_left_out(write_run: WriteRun) -> None:
    run = write_run(5)
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write('{"round_index": 6, "env_st')
    assert read_history(run).last["round_index"] == 5


def test_damaged_line_in_the_middle_is_named(write_run: WriteRun) -> None:
    run = write_run(5)
    lines = run.metrics_file.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][:40]
    run.metrics_file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 3 is damaged"):
        read_history(run)


def test_topic_counts_of_a_resumed_run_add_up(write_run: WriteRun) -> None:
    run = write_run(5)
    run.events_file.write_text(run.events_file.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert read_history(run).topics()["tasks"]["received"] == 100
