"""Plots of a run as PNG files. Every plot copes with a run that ended early; what has no data is not drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from agents.intervals import estimate_mean
from scenarios.run_records import Row, RunHistory

COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999933", "#666666")
"""Okabe and Ito's palette, told apart with any colour vision; one colour an agent, the same in all plots."""

GREY: Final = "#555555"
RELIABILITY_ROUNDS: Final = 10


def draw_all(history: RunHistory, title: str, folder: Path) -> list[tuple[str, str]]:
    """Draw what there is data for into ``folder``; return (file name, caption) of each plot."""
    drawn = []
    for file_name, caption, draw in PLOTS:
        figure = draw(history)
        if figure is None:
            continue
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=GREY)
        FigureCanvasAgg(figure)
        figure.savefig(folder / file_name, dpi=110)
        drawn.append((file_name, caption))
    return drawn


def draw_learning(history: RunHistory) -> Figure | None:
    """Return over environment steps: evaluations per member, training episodes, reported evaluations."""
    members = _members(history)
    figure, (axes,) = _figure(1)
    drawn = False
    episodes = [(row["env_steps"], episode["return"]) for row in history.trained for episode in row.get("episodes", ())]
    if episodes:
        x, y = zip(*episodes, strict=True)
        axes.scatter(x, y, s=9, color="#bbbbbb", label="training episodes", zorder=1)
        drawn = True
    for name, colour in zip(members, _colours(members), strict=True):
        points = _evaluations(history.rounds, name)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=4, lw=1.4, label=f"{name}, evaluated")
            drawn = True
    for label, colour in (("before", "#999999"), ("after", "black")):
        found = history.evaluation.get(label)
        if found and found["returns"]:
            mean = sum(found["returns"]) / len(found["returns"])
            text = f"reported {label} training: {mean:.{0 if abs(mean) >= 10 else 1}f}"
            axes.axhline(mean, color=colour, ls="--", lw=1.2, label=text, zorder=0)
            drawn = True
    if not drawn:
        return None
    axes.set(xlabel="environment steps (all members together)", ylabel="return of an episode")
    axes.xaxis.set_major_formatter(_THOUSANDS)
    _legend(axes)
    return figure


def draw_trials(history: RunHistory) -> Figure | None:
    """Return by episode of a trial on test tasks, before and after training, with 95 % intervals."""
    curves = {label: history.evaluation.get(label, {}).get("curves") for label in ("before", "after")}
    if not any(curves.values()):
        return None
    figure, (axes,) = _figure(1)
    for (label, rows), colour in zip(curves.items(), (GREY, COLOURS[0]), strict=True):
        if rows:
            estimates = [estimate_mean(values) for values in zip(*rows, strict=True)]
            x = range(1, len(estimates) + 1)
            low, high = [row.low for row in estimates], [row.high for row in estimates]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(x, [row.mean for row in estimates], "o-", color=colour, ms=4, label=f"{label} training")
    axes.set(xlabel="episode of the trial", ylabel="return of an episode")
    _legend(axes)
    return figure


def draw_allocation(history: RunHistory) -> Figure | None:
    """Seats and lots per round, stacked by the member that won them."""
    rounds = [row for row in history.trained if row.get("bids")]
    if not rounds:
        return None
    members = _members(history)
    figure, panels = _figure(2)
    for axes, key, label in zip(
        panels, ("seats", "lots"), ("seats won (environments)", "lots of updates won"), strict=True
    ):
        x = [row["round_index"] for row in rounds]
        heights = [[row.get(key, {}).get(name, 0) for row in rounds] for name in members]
        bottom = [0] * len(x)
        for name, colour, height in zip(members, _colours(members), heights, strict=True):
            axes.bar(x, height, bottom=bottom, width=1.0, color=colour, label=name)
            bottom = [low + high for low, high in zip(bottom, height, strict=True)]
        axes.set(ylabel=label, xlim=(x[0] - 0.5, x[-1] + 0.5))
        axes.set_ylim(0, max(1, *bottom) * 1.02)
    panels[-1].set_xlabel("round (those that were auctioned)")
    _legend(panels[0])
    return figure


