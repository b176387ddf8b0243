"""What a run came to: tables in the terminal, and ``report.md`` with plots in the run directory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agents.intervals import estimate_mean
from scenarios.run_directory import RunDirectory, swarm_command
from scenarios.run_records import RunHistory, read_history
from scenarios.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: a title, headings, rows of texts; the first column names, the others are numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """The table in Markdown."""
        rule = "|" + "|".join(["---", *["---:"] * (len(self.headings) - 1)]) + "|"
        lines = ["| " + " | ".join(row) + " |" for row in (self.headings, *self.rows)]
        return "\n".join([lines[0], rule, *lines[1:]])

    def to_rich(self) -> Table:
        """The table for a terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD)
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table


def print_summary(run: RunDirectory, console: Console) -> None:
    """Print the tables, what went wrong, and the commands to go on."""
    scenario, history = run.scenario(), read_history(run)
    for sheet in sheets(history):
        console.print(sheet.to_rich())
    for text in history.incidents():
        console.print(f"! {text}", style="yellow", markup=False, highlight=False)
    for text in interventions(scenario):
        console.print(f"! {text}", style="yellow", markup=False, highlight=False)
    for label, command in commands(run, scenario):
        console.print(f"{label + ':':<14} {command}", markup=False, highlight=False, soft_wrap=True)


def write_report(run: RunDirectory) -> None:
    """Write ``report.md`` and its plots. Raises ``CheckpointError`` where the records are damaged."""
    from scenarios.plots import draw_all  # matplotlib takes most of a second to import

    scenario, history = run.scenario(), read_history(run)
    team = scenario.team
    title = f"{scenario.name}: {team.env_id}, {team.mode}, seed {team.seed}"
    plots = draw_all(history, title, run.path)
    parts = [f"# {title}", "", _lead(scenario, history), ""]
    for sheet in sheets(history):
        parts += [f"## {sheet.title}", "", sheet.to_markdown(), ""]
    for file_name, caption in plots:
        parts += [f"## {caption}", "", f"![{caption}]({file_name})", ""]
    parts += ["## What was lost, restarted and skipped", "", *_bullets(history.incidents(), "Nothing."), ""]
    parts += ["## Interventions", "", *_bullets(interventions(scenario), "None."), ""]
    parts += ["## Commands", "", "```sh"]
    parts += [f"{command}  # {label}" for label, command in commands(run, scenario)] + ["```", ""]
    run.report_file.write_text("\n".join(parts), encoding="utf-8")


def sheets(history: RunHistory) -> list[Sheet]:
    """Return the tables that there is data for: result, trials, agents, topics."""
    found = [_result_sheet(history), _trial_sheet(history), _agent_sheet(history), _topic_sheet(history)]
    return [sheet for sheet in found if sheet.rows]


def interventions(scenario: Scenario) -> list[str]:
    """Return what the scenario deliberately did to the messages."""
    faults = scenario.team.faults
    found = []
    if faults.replace:
        found.append(f"each payload on topic {faults.replace} was replaced by that of the round before")
    if faults.stop:
        found.append(f"messages on topic {faults.stop} were stopped")
    return found


def commands(run: RunDirectory, scenario: Scenario) -> list[tuple[str, str]]:
    """Return (purpose, command) pairs that can be pasted into a shell."""
    path = shlex.quote(str(run.path))
    swarm = swarm_command()
    watch = f"xdg-open {path}/video.mp4" if run.video_file.exists() else f"{swarm} video {path}"
    return [
        ("resume", f"{swarm} resume {path}"),
        ("evaluate", f"{swarm} evaluate {path} --episodes {scenario.team.report_episodes}"),
        ("adapt", f"{swarm} adapt {path} --shift gravity=1.5"),
        ("watch", watch),
    ]


