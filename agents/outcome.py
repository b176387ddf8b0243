"""What a round came to: results of its contracts, the ledger after it, and its summary. Pure; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from agents.auctions import standardise
from agents.config import TeamConfig
from agents.ledger import Ledger, Standing
from agents.plan import NOMINAL, RoundPlan
from swarm.messages import Evaluation, Json


@dataclass(slots=True)
class RoundResult:
    """What the contracts of a round gave, gathered as they end.

    Attributes:
        files: staged file name → sha256.
        performers: contract → agent that performed it.
    """

    seats: tuple[str, ...] = ()
    lots: dict[str, int] = field(default_factory=dict)
    bids: dict[str, dict[str, float]] = field(default_factory=dict)
    votes: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    performers: dict[str, str] = field(default_factory=dict)
    updates: int = 0
    losses: dict[str, Json] = field(default_factory=dict)
    collected: dict[str, Mapping[str, Json]] = field(default_factory=dict)
    world: dict[str, Json] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    evaluation_steps: int = 0
    adaptation: Mapping[str, Json] | None = None


def settle(team: TeamConfig, ledger: Ledger, plan: RoundPlan, result: RoundResult, elapsed_s: float) -> Ledger:
    """Return the ledger after a round: budget spent, bids scored, standings and adaptations entered. Pure."""
    ledger = replace(
        ledger,
        env_steps=ledger.env_steps + plan.num_steps,
        evaluation_steps=ledger.evaluation_steps + result.evaluation_steps,
        updates=ledger.updates + result.updates,
        trained={
            name: ledger.trained.get(name, 0) + lots * team.rounds.lot for name, lots in sorted(result.lots.items())
        },
        wall_s=ledger.wall_s + elapsed_s,
    )
    rewards = cast(Mapping[str, float], result.collected[NOMINAL]["mean_rewards"])
    if result.bids and len(rewards) >= 2:
        for member, score in sorted(standardise(rewards).items()):
            ledger = ledger.with_outcome(member, "act", 1.0, max(0.1, 1.0 + 0.5 * score))
    if result.bids:
        predicted = {name: bid * result.lots[name] for name, bid in result.bids["compute"].items()}
        ledger = ledger.with_lots({name: n for name, n in result.lots.items() if n}, predicted)
    if result.evaluation is not None:
        distances = cast(Mapping[str, float], result.evaluation.details["distances"])
        resets = cast(Mapping[str, int], result.evaluation.details["resets"])
        ledger = ledger.with_evaluation(
            {
                name: Standing(
                    mean_return=score, distance_m=distances[name], round_index=plan.base, resets=resets[name]
                )
                for name, score in result.evaluation.scores.items()
            }
        )
    if result.adaptation is not None:
        accepted = bool(result.adaptation["accepted"])
        ledger = replace(
            ledger,
            adaptation_steps=ledger.adaptation_steps + cast(int, result.adaptation["steps"]),
            accepted=ledger.accepted + accepted,
            rejected=ledger.rejected + (not accepted),
        )
    return ledger


def summary_of(team: TeamConfig, ledger: Ledger, index: int, result: RoundResult | None) -> dict[str, Json]:
    """Return what is told and recorded of round ``index``; ``result`` is ``None`` for the initial checkpoint."""
    best = ledger.standings.get(ledger.best)
    summary: dict[str, Json] = {
        "round_index": index,
        "env_steps": ledger.env_steps,
        "budget_steps": team.budget_steps,
        "updates_total": ledger.updates,
        "wall_s": ledger.wall_s,
        "evaluation_steps": ledger.evaluation_steps,
        "adaptation_steps": ledger.adaptation_steps,
        "returns": {
            name: ledger.standings[name].mean_return if name in ledger.standings else None for name in team.members
        },
        "best": {
            "member": ledger.best,
            "return": best.mean_return if best else None,
            "distance_m": best.distance_m if best else None,
        },
        "reputation": ledger.reputation(),
        "lost": list(ledger.incidents),
        "adaptation": {"accepted": ledger.accepted, "rejected": ledger.rejected, "last": None},
    }
    if result is not None:
        summary |= {
            "updates": result.updates,
            "seats": {name: result.seats.count(name) for name in team.members},
            "lots": result.lots,
            "bids": result.bids,
            "performers": result.performers,
            "votes": result.votes,
            "losses": result.losses,
            "episodes": [episode for row in result.collected.values() for episode in cast(list[Json], row["episodes"])],
            "world": result.world,
        }
        if "curriculum" in result.collected.get(NOMINAL, {}):
            summary["curriculum"] = result.collected[NOMINAL]["curriculum"]
        if result.adaptation is not None:
            summary["adaptation"] = {
                "accepted": ledger.accepted,
                "rejected": ledger.rejected,
                "last": result.adaptation,
            }
    return summary
