"""The view of a run in a terminal: a live panel, or plain lines where the output is no terminal. Thin rendering."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from scenarios.observer import ProcessEvent, RunOutcome
from scenarios.scenario import Scenario
from scenarios.view_state import (
    Ended,
    MessageSeen,
    Phase,
    ProcessSeen,
    RoundSeen,
    StatisticsSeen,
    ViewEvent,
    ViewState,
)
from swarm.bus import BusStatistics, Received
from swarm.messages import Json

REFRESH_S: Final = 0.25
LINE_EVERY_S: Final = 2.0
SIDE_BY_SIDE_COLUMNS: Final = 130


class _View:
    """Turns what an observer hears into events of the model."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.state = ViewState(scenario.team.budget_steps)

    def on_phase(self, text: str) -> None:
        """Show what is being started."""
        self._apply(Phase(text=text))

    def on_message(self, received: Received) -> None:
        """Follow presence and awards."""
        self._apply(MessageSeen(received=received))

    def on_process(self, event: ProcessEvent) -> None:
        """Follow processes."""
        self._apply(ProcessSeen(event=event))

    def on_statistics(self, statistics: BusStatistics) -> None:
        """Follow the topics."""
        self._apply(StatisticsSeen(statistics=statistics))

    def on_round(self, summary: Mapping[str, Json]) -> None:
        """Follow the training."""
        self._apply(RoundSeen(summary=summary))

    def on_end(self, outcome: RunOutcome) -> None:
        """Follow the end."""
        self._apply(Ended(outcome=outcome))

    def _apply(self, event: ViewEvent) -> None:
        self.state.apply(event, time.monotonic())


class LiveView(_View):
    """A panel that redraws itself four times a second; use as ``async with``."""

    def __init__(self, scenario: Scenario, console: Console) -> None:
        super().__init__(scenario)
        self._console = console
        self._spinner = Spinner("dots")
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._render)
        self._ticker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._live.start()
        self._ticker = asyncio.create_task(self._tick(), name="live view")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        self._live.refresh()
        self._live.stop()

    async def _tick(self) -> None:
        while True:
            self._live.refresh()
            await asyncio.sleep(REFRESH_S)

    def _render(self) -> RenderableType:
        return render(self.scenario, self.state, time.monotonic(), self._console.width, self._spinner)


class PlainView(_View):
    """A line per phase, incident and committed round, at most one round line every two seconds."""

    def __init__(self, scenario: Scenario, stream: TextIO | None = None) -> None:
        super().__init__(scenario)
        self._stream = stream or sys.stdout
        self._started_s = self._last_line_s = time.monotonic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.flush()

    def _apply(self, event: ViewEvent) -> None:
        known = list(self.state.incidents)
        super()._apply(event)
        for text in self.state.incidents:
            if text not in known:
                self._line(f"incident: {text}")
        if isinstance(event, Phase):
            self._line(event.text)
        elif isinstance(event, RoundSeen):
            now = time.monotonic()
            first_or_last = self.state.round_index == 0 or self.state.env_steps + 8 > self.state.budget_steps
            if first_or_last or now - self._last_line_s >= LINE_EVERY_S:
                self._last_line_s = now
                self._line(round_line(self.state))

    def _line(self, text: str) -> None:
        self._stream.write(f"[{time.monotonic() - self._started_s:7.1f} s] {text}\n")
        self._stream.flush()


def round_line(state: ViewState) -> str:
    """Return one line about the newest round."""
    parts = [f"round {state.round_index}", f"{state.env_steps}/{state.budget_steps} steps"]
    shown = state.mean_return()
    if shown is not None:
        parts.append(f"return {shown[0]:.0f} ({shown[1]})")
    rates = state.rates()
    if rates is not None:
        parts.append(f"{rates[0]:.0f} steps/s, {rates[1]:.0f} updates/s")
    left = state.time_left_s()
    if left is not None:
        parts.append(f"{clock_text(left)} left")
    if state.skips:
        parts.append(f"{state.skips.total()} skips")
    lots = ", ".join(f"{name} {won}" for name, won in state.summary.get("lots", {}).items() if won)
    if lots:
        parts.append(f"lots: {lots}")
    return " | ".join(parts)


