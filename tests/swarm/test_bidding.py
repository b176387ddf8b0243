from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.bidding import BidRecord
from swarm.errors import CheckpointError, InvalidTransition

PAIRS = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), max_size=30)


def scored(*pairs: tuple[float, float]) -> BidRecord:
    record = BidRecord()
    for predicted, realised in pairs:
        record = record.update(predicted, realised)
    return record


def test_means_count_and_regret_are_those_of_the_awards() -> None:
    record = scored((4.0, 2.0), (2.0, 3.0))
    assert (record.count, record.mean_predicted, record.mean_realised) == (2, 3.0, 2.5)
    assert record.mean_error == 1.5
    assert record.regret == 2.0


def test_update_leaves_the_old_record_alone() -> None:
    record = BidRecord()
    record.update(1.0, 2.0)
    assert record == BidRecord()


def test_new_record_trusts_bids_half_and_does_not_correct_them() -> None:
    assert (BidRecord().calibration, BidRecord().reputation) == (1.0, 0.5)


def test_calibration_moves_from_one_to_realised_over_predicted() -> None:
    factors = [scored(*[(2.0, 1.0)] * count).calibration for count in (1, 4, 100, 10_000)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == pytest.approx(0.9)
    assert factors[-1] == pytest.approx(0.5, abs=1e-3)


def test_honest_bidder_gains_reputation_and_a_boaster_loses_it() -> None:
    assert scored(*[(1.0, 1.0)] * 50).reputation > 0.95
    assert scored(*[(100.0, 0.1)] * 50).reputation < 0.1


@given(pairs=PAIRS)
def test_reputation_and_calibration_stay_in_range(pairs: list[tuple[float, float]]) -> None:
    record = scored(*pairs)
    assert 0.0 <= record.reputation <= 1.0
    assert 0.0 <= record.calibration <= 10.0
    assert record.regret >= 0.0


@given(pairs=PAIRS)
def test_record_survives_json_exactly(pairs: list[tuple[float, float]]) -> None:
    record = scored(*pairs)
    assert BidRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    "fault", [{"regret": "much"}, {"count": -1}, {"count": True}, {"mean_error": float("nan")}, {"mean_realised": None}]
)
def test_damaged_record_is_refused(fault: dict[str, float]) -> None:
    with pytest.raises(CheckpointError, match=f"bid record has {next(iter(fault))}="):
        BidRecord.from_json({**BidRecord().to_json(), **fault})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_value_is_not_scored(value: float) -> None:
    with pytest.raises(InvalidTransition, match="expected finite numbers"):
        BidRecord().update(1.0, value)
