"""What a person who watches a run wants to know, kept up to date from events. Pure: time is an argument."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

from scenarios.observer import UNEVENTFUL, ProcessEvent, RunOutcome, skips_of
from swarm.bus import BusStatistics, Received
from swarm.messages import Award, Goodbye, Heartbeat, Hello, Json, PeerDown

RATE_WINDOW_S = 30.0
STALE_BEAT_S = 3.0
"""After three missed one-second beats an agent is shown as silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Startup or closing work began."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSeen:
    """The launcher's bus received a message."""

    received: Received


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSeen:
    """The supervisor did or saw something."""

    event: ProcessEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSeen:
    """Fresh counts of the launcher's bus."""

    statistics: BusStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSeen:
    """A round was committed."""

    summary: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The run ended by itself."""

    outcome: RunOutcome


ViewEvent = Phase | MessageSeen | ProcessSeen | StatisticsSeen | RoundSeen | Ended


@dataclass(slots=True, kw_only=True)
class AgentHealth:
    """Signs of life of one agent: when last heard, which life, how much done, whether it left on purpose."""

    last_beat_s: float
    incarnation: int
    progress: int = 0
    restarts: int = 0
    gone: bool = False


@dataclass(slots=True)
class ViewState:
    """The model of the live view.

    Attributes:
        summary: newest round summary; empty until the first.
        awards: newest award per kind of work, as (task id, {agent: units}).
        recent: (time, env_steps, updates) of recent rounds, for rates.
        incidents: what went wrong lately, newest last.
        skips: what was left out of the learning so far, and how often; the first of each kind is an incident too.
    """

    budget_steps: int
    phase: str = "starting"
    summary: Mapping[str, Any] = field(default_factory=dict)
    agents: dict[str, AgentHealth] = field(default_factory=dict)
    processes: dict[str, str] = field(default_factory=dict)
    process_restarts: dict[str, int] = field(default_factory=dict)
    awards: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)
    statistics: BusStatistics = field(default_factory=BusStatistics)
    recent: deque[tuple[float, int, int]] = field(default_factory=deque)
    incidents: deque[str] = field(default_factory=lambda: deque(maxlen=3))
    skips: Counter[str] = field(default_factory=Counter)
    outcome: RunOutcome | None = None

    def apply(self, event: ViewEvent, now: float) -> None:
        """Take an event in. ``now``: seconds of any monotonic clock, the same for all calls."""
        match event:
            case Phase(text=text):
                self.phase = text
            case MessageSeen(received=received):
                self._hear(received, now)
            case ProcessSeen(event=process):
                self._see_process(process)
            case StatisticsSeen(statistics=statistics):
                self.statistics = statistics
            case RoundSeen(summary=summary):
                self._enter_round(summary, now)
            case Ended(outcome=outcome):
                self.outcome = outcome
                self.phase = outcome.status

    @property
    def env_steps(self) -> int:
        """Environment steps committed so far."""
        return int(self.summary.get("env_steps", 0))

    @property
    def round_index(self) -> int | None:
        """Newest committed round, ``None`` before the first news."""
        return self.summary.get("round_index")

    def rates(self) -> tuple[float, float] | None:
        """Environment steps and updates per second over the recent rounds; ``None`` before the second round."""
        if len(self.recent) < 2:
            return None
        (t0, steps0, updates0), (t1, steps1, updates1) = self.recent[0], self.recent[-1]
        if t1 <= t0:
            return None
        return (steps1 - steps0) / (t1 - t0), (updates1 - updates0) / (t1 - t0)

    def time_left_s(self) -> float | None:
        """Seconds until the budget is spent at the recent rate; ``None`` where there is none yet."""
        rates = self.rates()
        if rates is None or rates[0] <= 0:
            return None
        return max(0, self.budget_steps - self.env_steps) / rates[0]

    def mean_return(self) -> tuple[float, str] | None:
        """The return to show and what it is: of the best evaluated member, else of recent training episodes."""
        best = self.summary.get("best") or {}
        if best.get("return") is not None:
            return float(best["return"]), f"{best['member']}, evaluated"
        returns = [episode["return"] for episode in self.summary.get("episodes", ()) if "return" in episode]
        return (fmean(returns), "training episodes") if returns else None

    def is_silent(self, agent: str, now: float) -> bool:
        """Whether ``agent`` has missed three beats without having said goodbye."""
        health = self.agents[agent]
        return not health.gone and now - health.last_beat_s > STALE_BEAT_S

    def _hear(self, received: Received, now: float) -> None:
        message = received.message
        if isinstance(message, Hello | Heartbeat):
            health = self.agents.get(message.agent)
            if health is None:
                health = self.agents[message.agent] = AgentHealth(last_beat_s=now, incarnation=message.incarnation)
            if message.incarnation > health.incarnation:
                health.restarts += 1
                health.incarnation = message.incarnation
            health.last_beat_s, health.gone = now, False
            if isinstance(message, Heartbeat):
                health.progress = message.progress
        elif isinstance(message, Goodbye) and message.agent in self.agents:
            self.agents[message.agent].gone = True
        elif isinstance(message, PeerDown):
            self.incidents.append(f"{message.agent} is down: {message.reason}")
        elif isinstance(message, Award):
            task_id, units = self.awards.get(message.kind, ("", {}))
            units = units if task_id == message.task_id else {}
            self.awards[message.kind] = (message.task_id, {**units, message.agent: message.units})

    def _see_process(self, event: ProcessEvent) -> None:
        self.processes[event.name] = event.kind
        if event.kind == "restarted":
            self.process_restarts[event.name] = self.process_restarts.get(event.name, 0) + 1
        if event.kind not in UNEVENTFUL:
            self.incidents.append(event.to_text())

    def _enter_round(self, summary: Mapping[str, Json], now: float) -> None:
        known = set(self.summary.get("lost", ()))
        self.incidents.extend(str(text) for text in cast(list[str], summary.get("lost", ())) if text not in known)
        if self.round_index is None or cast(int, summary["round_index"]) > self.round_index:  # told again: counted once
            skips = skips_of(summary)
            self.incidents.extend(text for text in skips if text not in self.skips)
            self.skips.update(skips)
        self.summary = summary
        self.phase = "training"
        self.recent.append((now, self.env_steps, int(cast(int, summary.get("updates_total", 0)))))
        while len(self.recent) > 2 and now - self.recent[0][0] > RATE_WINDOW_S:
            self.recent.popleft()
