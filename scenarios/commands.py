"""What each command of ``swarm`` does: resolve, run under an observer, report."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

import structlog
from rich.console import Console
from rich.table import Table

from agents.deployment import load_adapted
from scenarios.live_view import LiveView, PlainView
from scenarios.observer import Observers, RunOutcome
from scenarios.own_agents import rebuild_agents
from scenarios.recorders import EventLog, TensorboardLog
from scenarios.report import print_summary, write_report
from scenarios.run_directory import DEFAULT_ROOT, RunDirectory, default_path, swarm_command
from scenarios.run_records import read_history
from scenarios.scenario import KNOWN_TASKS, Scenario, list_presets, load_preset, load_scenario
from scenarios.session import run_interruptibly
from swarm.agent import Agent
from swarm.environment import TaskParameters
from swarm.errors import ConfigError, SwarmError

ReturnT = TypeVar("ReturnT")
DIRECT_OPTIONS: Final = (
    ("steps", "budget_steps"),
    ("seed", "seed"),
    ("processes", "processes"),
    ("mode", "mode"),
)


def run(arguments: argparse.Namespace) -> int:
    """Train as the scenario says."""
    scenario = resolve(arguments)
    created = RunDirectory.create(arguments.out or default_path(scenario, datetime.now()), scenario)
    return _train(created, arguments, resume=False)


def resume(arguments: argparse.Namespace) -> int:
    """Continue a run."""
    return _train(RunDirectory.open(arguments.run_dir), arguments, resume=True)


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate the trained policy; the report is written anew, with what the run itself reported."""
    from scenarios.adapting import evaluate_adapted
    from scenarios.runner import evaluate_run

    opened = RunDirectory.open(arguments.run_dir)
    opened.require_checkpoint()
    what = f"running {arguments.episodes} episodes of {opened.scenario().team.env_id}"
    if arguments.adapted is not None:
        load_adapted(opened.path, arguments.adapted)
        outcome = _briefly(evaluate_adapted(opened.path, arguments.adapted, episodes=arguments.episodes), what)
    else:
        outcome = _briefly(evaluate_run(opened.path, episodes=arguments.episodes), what)
        write_report(opened)
    if arguments.json:
        _print_json(asdict(outcome))
        return 0
    adapted = "" if arguments.adapted is None else f", adapted: {arguments.adapted}"
    table = Table(title=f"{outcome.member} as of round {outcome.round_index}{adapted}", title_justify="left")
    for heading in ("episode", "return", "distance (m)", "length"):
        table.add_column(heading, justify="right")
    rows = zip(outcome.returns, outcome.distances, outcome.lengths, strict=True)
    for number, (total, distance, length) in enumerate(rows, start=1):
        table.add_row(str(number), f"{total:.1f}", f"{distance:.1f}", str(length))
    table.add_section()
    count = len(outcome.returns)
    table.add_row("mean", f"{sum(outcome.returns) / count:.1f}", f"{sum(outcome.distances) / count:.1f}", "")
    Console().print(table)
    return 0


