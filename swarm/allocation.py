"""Who gets how many units: pure strategies of the auction. An `Allocator` maps bids and units to units per agent."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from swarm.errors import InvalidTransition


@dataclass(frozen=True, slots=True)
class Bid:
    """What each further unit is worth to ``agent``.

    Attributes:
        values: marginal values, finite and non-increasing; their number is the most units that the agent takes.
        cost: cost of one unit, in the same currency.
    """

    agent: str
    values: tuple[float, ...]
    cost: float = 0.0


Allocator: TypeAlias = Callable[[Sequence[Bid], int], dict[str, int]]
"""Units won by each agent that wins any; never more than asked for, in all or by one agent."""


def greedy(bids: Sequence[Bid], units: int) -> dict[str, int]:
    """Give each unit in turn to the best remaining ``value - cost``; ties go to the first name.

    Optimal because marginals do not increase: the best ``units`` marginals are each agent's first ones. A unit is sold
    even at a negative net value; who does not want it leaves it out of ``values``.

    Args:
        bids: one per agent, in any order (the result does not depend on it).
        units: how many to sell; what nobody bids for stays unsold.

    Raises:
        InvalidTransition: two bids of one agent.
    """
    by_agent = {bid.agent: bid for bid in bids}
    if len(by_agent) != len(bids):
        raise InvalidTransition("got two bids of one agent in one auction, expected one; drop the later answer first")
    heap = [(bid.cost - bid.values[0], bid.agent) for bid in bids if bid.values]
    heapq.heapify(heap)
    won: dict[str, int] = {}
    for _ in range(units):
        if not heap:
            break
        _, agent = heapq.heappop(heap)
        taken = won[agent] = won.get(agent, 0) + 1
        bid = by_agent[agent]
        if taken < len(bid.values):
            heapq.heappush(heap, (bid.cost - bid.values[taken], agent))
    return dict(sorted(won.items()))


def welfare(bids: Sequence[Bid], won: Mapping[str, int]) -> float:
    """Sum of value − cost over all units won."""
    return sum(sum(bid.values[: won.get(bid.agent, 0)]) - bid.cost * won.get(bid.agent, 0) for bid in bids)


def ratio_to_optimum(bids: Sequence[Bid], won: Mapping[str, int]) -> float:
    """Welfare of ``won`` over the best welfare for as many units; 1 is optimal.

    The optimum is found by dynamic programming over agents, so it also holds for bids whose marginals increase. Where
    the optimum is not positive a ratio says nothing: then 1 for an optimal allocation, else 0.
    """
    best = _best_welfare(bids, sum(won.values()))
    got = welfare(bids, won)
    if best <= 0.0:
        return 1.0 if got >= best else 0.0
    return got / best


def _best_welfare(bids: Sequence[Bid], units: int) -> float:
    best = [0.0] + [float("-inf")] * units
    for bid in bids:
        net = [0.0]
        for value in bid.values[:units]:
            net.append(net[-1] + value - bid.cost)
        best = [max(best[sold - own] + net[own] for own in range(min(sold + 1, len(net)))) for sold in range(units + 1)]
    return best[units]