def draw_world(history: RunHistory) -> Figure | None:
    """Prediction error against repeating the last value; dynamics loss before and after the inner loop."""
    rounds = [row for row in history.trained if (row.get("world") or {}).get("error") is not None]
    if not rounds:
        return None
    has_meta = any(row["world"].get("meta_before") is not None for row in rounds)
    figure, panels = _figure(2 if has_meta else 1)
    x = [row["round_index"] for row in rounds]
    panels[0].plot(x, [row["world"]["error"] for row in rounds], color=COLOURS[0], label="encoder and dynamics model")
    panels[0].plot(
        x, [row["world"].get("persistence") for row in rounds], color=GREY, ls="--", label="repeating the last value"
    )
    panels[0].set(ylabel="prediction error (normalised)")
    panels[0].set_ylim(bottom=0)
    _legend(panels[0])
    if has_meta:
        measured = [row for row in rounds if row["world"].get("meta_before") is not None]
        x = [row["round_index"] for row in measured]
        for key, style, colour, label in (
            ("meta_before", "--", GREY, "before the inner loop"),
            ("meta_after", "-", COLOURS[1], "after the inner loop"),
        ):
            y = [row["world"].get(key) for row in measured]
            panels[1].plot(x, y, style, marker=".", ms=3, lw=1.2, color=colour, label=label)
        panels[1].set(ylabel="loss under other dynamics")
        panels[1].set_ylim(bottom=0)
        _legend(panels[1])
    panels[-1].set_xlabel("round")
    return figure


def draw_calibration(history: RunHistory) -> Figure | None:
    """Predicted standard deviation against the error that came, over the last rounds that were measured."""
    rows = [row for row in history.trained if (row.get("world") or {}).get("reliability")]
    if not rows:
        return None
    figure, (axes,) = _figure(1)
    latest = rows[-RELIABILITY_ROUNDS:]
    for row in latest:
        axes.loglog(*zip(*row["world"]["reliability"], strict=True), ".-", color=COLOURS[5], ms=3, lw=0.6, alpha=0.5)
    # Bins hold equally many predictions: over rounds, squared errors average.
    pairs = zip(*(row["world"]["reliability"] for row in latest), strict=True)
    curve = [tuple(fmean(point[i] ** 2 for point in points) ** 0.5 for i in (0, 1)) for points in pairs]
    label = f"mean of rounds {latest[0]['round_index']} to {latest[-1]['round_index']}"
    axes.loglog(*zip(*curve, strict=True), "o-", color=COLOURS[0], ms=4, label=label)
    ends = [min(min(point) for point in curve), max(max(point) for point in curve)]
    axes.loglog(ends, ends, ls="--", color=GREY, lw=1, label="perfectly calibrated")
    axes.set(xlabel="predicted standard deviation (normalised)", ylabel="root mean square error (normalised)")
    _legend(axes)
    return figure


def draw_trust(history: RunHistory) -> Figure | None:
    """Calibration error of the intervals, and how far imagination went before the heads disagreed."""
    rows = [row for row in history.trained if (row.get("world") or {}).get("calibration_error") is not None]
    if not rows:
        return None
    figure, panels = _figure(2)
    x = [row["round_index"] for row in rows]
    for key, style, colour, label in (
        ("raw_calibration_error", "--", GREY, "bare disagreement of the heads"),
        ("calibration_error", "-", COLOURS[0], "calibrated"),
    ):
        panels[0].plot(x, [row["world"].get(key) for row in rows], style, color=colour, lw=1.2, label=label)
    panels[0].set(ylabel="calibration error")
    panels[0].set_ylim(bottom=0)
    panels[1].plot(x, [row["world"].get("imagined_steps") for row in rows], color=COLOURS[1], label="before the cut")
    panels[1].set(ylabel="imagined steps", xlabel="round")
    panels[1].set_ylim(bottom=0)
    for axes in panels:
        _legend(axes)
    return figure