def adapt(arguments: argparse.Namespace) -> int:
    """Adapt the trained policy to a shift, or to each task of a suite."""
    from scenarios.adapt_command import config_of, print_outcomes, shifts_of, to_json
    from scenarios.adapting import adapt_run

    opened = RunDirectory.open(arguments.run_dir)
    scenario = opened.scenario()
    shifts = shifts_of(arguments, scenario)
    config = config_of(arguments, shifts, scenario.team)
    opened.require_checkpoint()
    work = adapt_run(opened.path, shifts, config=config, seed=arguments.seed, save_as=arguments.save)
    outcomes = _briefly(
        work, f"adapting to {arguments.shift or f'{len(shifts)} tasks of {arguments.suite or scenario.suite}'}"
    )
    if arguments.json:
        _print_json(to_json(outcomes))
    else:
        print_outcomes(outcomes, arguments.save, Console())
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write the trained policy for use without the swarm."""
    from agents.export import FORMATS, export_policy

    opened = RunDirectory.open(arguments.run_dir)
    opened.require_checkpoint()
    by_suffix = {suffix: form for form, suffix in FORMATS.items()}
    form = arguments.format or (by_suffix.get(arguments.out.suffix, "safetensors") if arguments.out else "safetensors")
    path = arguments.out or opened.path / f"policy.{form}"
    written = export_policy(opened.path, path, member=arguments.member, round_index=arguments.round, form=form)
    if arguments.json:
        _print_json({"path": written.path, "card_path": written.card_path, "card": written.card})
        return 0
    policy, training, found = (written.card[key] for key in ("policy", "training", "evaluation"))
    score = "not evaluated yet" if found is None else f"mean return {found['mean_return']:.1f} ({found['episodes']})"
    Console().print(
        f"wrote {written.path} and {written.card_path.name}: member {policy['member']} as of round "
        f"{training['round']}, {score}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


def video(arguments: argparse.Namespace) -> int:
    """Film a policy, or two side by side."""
    from scenarios.filming import film
    from scenarios.video_command import Progress, plan_film

    plan = plan_film(arguments)
    with Progress(sys.stderr) as progress:
        work = film(
            plan.sources, plan.paths, shift=plan.shift, seed=plan.seed, options=plan.options, on_frame=progress.show
        )
        written = _briefly(work, plan.what)
    if arguments.json:
        _print_json({"paths": written})
        return 0
    names = ", ".join(map(str, written))
    Console().print(f"wrote {names}", highlight=False, markup=False, soft_wrap=True)
    return 0


def list_scenarios(arguments: argparse.Namespace) -> int:
    """List presets and tasks."""
    presets = [load_preset(name) for name in list_presets()]
    if arguments.json:
        _print_json({"scenarios": [preset.to_mapping() for preset in presets], "tasks": list(KNOWN_TASKS)})
        return 0
    table = Table(box=None, header_style="dim")
    for heading in ("scenario", "task", "steps", "what"):
        table.add_column(heading, overflow="fold")
    for preset in presets:
        team = preset.team
        table.add_row(preset.name, team.env_id, f"{team.budget_steps:,}".replace(",", " "), preset.description)
    console = Console()
    console.print(table)
    console.print(
        f"tasks for --task: {', '.join(KNOWN_TASKS)}, or another MuJoCo id of Gymnasium with box spaces",
        highlight=False,
    )
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Examine this machine."""
    from scenarios.doctor import examine

    findings = examine(DEFAULT_ROOT)
    failed = any(finding.level == "fail" for finding in findings)
    if arguments.json:
        _print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
        return int(failed)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, header_style="dim")
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        level = f"[{colours[finding.level]}]{finding.level}[/]"
        table.add_row(finding.check, level, finding.found, finding.advice)
    Console().print(table)
    return int(failed)


def bench(arguments: argparse.Namespace) -> int:
    """Run a benchmark."""
    from scenarios import bench as benchmarks

    found = benchmarks.run(arguments.name, arguments.threads)
    if arguments.json:
        _print_json(found)
        return 0
    numbers = list(found["ratios_by_threads"])
    table = Table(box=None, header_style="dim")
    for heading in ("ratio (theirs / our time)", *(f"{number} threads" for number in numbers)):
        table.add_column(heading)
    by_threads = [_leaves(found["ratios_by_threads"][number]) for number in numbers]
    for name in by_threads[0]:
        table.add_row(name, *(_ratio_text(ratios.get(name)) for ratios in by_threads))
    Console().print(table)
    return 0


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    leaves: dict[str, float | None] = {}
    for name, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def _ratio_text(ratio: float | None) -> str:
    return "not measured" if ratio is None else f"{ratio:.2f}"


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "run": run,
    "resume": resume,
    "evaluate": evaluate,
    "adapt": adapt,
    "export": export,
    "video": video,
    "list": list_scenarios,
    "doctor": doctor,
    "bench": bench,
}