def _lead(scenario: Scenario, history: RunHistory) -> str:
    last = history.last
    if not last:
        return "No round is committed: there is nothing to report yet."
    steps, budget = last["env_steps"], scenario.team.budget_steps
    ended = "The budget is spent." if budget - steps < 8 else "**The run ended before its budget was spent.**"
    adaptation = last.get("adaptation") or {}
    evaluated = last.get("evaluation_steps", 0) + history.evaluation.get("after", {}).get("steps", 0)
    return (
        f"{ended} {steps} of {budget} environment steps, {last.get('updates_total', 0)} updates and "
        f"{last['round_index']} rounds in {last.get('wall_s', 0.0):.0f} s of training; besides, "
        f"{evaluated} steps of evaluation and {last.get('adaptation_steps', 0)} of adaptation "
        f"probes. Adaptations under a shift: {adaptation.get('accepted', 0)} accepted, "
        f"{adaptation.get('rejected', 0)} rejected. Versions, machine and seed: `environment.json`; all settings: "
        "`scenario.toml`."
    )


def _result_sheet(history: RunHistory) -> Sheet:
    rows = []
    for label in ("before", "after"):
        found = history.evaluation.get(label)
        if not found or not found["returns"]:
            continue
        rows.append(
            (
                label,
                str(found["member"]),
                str(len(found["returns"])),
                _mean_and_deviation(found["returns"]),
                f"{min(found['returns']):.1f} to {max(found['returns']):.1f}",
                _mean_and_deviation(found["distances"]),
                f"{fmean(found['lengths']):.0f}" if found.get("lengths") else "",
            )
        )
    headings = ("training", "policy", "episodes", "return", "range", "distance (m)", "length")
    return Sheet("Return before and after", headings, tuple(rows))


def _trial_sheet(history: RunHistory) -> Sheet:
    """Return at episode k of a trial, over test tasks, for runs on several tasks."""
    rows = []
    for label in ("before", "after"):
        curves = history.evaluation.get(label, {}).get("curves", ())
        if curves:
            estimates = [estimate_mean(values) for values in zip(*curves, strict=True)]
            rows.append((label, str(len(curves)), *(str(estimate) for estimate in estimates)))
    longest = max((len(row) - 2 for row in rows), default=0)
    headings = ("training", "trials", *(f"episode {k}" for k in range(1, longest + 1)))
    return Sheet("Return by episode of a trial on test tasks, mean and 95 % interval", headings, tuple(rows))


def _agent_sheet(history: RunHistory) -> Sheet:
    last, seats, lots, performed = history.last, history.totals("seats"), history.totals("lots"), history.performed()
    names = dict.fromkeys([*last.get("returns", {}), *performed, *last.get("reputation", {})])
    rows = []
    for name in names:
        reputation = last.get("reputation", {}).get(name, {})
        value = last.get("returns", {}).get(name)
        rows.append(
            (
                name,
                str(seats.get(name, 0)),
                str(lots.get(name, 0)),
                str(performed.get(name, 0)),
                "" if value is None else f"{value:.0f}",
                *(_number(reputation, kind) for kind in ("act", "compute")),
            )
        )
    headings = ("agent", "seats", "lots", "trained", "return", "rep. act", "compute")
    return Sheet("Seats and lots won at auction, contracts to train won, reputation (rep.)", headings, tuple(rows))


def _topic_sheet(history: RunHistory) -> Sheet:
    keys = ("duplicates", "gaps", "repaired", "lost", "dropped")
    rows = tuple(
        (
            topic,
            f"{counts.get('received', 0):,}".replace(",", " "),
            f"{counts.get('received_bytes', 0) / 1000:,.0f}".replace(",", " "),
            *(str(counts.get(key, 0)) for key in keys),
        )
        for topic, counts in history.topics().items()
    )
    return Sheet("What each topic carried (heard by the launcher)", ("topic", "messages", "kB", *keys), rows)


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _number(values: Mapping[str, Any], key: str) -> str:
    return f"{values[key]:.2f}" if values.get(key) is not None else ""


def _bullets(texts: Sequence[str], otherwise: str) -> list[str]:
    return [f"- {text}" for text in texts] or [otherwise]
