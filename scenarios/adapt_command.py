"""The command ``swarm adapt``: which tasks, how far, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agents.config import AdaptConfig, TeamConfig
from agents.deployment import adapted_path
from agents.intervals import Estimate, estimate_mean
from env_bridge.suites import held_out_tasks
from env_bridge.tasks import check_task_fits, combine, parse_shift
from scenarios.observer import AdaptationOutcome
from scenarios.scenario import Scenario
from swarm.environment import TaskParameters
from swarm.errors import ConfigError
from swarm.messages import Json

DEFAULT_TASKS = 6


def shifts_of(arguments: argparse.Namespace, scenario: Scenario) -> tuple[TaskParameters, ...]:
    """Return what ``--shift``, or ``--suite`` (by default the run's own) and ``--tasks``, ask for.

    Raises:
        ConfigError: neither is there, a shift that changes nothing, or one name for several policies.
    """
    suite = arguments.suite or scenario.suite
    if arguments.shift is not None:
        if arguments.tasks is not None:
            raise ConfigError("--tasks says how many tasks of a suite; with --shift there is one")
        shifts: tuple[TaskParameters, ...] = (parse_shift(arguments.shift),)
        if shifts[0] == TaskParameters():
            raise ConfigError(f"--shift {arguments.shift!r} changes nothing; write for example --shift gravity=1.5")
    elif suite:
        shifts = held_out_tasks(suite, arguments.tasks or DEFAULT_TASKS, scenario.team.env_id)
    else:
        raise ConfigError(
            "this run was trained on one task, so adapt needs one of --shift gravity=1.5,… and --suite shift-test"
        )
    if arguments.save is not None:
        adapted_path(arguments.run_dir, arguments.save)
        if len(shifts) > 1:
            raise ConfigError(f"--save names one policy, got {len(shifts)} tasks; use --shift, or --tasks 1")
    return shifts


def config_of(arguments: argparse.Namespace, shifts: Sequence[TaskParameters], team: TeamConfig) -> AdaptConfig:
    """Return the scenario's adaptation with what the options change.

    Raises:
        ConfigError: options that do not fit, or a task that the robot cannot do.
    """
    for shift in shifts:
        check_task_fits(combine(team.task, shift), team.env_id)
    config = team.adapt
    options = ("level", "episodes", "online")
    changes = {key: getattr(arguments, key) for key in options if getattr(arguments, key) is not None}
    return replace(config, **changes)


def to_json(outcomes: Sequence[AdaptationOutcome]) -> dict[str, Json]:
    """Return one adaptation, or, of several, all of them and their summary."""
    rows = [_row(outcome) for outcome in outcomes]
    if len(rows) == 1:
        return rows[0]
    before, after = _pooled(outcomes)
    return {
        "before": before.mean,
        "before_interval": [before.low, before.high],
        "after": after.mean,
        "after_interval": [after.low, after.high],
        "accepted": sum(outcome.accepted for outcome in outcomes),
        "probes": sum(outcome.probes for outcome in outcomes),
        "steps": sum(outcome.steps for outcome in outcomes),
        "tasks": rows,
    }


def _row(outcome: AdaptationOutcome) -> dict[str, Json]:
    before, after = estimate_mean(outcome.before), estimate_mean(outcome.after)
    return {
        "member": outcome.member,
        "shift": dict(outcome.shift),
        "level": outcome.level,
        "online": outcome.online,
        "accepted": outcome.accepted,
        "reason": outcome.reason,
        "before": before.mean,
        "before_interval": [before.low, before.high],
        "before_returns": list(outcome.before),
        "after": after.mean,
        "after_interval": [after.low, after.high],
        "after_returns": list(outcome.after),
        "curve": [list(row) for row in outcome.curve],
        "probes": outcome.probes,
        "steps": outcome.steps,
        "saved": outcome.saved,
    }


def print_outcomes(outcomes: Sequence[AdaptationOutcome], save_as: str | None, console: Console) -> None:
    """Print before, after, the way there and the verdict of each task."""
    first = outcomes[0]
    table = Table(
        title=f"level {first.level}{', online' if first.online else ''}: return, mean and 95 % interval; "
        "what is rejected stays as it was",
        title_justify="left",
        header_style="dim",
        box=SIMPLE_HEAD,
    )
    for heading in ("task", "before", "after", "verdict"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("before", "after"))
    for outcome in outcomes:
        changed = ", ".join(f"{name} {value:.3g}" for name, value in outcome.shift.items())
        verdict = f"accepted ({outcome.member})" if outcome.accepted else "rejected"
        table.add_row(changed, str(estimate_mean(outcome.before)), str(estimate_mean(outcome.after)), verdict)
    if len(outcomes) > 1:
        before, after = _pooled(outcomes)
        accepted = sum(outcome.accepted for outcome in outcomes)
        table.add_section()
        table.add_row("all", str(before), str(after), f"{accepted} of {len(outcomes)} accepted")
    console.print(table)
    steps = zip(*(outcome.curve for outcome in outcomes), strict=True)
    for number, rows in enumerate(steps, start=1):
        found = estimate_mean(list(chain.from_iterable(rows)))
        console.print(f"episode {number} as lived: {found}", highlight=False, markup=False)
    probes, used = (sum(getattr(outcome, key) for outcome in outcomes) for key in ("probes", "steps"))
    console.print(f"used: {probes} episodes, {used} environment steps, re-evaluation included", highlight=False)
    for outcome in outcomes:
        console.print(outcome.reason, highlight=False, markup=False)
    if first.saved is not None:
        console.print(f"saved: {first.saved}", highlight=False, markup=False, soft_wrap=True)
    elif save_as is not None:
        console.print("not saved: nothing better was found", highlight=False)


def _pooled(outcomes: Sequence[AdaptationOutcome]) -> tuple[Estimate, Estimate]:
    """Return before and after over tasks: each task's mean counts once, as tasks are what varies."""
    before, after = ([sum(values) / len(values) for values in column] for column in _columns(outcomes))
    return estimate_mean(before), estimate_mean(after)


def _columns(outcomes: Sequence[AdaptationOutcome]) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    return [outcome.before for outcome in outcomes], [outcome.after for outcome in outcomes]