def resolve(arguments: argparse.Namespace) -> Scenario:
    """Return the scenario that the options of ``swarm run`` describe; ``--set`` has the last word."""
    scenario = load_scenario(arguments.scenario)
    if arguments.task is not None:
        scenario = scenario.with_task(arguments.task)
    if arguments.agents is not None:
        names = [name.strip() for name in arguments.agents.split(",") if name.strip()]
        scenario, added = scenario.with_agents(names)
        if added:
            sys.stderr.write(f"swarm: note: {', '.join(added)} take part as well: no run works without\n")
    direct = [
        f"{key}={getattr(arguments, option)}"
        for option, key in DIRECT_OPTIONS
        if getattr(arguments, option) is not None
    ]
    return scenario.with_overrides([*direct, *arguments.overrides])


def _train(run: RunDirectory, arguments: argparse.Namespace, *, resume: bool) -> int:
    scenario = run.scenario()
    agents = rebuild_agents(run, scenario, allow_import=arguments.allow_import) if resume else None
    console = Console(stderr=bool(arguments.json))
    live = console.is_terminal and not arguments.plain and not arguments.json
    view = LiveView(scenario, console) if live else PlainView(scenario, sys.stderr if arguments.json else sys.stdout)
    with ExitStack() as stack:
        log = stack.enter_context((run.path / "launcher.log").open("a", encoding="utf-8"))
        stack.enter_context(_logging_to(log))
        events = stack.enter_context(EventLog(run))

        def on_interrupt() -> None:
            events.close("interrupted")
            _say_interrupted(run)

        try:
            outcome = run_interruptibly(_session(run, scenario, events, view, agents, resume=resume), on_interrupt)
        except SwarmError:
            if run.last_round() is not None:
                write_report(run)
            raise
    write_report(run)
    if arguments.json:
        evaluation = read_history(run).evaluation
        _print_json({**outcome.to_json(), "evaluation": evaluation, "report": str(run.report_file)})
    else:
        print_summary(run, console)
        console.print(f"report:        {run.report_file}", highlight=False, markup=False, soft_wrap=True)
    if outcome.status == "failed":
        raise ConfigError(outcome.reason) if outcome.user_error else SwarmError(outcome.reason)
    return 0


async def _session(
    run: RunDirectory,
    scenario: Scenario,
    events: EventLog,
    view: LiveView | PlainView,
    agents: Sequence[Agent] | None,
    *,
    resume: bool,
) -> RunOutcome:
    """Train, then film, under the view and all recorders."""
    from scenarios.filming import film, find_source
    from scenarios.runner import run_scenario

    with TensorboardLog(run) as curves:
        observer = Observers((events, curves, view))
        async with view:
            outcome = await run_scenario(scenario, run.path, observer=observer, resume=resume, agents=agents)
            if scenario.video and outcome.status == "done":
                observer.on_phase("filming the trained policy")
                try:
                    await film([find_source(run.path)], [run.video_file])
                except ConfigError as error:  # rendering is optional: the run is good without a film
                    observer.on_phase(f"no video: {error}")
                    sys.stderr.write(f"swarm: note: no video: {error}\n")
    return outcome


def _briefly(work: Coroutine[Any, Any, ReturnT], what: str) -> ReturnT:
    """Run a short command; what it does, and warnings, go to standard error."""
    sys.stderr.write(f"{what}...\n")
    with _logging_to(sys.stderr, logging.WARNING):
        return run_interruptibly(work, lambda: None)


@contextmanager
def _logging_to(stream: TextIO, level: int = logging.NOTSET) -> Iterator[None]:
    """Log to ``stream``, and afterwards as before: whoever embeds a command may close the stream."""
    before = structlog.get_config()
    structlog.configure(
        logger_factory=structlog.WriteLoggerFactory(stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _say_interrupted(run: RunDirectory) -> None:
    committed = run.last_round()
    what = f"round {committed} is committed" if committed is not None else "no round was committed yet"
    sys.stderr.write(f"\ninterrupted: {what}; go on with: {swarm_command()} resume {run.path}\n")
    sys.stderr.flush()


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, default=_plain, indent=1)
    sys.stdout.write("\n")


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, TaskParameters):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")
