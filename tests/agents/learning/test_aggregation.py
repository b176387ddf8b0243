from __future__ import annotations

import numpy as np
import pytest

from agents.learning.aggregation import aggregate
from swarm.messages import Gradient


def message(owner: str, array: np.ndarray, samples: int = 1, kind: str = "prediction") -> Gradient:
    return Gradient(owner=owner, version=1, kind="member", num_samples=samples, arrays={kind: array})


def ones(value: float, rows: int = 2, size: int = 3) -> np.ndarray:
    return np.full((rows, size), value, np.float32)


def test_gradients_are_averaged_by_their_samples() -> None:
    found = aggregate([message("a", ones(1), 1), message("b", ones(3), 3)], 100)
    np.testing.assert_allclose(found.arrays["prediction"], ones(2.5))
    assert found.num_samples == 4
    assert found.skipped == ()


def test_applied_in_turn_all_gradients_are_kept_in_fixed_order() -> None:
    found = aggregate([message("a", ones(1)), message("b", ones(3))], 100, average=False)
    assert found.arrays["prediction"][:, 0].tolist() == [1, 3, 1, 3]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (ones(np.nan), "not-finite"),
        (ones(np.inf), "not-finite"),
        (ones(1, size=4), "shape"),
        (np.ones(3, np.float32), "shape"),
        (np.ones((2, 3), np.float64), "dtype"),
    ],
)
def test_a_bad_gradient_is_left_out_and_named(bad: np.ndarray, reason: str) -> None:
    found = aggregate([message("a", ones(1)), message("evil", bad, 7), message("c", ones(3))], 100)
    assert found.skipped == (f"evil:prediction:{reason}",)
    np.testing.assert_allclose(found.arrays["prediction"], ones(2))
    assert found.num_samples == 2


def test_each_senders_norm_is_capped() -> None:
    found = aggregate([message("a", ones(1e6)), message("b", ones(0.1))], 1.0)
    assert np.linalg.norm(found.arrays["prediction"][0]) < 0.7
    alone = aggregate([message("b", ones(0.1))], 1.0)
    np.testing.assert_array_equal(alone.arrays["prediction"], ones(0.1))


def test_when_all_are_bad_nothing_is_applied() -> None:
    found = aggregate([message("a", ones(np.nan))], 1.0, parameters=3)
    assert found.arrays == {}
    assert found.skipped == ("a:prediction:not-finite",)


def test_kinds_are_kept_apart_and_may_be_absent() -> None:
    found = aggregate([message("a", ones(1)), message("b", ones(2), kind="meta")], 100)
    np.testing.assert_array_equal(found.arrays["prediction"], ones(1))
    np.testing.assert_array_equal(found.arrays["meta"], ones(2))


def test_members_with_fewer_gradients_are_averaged_where_present() -> None:
    found = aggregate([message("a", ones(1, rows=1)), message("b", ones(3, rows=2))], 100)
    assert found.arrays["prediction"][:, 0].tolist() == [2, 3]
