"""What a runner tells while a run goes on, and what a run ends with. The live view and all recorders are observers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, cast

from swarm.bus import BusStatistics, Received
from swarm.messages import Json

ProcessEventKind = Literal["started", "ended", "exited", "restarted", "gave_up"]
"""``ended``: its work was done; ``exited``: it should not have."""

UNEVENTFUL: Final = ("started", "ended")
"""Kinds of process events that are no incident."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEvent:
    """Something that the supervisor did or saw.

    Attributes:
        name: of the process: a node, the broker or the bridge.
        detail: why, for people.
    """

    name: str
    kind: ProcessEventKind
    detail: str = ""

    def to_text(self) -> str:
        """In words, for people."""
        return f"{self.name} {self.kind.replace('_', ' ')}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        run_dir: where everything is.
        status: ``done``, or ``failed`` with a ``reason``. An interrupted run has no outcome; it raises.
        round_index: newest committed round.
        env_steps: training environment steps committed.
        wall_s: wall time of this session.
        weights_digest: sha256 over the newest checkpoint's weights; equal digests mean equal bits.
        reason: why it failed.
        user_error: it failed because of something that the user wrote or named.
    """

    run_dir: Path
    status: Literal["done", "failed"]
    round_index: int
    env_steps: int
    wall_s: float
    weights_digest: str
    reason: str = ""
    user_error: bool = False

    def to_json(self) -> dict[str, Json]:
        """JSON-like form, for ``--json``."""
        return {**asdict(self), "run_dir": str(self.run_dir)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOutcome:
    """Deterministic episodes of one member's policy.

    Attributes:
        member: whose policy acted.
        round_index: version of its weights.
        returns: undiscounted return per episode; in a run on several tasks, per trial, the mean over its episodes, as
            the following ones.
        distances: forward distance per episode, in metres.
        lengths: steps per episode.
        curves: in a run on several tasks, the return of each episode of each trial.
    """

    member: str
    round_index: int
    returns: tuple[float, ...]
    distances: tuple[float, ...]
    lengths: tuple[int, ...]
    curves: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationOutcome:
    """One test-time adaptation, with its accept-if-better decision.

    Attributes:
        member: whose policy was adapted.
        shift: what was changed against the trained task.
        accepted: whether the adapted policy was better on the re-evaluation.
        reason: one line on the decision.
        before: returns of the unadapted policy on the episodes of the re-evaluation.
        after: returns of the adapted one.
        curve: returns of the episodes lived before it, episode by episode, of all environments.
        probes: episodes used, re-evaluation included.
        steps: environment steps used.
        saved: path of the saved policy, if it was to be saved and was accepted.
    """

    member: str
    shift: Mapping[str, Json]
    level: str
    online: bool
    accepted: bool
    reason: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    curve: tuple[tuple[float, ...], ...]
    probes: int
    steps: int
    saved: str | None = None


def skips_of(summary: Mapping[str, Json]) -> Counter[str]:
    """Return what a round left out of the learning, or put back, in words, and how often."""
    found: Counter[str] = Counter()
    losses = cast(Mapping[str, Mapping[str, float]], summary.get("losses") or {})
    for name, metrics in losses.items():
        if metrics.get("skipped"):
            found[f"an update of member {name} was skipped: not finite"] += int(metrics["skipped"])
    world = cast(Mapping[str, Sequence[str]], summary.get("world") or {})
    for refused in world.get("skipped", ()):
        owner, kind, reason = refused.split(":", 2)
        found[f"the {kind} gradients of {owner} were refused: {reason}"] += 1
    found.update(world.get("troubles", ()))
    return found


class Observer(Protocol):
    """Hears of a run on the event loop; methods return at once and never raise."""

    def on_phase(self, text: str) -> None:
        """Startup and closing work, a few words each: ``starting the broker``."""
        ...

    def on_message(self, received: Received) -> None:
        """A message that the launcher's bus received."""
        ...

    def on_process(self, event: ProcessEvent) -> None:
        """A process started, ended, was restarted or given up."""
        ...

    def on_statistics(self, statistics: BusStatistics) -> None:
        """Counts of the launcher's bus, about once a second and once at the end."""
        ...

    def on_round(self, summary: Mapping[str, Json]) -> None:
        """A round was committed (`swarm.messages.RoundCommitted.summary`)."""
        ...

    def on_end(self, outcome: RunOutcome) -> None:
        """The run ended by itself."""
        ...


class Observers:
    """Several observers as one, told in order."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def on_phase(self, text: str) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.on_phase(text)

    def on_message(self, received: Received) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.on_message(received)

    def on_process(self, event: ProcessEvent) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.on_process(event)

    def on_statistics(self, statistics: BusStatistics) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.on_statistics(statistics)

    def on_round(self, summary: Mapping[str, Json]) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.on_round(summary)

    def on_end(self, outcome: RunOutcome) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.on_end(outcome)