def draw_bids(history: RunHistory) -> Figure | None:
    """Highest winning bid of each member for seats and for lots, and what the critics voted."""
    rounds = [row for row in history.trained if row.get("bids")]
    if not rounds:
        return None
    members = _members(history)
    figure, panels = _figure(3)
    readings: tuple[tuple[str, Callable[[Row, str], float | None]], ...] = (
        ("best bid for seats", lambda row, name: row["bids"].get("act", {}).get(name)),
        ("best bid for lots", lambda row, name: row["bids"].get("compute", {}).get(name)),
        ("vote above the team's mean", _vote_above_mean),
    )
    for axes, (label, read) in zip(panels, readings, strict=True):
        for name, colour in zip(members, _colours(members), strict=True):
            points = [(row["round_index"], value) for row in rounds if (value := read(row, name)) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), ".-", ms=3, lw=1, color=colour, label=name)
        axes.set(ylabel=label)
    panels[-1].set_xlabel("round")
    _legend(panels[-1])
    return figure


def draw_speed(history: RunHistory) -> Figure | None:
    """Updates and environment steps per second of each round."""
    pairs = [(a, b) for a, b in zip(history.rounds, history.rounds[1:], strict=False) if b["wall_s"] > a["wall_s"]]
    if not pairs:
        return None
    figure, panels = _figure(2)
    x = [after["round_index"] for _, after in pairs]
    for axes, key, label in zip(
        panels, ("updates_total", "env_steps"), ("updates/s", "environment steps/s"), strict=True
    ):
        rates = [(after[key] - before[key]) / (after["wall_s"] - before["wall_s"]) for before, after in pairs]
        axes.plot(x, rates, ".-", ms=3, lw=1, color=COLOURS[0])
        elapsed = pairs[-1][1]["wall_s"] - pairs[0][0]["wall_s"]
        mean = (pairs[-1][1][key] - pairs[0][0][key]) / elapsed
        axes.axhline(mean, color=GREY, ls="--", lw=1, label=f"over the whole run: {mean:.0f}")
        axes.set(ylabel=label)
        axes.set_ylim(bottom=0)
        _legend(axes)
    panels[-1].set_xlabel("round")
    return figure


PLOTS: Final[tuple[tuple[str, str, Callable[[RunHistory], Figure | None]], ...]] = (
    ("learning.png", "Learning curve", draw_learning),
    ("trials.png", "Adaptation over the episodes of a trial on test tasks", draw_trials),
    ("allocation.png", "Who won which share of acting and of compute", draw_allocation),
    ("bids.png", "Bids of the winners, and the peers' votes", draw_bids),
    ("world.png", "Shared world model: prediction and inner loop", draw_world),
    ("calibration.png", "Shared world model: does predicted uncertainty match the error?", draw_calibration),
    ("trust.png", "Shared world model: calibration and imagination, round by round", draw_trust),
    ("speed.png", "Speed, round by round", draw_speed),
)

_THOUSANDS: Final = FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " "))


def _figure(num_panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8.5, 3.9 if num_panels == 1 else 1.2 + 2.2 * num_panels), layout="constrained")
    grid = figure.subplots(num_panels, 1, sharex=True, squeeze=False)
    panels: list[Axes] = [row[0] for row in grid]
    for axes in panels:
        axes.grid(True, color="#e5e5e5", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure, panels


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _members(history: RunHistory) -> list[str]:
    return list(history.last.get("returns", {}))


def _colours(members: Sequence[str]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(members))]


def _vote_above_mean(row: Row, member: str) -> float | None:
    """Critics value all members alike in the large; what decides is how they differ."""
    votes = row.get("votes", {})
    return votes[member] - sum(votes.values()) / len(votes) if member in votes else None


def _evaluations(rounds: Sequence[Row], member: str) -> list[tuple[int, float]]:
    """Points where the member's evaluated return is a new one; summaries repeat the latest until the next."""
    points: list[tuple[int, float]] = []
    for row in rounds:
        value = row.get("returns", {}).get(member)
        if value is not None and (not points or points[-1][1] != value):
            points.append((row["env_steps"], value))
    return points
