from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.allocation import Bid, greedy, ratio_to_optimum, welfare
from swarm.errors import InvalidTransition

VALUES = st.floats(-10.0, 10.0, allow_nan=False)
BIDS = st.lists(st.tuples(st.lists(VALUES, min_size=0, max_size=4), st.floats(0.0, 5.0)), min_size=0, max_size=4).map(
    lambda raw: [Bid(f"a{n}", tuple(sorted(v, reverse=True)), cost) for n, (v, cost) in enumerate(raw)]
)


def best_by_trying_everything(bids: list[Bid], units: int) -> float:
    choices = itertools.product(*(range(len(bid.values) + 1) for bid in bids))
    sold = min(units, sum(len(bid.values) for bid in bids))
    return max(
        welfare(bids, dict(zip((bid.agent for bid in bids), choice, strict=True)))
        for choice in choices
        if sum(choice) == sold
    )


@given(bids=BIDS, units=st.integers(0, 8))
def test_greedy_is_optimal_for_non_increasing_marginals(bids: list[Bid], units: int) -> None:
    won = greedy(bids, units)
    assert sum(won.values()) == min(units, sum(len(bid.values) for bid in bids))
    assert welfare(bids, won) == pytest.approx(best_by_trying_everything(bids, units), abs=1e-9)
    assert ratio_to_optimum(bids, won) in (pytest.approx(1.0), 0.0)


@given(bids=BIDS, units=st.integers(0, 8), seed=st.integers(0, 100))
def test_allocation_does_not_depend_on_the_order_of_bids(bids: list[Bid], units: int, seed: int) -> None:
    shuffled = bids.copy()
    random.Random(seed).shuffle(shuffled)
    assert greedy(shuffled, units) == greedy(bids, units)


def test_equal_marginals_go_to_the_first_name() -> None:
    assert greedy([Bid("b", (1.0, 1.0)), Bid("a", (1.0,))], 2) == {"a": 1, "b": 1}
    assert greedy([Bid("b", (1.0, 1.0)), Bid("a", (1.0, 1.0))], 2) == {"a": 2}


def test_cost_is_paid_for_every_unit() -> None:
    assert greedy([Bid("a", (3.0, 3.0), cost=2.5), Bid("b", (1.0, 1.0))], 2) == {"b": 2}


def test_units_beyond_all_bids_stay_unsold() -> None:
    assert greedy([Bid("a", (1.0,)), Bid("b", ())], 5) == {"a": 1}
    assert greedy([], 5) == {}


def test_ratio_shows_what_greedy_misses_where_marginals_increase() -> None:
    bids = [Bid("a", (0.0, 10.0)), Bid("b", (1.0, 1.0))]
    assert ratio_to_optimum(bids, greedy(bids, 2)) == pytest.approx(0.2)


def test_two_bids_of_one_agent_are_refused() -> None:
    with pytest.raises(InvalidTransition, match="two bids of one agent"):
        greedy([Bid("a", (1.0,)), Bid("a", (2.0,))], 1)
