"""What the team knows about its run, as of one committed round. Pure data with a JSON form; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Self, TypeVar, cast

from agents.auctions import standardise
from swarm.bidding import BidRecord
from swarm.messages import Json

NumberT = TypeVar("NumberT", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a member did in its latest evaluation (selection episodes, never the reported ones).

    Attributes:
        round_index: version of the member that was evaluated.
        resets: how often its networks had been drawn afresh.
    """

    mean_return: float
    distance_m: float
    round_index: int
    resets: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Budget, standings and bid records; replaced, never changed, once a round.

    Attributes:
        env_steps: training environment steps so far, summed over all members and streams.
        evaluation_steps: environment steps of evaluations, not part of the budget.
        adaptation_steps: environment steps of test-time probes, not part of the budget.
        updates: SAC updates so far, summed over members; ``trained``: the same per member.
        standings: latest evaluation per member.
        lots_since: lots won since the latest evaluation.
        predicted_since: sum of the winning bids for compute since then.
        records: agent → kind of work → bid record.
        best: the member with the highest evaluated return; the first one before any evaluation.
        accepted: adaptations accepted so far.
        rejected: adaptations rejected so far.
        incidents: what was lost, restarted or repeated, in order.
    """

    env_steps: int = 0
    evaluation_steps: int = 0
    adaptation_steps: int = 0
    updates: int = 0
    trained: Mapping[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    standings: Mapping[str, Standing] = field(default_factory=dict)
    lots_since: Mapping[str, int] = field(default_factory=dict)
    predicted_since: Mapping[str, float] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, BidRecord]] = field(default_factory=dict)
    best: str = ""
    accepted: int = 0
    rejected: int = 0
    incidents: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """JSON-like form."""
        data: dict[str, Json] = asdict(self)
        data["records"] = {
            agent: {kind: record.to_json() for kind, record in kinds.items()} for agent, kinds in self.records.items()
        }
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Self:
        """Rebuild from `to_json`."""
        values = dict(data)
        records = cast(Mapping[str, Mapping[str, Mapping[str, Json]]], values.pop("records"))
        standings = cast(Mapping[str, Mapping[str, float]], values.pop("standings"))
        values["incidents"] = tuple(cast(list[str], values["incidents"]))
        return cls(
            **values,  # type: ignore[arg-type]
            standings={name: Standing(**row) for name, row in standings.items()},  # type: ignore[arg-type]
            records={
                agent: {kind: BidRecord.from_json(row) for kind, row in kinds.items()}
                for agent, kinds in records.items()
            },
        )

    def shares(self, members: Sequence[str]) -> dict[str, float]:
        """Return each member's share of all updates so far; equal before the first."""
        total = sum(self.trained.values())
        if total == 0:
            return dict.fromkeys(members, 1.0 / len(members))
        return {name: self.trained.get(name, 0) / total for name in members}

    def calibration(self, kind: str) -> dict[str, float]:
        """Return realised / predicted per agent for ``kind``, kept within [0.5, 2]."""
        return {
            agent: min(2.0, max(0.5, kinds[kind].calibration)) for agent, kinds in self.records.items() if kind in kinds
        }

    def reputation(self) -> dict[str, dict[str, float]]:
        """Return reputation in [0, 1] per agent and kind of work."""
        return {
            agent: {kind: record.reputation for kind, record in sorted(kinds.items())}
            for agent, kinds in sorted(self.records.items())
        }

    def with_outcome(self, agent: str, kind: str, predicted: float, realised: float) -> Ledger:
        """Return the ledger after ``agent`` promised ``predicted`` and delivered ``realised`` for ``kind``."""
        kinds = dict(self.records.get(agent, {}))
        kinds[kind] = kinds.get(kind, BidRecord()).update(predicted, realised)
        return replace(self, records={**self.records, agent: kinds})

    def with_lots(self, lots: Mapping[str, int], predicted: Mapping[str, float]) -> Ledger:
        """Return the ledger after members won ``lots`` with bids that sum to ``predicted``."""
        return replace(
            self,
            lots_since=_added(self.lots_since, lots),
            predicted_since=_added(self.predicted_since, predicted),
        )

    def with_evaluation(self, standings: Mapping[str, Standing]) -> Ledger:
        """Return the ledger after an evaluation: the winning bids since the last one meet what they were worth.

        A member's prediction is its mean winning bid relative to the team's; what was realised is that prediction
        scaled by its gain in return per lot, standardised over the members that were trained.
        """
        ledger = self
        trained = {name: n for name, n in self.lots_since.items() if n > 0 and name in self.standings}
        if len(trained) >= 2:
            gains = {
                name: (standings[name].mean_return - self.standings[name].mean_return) / n
                for name, n in trained.items()
            }
            mean_bid = fmean(self.predicted_since[name] / n for name, n in trained.items())
            for name, gain in sorted(standardise(gains).items()):
                predicted = self.predicted_since[name] / trained[name] / mean_bid
                ledger = ledger.with_outcome(name, "compute", predicted, predicted * max(0.1, 1.0 + 0.5 * gain))
        best = max(sorted(standings), key=lambda name: standings[name].mean_return)
        return replace(
            ledger,
            standings=dict(standings),
            lots_since={},
            predicted_since={},
            best=best,
        )


def _added(sums: Mapping[str, NumberT], more: Mapping[str, NumberT]) -> dict[str, NumberT]:
    return {**sums, **{name: sums[name] + value if name in sums else value for name, value in more.items()}}
