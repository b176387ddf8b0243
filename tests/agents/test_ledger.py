"""Budget, standings and bid records."""

from __future__ import annotations

import json

import pytest

from agents.ledger import Ledger, Standing


def standing(value: float) -> Standing:
    return Standing(mean_return=value, distance_m=value / 20, round_index=3)


def evaluated() -> Ledger:
    first = Ledger(best="a").with_evaluation({"a": standing(10.0), "b": standing(20.0)})
    trained = first.with_lots({"a": 4, "b": 2}, {"a": 8.0, "b": 3.0})
    return trained.with_evaluation({"a": standing(500.0), "b": standing(30.0)})


def test_the_best_member_is_the_one_with_the_highest_evaluated_return() -> None:
    assert Ledger(best="a").with_evaluation({"a": standing(10.0), "b": standing(20.0)}).best == "b"
    assert evaluated().best == "a"


def test_a_bid_that_gained_more_than_its_peers_is_calibrated_up() -> None:
    calibration = evaluated().calibration("compute")
    assert calibration["a"] > calibration["b"]


def test_one_trained_member_alone_is_not_scored() -> None:
    first = Ledger(best="a").with_evaluation({"a": standing(10.0), "b": standing(20.0)})
    again = first.with_lots({"a": 4}, {"a": 8.0}).with_evaluation({"a": standing(500.0), "b": standing(30.0)})
    assert again.calibration("compute") == {}


def test_lots_add_up_between_evaluations_and_start_anew_after() -> None:
    ledger = Ledger(best="a").with_lots({"a": 4}, {"a": 8.0}).with_lots({"a": 1, "b": 2}, {"a": 1.0, "b": 2.0})
    assert ledger.lots_since == {"a": 5, "b": 2}
    assert evaluated().lots_since == {}


def test_a_ledger_survives_json() -> None:
    ledger = evaluated().with_outcome("meta", "learn", 1.0, 1.0)
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again == ledger
    assert again.reputation()["meta"]["learn"] == pytest.approx(ledger.reputation()["meta"]["learn"])