def clock_text(seconds: float) -> str:
    """Return ``m:ss``, with hours where needed."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def render(
    scenario: Scenario, state: ViewState, now: float, width: int, spinner: Spinner | None = None
) -> RenderableType:
    """Return the whole panel for a terminal of ``width`` columns."""
    team = scenario.team
    title = f"{scenario.name}: {team.env_id}, {team.mode}, seed {team.seed}"
    body = Group(
        _progress(state, spinner),
        _figures(state),
        Text(),
        _columns(width, _agents(state, now), _topics(state)),
        *(Text(f"! {text}", style="yellow", overflow="ellipsis", no_wrap=True) for text in state.incidents),
    )
    return Panel(body, title=title, title_align="left", border_style="cyan")


def _progress(state: ViewState, spinner: Spinner | None) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=2)
    grid.add_column(no_wrap=True, min_width=10)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    left = state.time_left_s()
    counts = f"{state.env_steps:,}/{state.budget_steps:,} steps".replace(",", " ")
    grid.add_row(
        spinner or "",
        Text(state.phase, style="bold"),
        ProgressBar(total=state.budget_steps, completed=state.env_steps, width=None),
        f"{counts}  {clock_text(left) + ' left' if left is not None else ''}",
    )
    return grid


def _figures(state: ViewState) -> RenderableType:
    text = Text()
    shown, rates, world = state.mean_return(), state.rates(), state.summary.get("world") or {}
    if state.round_index is not None:
        text.append(f"round {state.round_index}   ")
    if shown is not None:
        text.append(f"return {shown[0]:.0f}", style="bold green")
        text.append(f" ({shown[1]})   ")
    if rates is not None:
        text.append(f"{rates[0]:.0f} steps/s   {rates[1]:.0f} updates/s   ")
    if world.get("ratio") is not None:
        text.append(f"prediction error {world['ratio']:.2f} of repeating the last value   ")
    adaptation = state.summary.get("adaptation") or {}
    if adaptation.get("accepted") or adaptation.get("rejected"):
        text.append(f"adaptations {adaptation['accepted']} accepted, {adaptation['rejected']} rejected   ")
    if state.skips:
        text.append(f"{state.skips.total()} skips", style="yellow")
    return text


def _columns(width: int, *tables: RenderableType) -> RenderableType:
    if width < SIDE_BY_SIDE_COLUMNS:
        return Group(*tables)
    grid = Table.grid(padding=(0, 3))
    grid.add_row(*tables)
    return grid


def _agents(state: ViewState, now: float) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("agent", no_wrap=True, min_width=11)
    table.add_column("health", no_wrap=True, min_width=14)
    for heading in ("seats won @ bid", "lots won @ bid"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("trained by", no_wrap=True, min_width=11)
    summary, bids = state.summary, state.summary.get("bids") or {}
    for name in dict.fromkeys([*summary.get("returns", {}), *state.agents]):
        table.add_row(
            name,
            _health(state, name, now),
            _won(summary.get("seats"), bids.get("act"), name),
            _won(summary.get("lots"), bids.get("compute"), name),
            str((summary.get("performers") or {}).get(name, "")),
        )
    restarts = {name: n for name, n in state.process_restarts.items() if name not in state.agents}
    if not restarts:
        return table
    listed = ", ".join(f"{name} {count}" for name, count in sorted(restarts.items()))
    return Group(table, Text(f" restarts of processes: {listed}", style="yellow"))


def _health(state: ViewState, name: str, now: float) -> Text:
    health = state.agents.get(name)
    if health is None:
        return Text("not heard yet", style="dim")
    if health.gone:
        return Text("left", style="dim")
    silent = state.is_silent(name, now)
    text = Text(f"{'silent' if silent else 'beat'} {max(0.0, now - health.last_beat_s):.0f} s ago")
    text.stylize("red" if silent else "green")
    if health.restarts:
        text.append(f", {health.restarts} restart{'s' if health.restarts > 1 else ''}", style="yellow")
    return text


def _won(counts: Mapping[str, Any] | None, bids: Mapping[str, Any] | None, name: str) -> str:
    if not counts or not counts.get(name):
        return "·"
    return f"{counts[name]} @ {bids[name]:.2f}" if bids and name in bids else str(counts[name])


def _topics(state: ViewState) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("topic", no_wrap=True)
    for heading in ("messages", "kB", "repaired", "lost", "dropped"):
        table.add_column(heading, justify="right", no_wrap=True)
    for topic, counts in state.statistics.topics.items():
        lost = Text(str(counts.lost), style="red" if counts.lost else "")
        size = f"{counts.received_bytes / 1000:.0f}"
        table.add_row(topic.value, str(counts.received), size, str(counts.repaired), lost, str(counts.dropped))
    rejected = sum(state.statistics.rejected.values())
    if not rejected:
        return table
    return Group(table, Text(f" {rejected} inputs that were no messages were rejected", style="yellow"))
