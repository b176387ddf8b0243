"""Strengths, marginal values, seats and lots."""

from __future__ import annotations

import pytest

from agents.auctions import (
    capacity_of,
    even_lots,
    marginal_values,
    rotating_seats,
    seat_list,
    standardise,
    strengths,
    vote_scores,
)

EVEN = {"a": 0.5, "b": 0.5}
VOTES = {
    "meta": {"a": 10.0, "b": 20.0, "c": 30.0},
    "state": {"a": 1.0, "b": 2.0, "c": 3.0},
}


def test_votes_do_not_depend_on_the_scale_of_a_judge() -> None:
    scores = vote_scores(VOTES)
    assert scores["c"] > scores["b"] > scores["a"]
    assert scores["b"] == pytest.approx(0.0)


def test_equal_votes_give_equal_strengths() -> None:
    flat = {"meta": {"a": 5.0, "b": 5.0}}
    assert strengths(flat, EVEN, {}, 1.0) == {"a": 1.0, "b": 1.0}


def test_disagreement_of_judges_raises_a_score() -> None:
    torn = {"x": {"a": 0.0, "b": 1.0, "c": 2.0}, "y": {"a": 2.0, "b": 1.0, "c": 0.0}}
    scores = vote_scores(torn)
    assert scores["a"] == scores["c"] > scores["b"]


def test_members_are_judged_by_judges_of_their_own_discount_where_there_are_any() -> None:
    torn = {"a": {"a": 0.0, "b": 1.0, "c": 2.0}, "b": {"a": 2.0, "b": 1.0, "c": 0.0}}
    scores = vote_scores(torn, {"a": 0.99, "b": 0.97, "c": 0.9})
    assert scores["a"] < 0
    assert scores["c"] == vote_scores(torn)["c"]
    assert vote_scores(torn, dict.fromkeys("abc", 0.99)) == vote_scores(torn)


def test_experience_and_calibration_move_strength() -> None:
    even = dict.fromkeys("abc", 1 / 3)
    plain = strengths(VOTES, even, {}, 1.0)
    experienced = strengths(VOTES, {"a": 0.8, "b": 0.1, "c": 0.1}, {}, 1.0)
    calibrated = strengths(VOTES, even, {"b": 2.0}, 1.0)
    assert experienced["a"] > plain["a"]
    assert max(experienced, key=lambda name: experienced[name]) == "a"
    assert calibrated["b"] == pytest.approx(2.0 * plain["b"])


def test_no_concentration_ignores_votes_and_experience() -> None:
    assert set(strengths(VOTES, {"a": 0.8, "b": 0.1, "c": 0.1}, {}, 0.0).values()) == {1.0}


def test_standardised_scores_have_zero_mean() -> None:
    assert sum(standardise({"a": 3.0, "b": 7.0, "c": 20.0}).values()) == pytest.approx(0.0)


def test_marginal_values_never_increase() -> None:
    values = marginal_values(2.0, 5)
    assert list(values) == sorted(values, reverse=True)
    assert values[0] == 2.0


@pytest.mark.parametrize(("units", "share", "members"), [(20, 0.4, 5), (4, 0.1, 5), (1, 0.01, 1), (7, 0.0, 3)])
def test_capacities_always_suffice_to_sell_all_units(units: int, share: float, members: int) -> None:
    assert capacity_of(units, share, members) * members >= units


def test_seats_are_listed_in_member_order_and_must_fill_the_block() -> None:
    assert seat_list({"b": 1, "a": 2}, 3) == ("a", "a", "b")
    with pytest.raises(ValueError, match="2 seats were won"):
        seat_list({"a": 2}, 3)


def test_rotating_seats_are_fair_over_a_full_turn() -> None:
    members = ("a", "b", "c")
    seats = [seat for turn in range(3) for seat in rotating_seats(members, 8, turn)]
    assert {seats.count(name) for name in members} == {8}


def test_even_lots_add_up_and_rotate_the_remainder() -> None:
    members = ("a", "b", "c")
    lots = [even_lots(members, 7, turn) for turn in range(3)]
    assert all(sum(row.values()) == 7 for row in lots)
    assert {sum(row[name] for row in lots) for name in members} == {7}
