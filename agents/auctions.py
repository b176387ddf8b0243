"""How members bid: strengths from votes and evaluated returns, marginal values, seats and lots. Pure; no torch.

A member's *strength* is positive; its n-th unit is worth strength / n. Greedy allocation of such bids is the method of
D'Hondt: units in proportion to strength, with the best member first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

OPTIMISM = 0.5
"""Weight of the judges' disagreement in a member's score (optimism in the face of uncertainty)."""

INCUMBENCY = 3.0
"""Score of a member with twice the average experience, in standard deviations of votes."""


def standardise(scores: Mapping[str, float]) -> dict[str, float]:
    """Return (score − mean) / standard deviation over members; all zero where they do not differ."""
    mean, spread = fmean(scores.values()), pstdev(scores.values())
    if spread < 1e-9 * max(1.0, abs(mean)):
        return dict.fromkeys(scores, 0.0)
    return {name: (score - mean) / spread for name, score in scores.items()}


def vote_scores(
    votes: Mapping[str, Mapping[str, float]], discounts: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return each member's mean standardised vote plus `OPTIMISM` times the judges' disagreement.

    Args:
        votes: judge → member → that judge's critic value of the member's actions, in the judge's own scale.
        discounts: of members and judges, where they differ: a member is judged by judges of its own discount, where
            there are any.
    """
    members = sorted(next(iter(votes.values())))
    standardised = {judge: standardise(votes[judge]) for judge in sorted(votes)}
    scores = {}
    for member in members:
        judges = [judge for judge in standardised if discounts and discounts[judge] == discounts[member]]
        values = [standardised[judge][member] for judge in judges or standardised]
        scores[member] = fmean(values) + OPTIMISM * pstdev(values)
    return scores


def strengths(
    votes: Mapping[str, Mapping[str, float]],
    shares: Mapping[str, float],
    calibration: Mapping[str, float],
    concentration: float,
    discounts: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the positive strength of each member.

    Votes decide who leads first; after that, experience weighs more than votes, because a critic that had thousands of
    updates gains more from the next lot than one that would have to begin, and because who acts should not change with
    every noisy vote.

    Args:
        votes: as for `vote_scores`.
        shares: share of all updates that each member has had, in sum 1.
        calibration: what the member's earlier bids were worth, realised / predicted; 1 where unknown.
        concentration: how strongly units follow the scores; 0 leaves only the calibration.
        discounts: as for `vote_scores`.
    """
    scores = vote_scores(votes, discounts)
    return {
        name: math.exp(max(-8.0, min(8.0, concentration * (score + INCUMBENCY * (shares[name] * len(scores) - 1.0)))))
        * calibration.get(name, 1.0)
        for name, score in scores.items()
    }


def marginal_values(strength: float, units: int) -> tuple[float, ...]:
    """Return the values of the first ``units`` units: the n-th is worth strength / n."""
    return tuple(strength / n for n in range(1, units + 1))


def capacity_of(units: int, max_share: float, num_members: int) -> int:
    """Return how many of ``units`` one member may win: its share, but never so few that units stay unsold."""
    return max(math.ceil(units * max_share), math.ceil(units / num_members))


def seat_list(units: Mapping[str, int], num_seats: int) -> tuple[str, ...]:
    """Return who acts in each environment of the block: members in name order, as many seats as they won."""
    seats = [name for name in sorted(units) for _ in range(units[name])]
    if len(seats) != num_seats:
        raise ValueError(f"{len(seats)} seats were won, the block has {num_seats}")
    return tuple(seats)


def rotating_seats(members: Sequence[str], num_seats: int, turn: int) -> tuple[str, ...]:
    """Return seats by turns, for members that do not exchange anything: over time all act equally often."""
    return tuple(members[(seat + turn) % len(members)] for seat in range(num_seats))


def even_lots(members: Sequence[str], lots: int, turn: int) -> dict[str, int]:
    """Return ``lots`` spread evenly; the remainder goes round with ``turn``."""
    share, rest = divmod(lots, len(members))
    extra = {members[(turn + i) % len(members)] for i in range(rest)}
    return {name: share + (name in extra) for name in members}
