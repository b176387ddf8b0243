from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.config import WorldConfig
from agents.learning.aggregation import Aggregate, aggregate
from swarm.errors import ConfigError
from swarm.messages import Gradient

SHARED, SIZE = 3, 5
CONFIG = WorldConfig(max_gradient_norm=100.0)
ROBUST = ("clipped_mean", "trimmed_mean", "geometric_median")


def message(owner: str, array: np.ndarray, samples: int = 1, kind: str = "prediction", version: int = 1) -> Gradient:
    return Gradient(owner=owner, version=version, kind="member", num_samples=samples, arrays={kind: array})


def ones(value: float, rows: int = 2, size: int = SIZE) -> np.ndarray:
    return np.full((rows, size), value, np.float32)


def combined(*messages: Gradient, config: WorldConfig = CONFIG) -> Aggregate:
    return aggregate(messages, config, version=1, shared=SHARED, parameters=SIZE)


def test_the_shared_part_is_averaged_by_samples_and_each_head_keeps_its_own() -> None:
    found = combined(message("a", ones(1), 1), message("b", ones(3), 3))
    np.testing.assert_allclose(found.arrays["prediction/shared"], ones(2.5, size=SHARED))
    np.testing.assert_array_equal(found.arrays["prediction/head-0"], ones(1, size=SIZE - SHARED))
    np.testing.assert_array_equal(found.arrays["prediction/head-1"], ones(3, size=SIZE - SHARED))
    assert found.num_samples == 4
    assert found.skipped == ()


def test_applied_in_turn_all_gradients_are_kept_in_fixed_order() -> None:
    found = combined(message("a", ones(1)), message("b", ones(3)), config=replace(CONFIG, applied="in_turn"))
    assert found.arrays["prediction/shared"][:, 0].tolist() == [1, 3, 1, 3]
    assert found.arrays["prediction/head-1"].shape == (2, SIZE - SHARED)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (ones(np.nan), "not-finite"),
        (ones(np.inf), "not-finite"),
        (ones(1, size=SIZE - 1), "shape"),
        (ones(1, rows=0), "shape"),
        (np.ones(SIZE, np.float32), "shape"),
        (np.ones((2, SIZE), np.float64), "dtype"),
    ],
)
def test_a_bad_gradient_is_left_out_counted_and_named(bad: np.ndarray, reason: str) -> None:
    found = combined(message("a", ones(1)), message("evil", bad, 7), message("c", ones(3)))
    assert found.skipped == (f"evil:prediction:{reason}",)
    assert found.arrays["refused"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.arrays["prediction/shared"], ones(2, size=SHARED))
    assert "prediction/head-1" not in found.arrays
    assert found.num_samples == 2


def test_a_gradient_of_another_round_is_stale() -> None:
    found = combined(message("a", ones(1)), message("late", ones(9), version=0))
    assert found.skipped == ("late:prediction:stale",)
    np.testing.assert_array_equal(found.arrays["prediction/shared"], ones(1, size=SHARED))


def test_each_senders_norm_is_capped() -> None:
    capped = replace(CONFIG, max_gradient_norm=1.0)
    found = combined(message("a", ones(1e6)), message("b", ones(0.1)), config=capped)
    assert np.linalg.norm(found.arrays["prediction/shared"][0]) < 0.7
    assert np.linalg.norm(found.arrays["prediction/head-0"][0]) < 1.0
    np.testing.assert_array_equal(found.arrays["prediction/head-1"], ones(0.1, size=SIZE - SHARED))


def test_when_all_are_bad_nothing_is_applied() -> None:
    found = combined(message("a", ones(np.nan)))
    assert list(found.arrays) == ["refused"]
    assert found.skipped == ("a:prediction:not-finite",)


def test_kinds_are_kept_apart_and_may_be_absent() -> None:
    found = combined(message("a", ones(1)), message("b", ones(2), kind="meta"))
    np.testing.assert_array_equal(found.arrays["prediction/shared"], ones(1, size=SHARED))
    np.testing.assert_array_equal(found.arrays["meta/shared"], ones(2, size=SHARED))
    assert "meta/head-0" not in found.arrays


def test_members_with_fewer_gradients_are_averaged_where_present() -> None:
    found = combined(message("a", ones(1, rows=1)), message("b", ones(3, rows=2)))
    assert found.arrays["prediction/shared"][:, 0].tolist() == [2, 3]


def honest_gradients() -> list[np.ndarray]:
    """Four senders' noisy views of one gradient of ones."""
    rng = np.random.default_rng(0)
    return [(ones(1) + 0.1 * rng.standard_normal((2, SIZE))).astype(np.float32) for _ in range(4)]


ATTACKS = {"thousandfold": 1000.0, "sign-flipped": -1.0, "sign-flipped thousandfold": -1000.0}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ["mean", *ROBUST])
def test_one_wild_sender_of_five_moves_the_mean_but_not_a_robust_rule(rule: str, attack: str) -> None:
    """The cap on norms is set out of reach, so that the rule itself is what holds."""
    config = replace(CONFIG, aggregation=rule, max_gradient_norm=1e9)
    honest = honest_gradients()
    messages = [message(str(i), array) for i, array in enumerate(honest)]
    clean = combined(*messages, config=config).arrays["prediction/shared"]
    wild = message("evil", (ATTACKS[attack] * honest[0]).astype(np.float32))
    moved = np.abs(combined(*messages, wild, config=config).arrays["prediction/shared"] - clean).max()
    bound = 0.45 if rule == "clipped_mean" else 0.1
    if rule == "mean":
        assert moved > bound - 0.1 if attack == "sign-flipped" else moved > 100
    else:
        assert moved < bound


@pytest.mark.parametrize("rule", ["mean", *ROBUST])
def test_a_sender_of_nan_changes_nothing_under_any_rule(rule: str) -> None:
    config = replace(CONFIG, aggregation=rule)
    messages = [message(str(i), array) for i, array in enumerate(honest_gradients())]
    clean = combined(*messages, config=config).arrays["prediction/shared"]
    found = combined(*messages, message("evil", ones(np.nan)), config=config)
    np.testing.assert_array_equal(found.arrays["prediction/shared"], clean)


@pytest.mark.parametrize("rule", ROBUST)
def test_equal_gradients_of_any_weights_come_out_unchanged(rule: str) -> None:
    config = replace(CONFIG, aggregation=rule)
    found = combined(*(message(str(n), ones(2), samples=n) for n in (1, 5, 2)), config=config)
    np.testing.assert_allclose(found.arrays["prediction/shared"], ones(2, size=SHARED), rtol=1e-6)


def test_the_geometric_median_weighs_senders_by_their_samples() -> None:
    config = replace(CONFIG, aggregation="geometric_median")
    found = combined(message("a", ones(0), 1), message("b", ones(1), 3), message("c", ones(3), 1), config=config)
    np.testing.assert_allclose(found.arrays["prediction/shared"], ones(1, size=SHARED), atol=1e-3)


@pytest.mark.parametrize("rule", ["mean", *ROBUST])
@pytest.mark.parametrize("values", [(0, 0, 0, 0, 0), (0, 0, 0, 1, 2), (0, 1, 0, 1e-30, 0)])
def test_most_senders_of_zeros_give_something_finite_and_robust_rules_give_zero(
    rule: str, values: tuple[float, ...]
) -> None:
    config = replace(CONFIG, aggregation=rule)
    found = combined(*(message(str(n), ones(value)) for n, value in enumerate(values)), config=config)
    expected = np.mean(values) if rule == "mean" else values[3] / 3 if rule == "trimmed_mean" else 0
    np.testing.assert_allclose(found.arrays["prediction/shared"], ones(expected, size=SHARED), rtol=1e-6)
    assert found.skipped == ()


def test_the_geometric_median_leaves_most_senders_where_most_of_the_weight_is_elsewhere() -> None:
    config = replace(CONFIG, aggregation="geometric_median")
    senders = [message(str(n), ones(value), samples) for n, (value, samples) in enumerate([(0, 1)] * 3 + [(1, 9)] * 2)]
    found = combined(*senders, config=config)
    np.testing.assert_allclose(found.arrays["prediction/shared"], ones(1, size=SHARED), atol=1e-3)


def test_what_a_rule_makes_not_finite_is_refused_with_all_that_it_was_made_of() -> None:
    config = replace(CONFIG, aggregation="geometric_median")
    boast = 10**307  # weights of this size overflow when they are divided by distances
    found = combined(message("a", ones(1), boast), message("b", ones(1.001), boast), config=config)
    assert list(found.arrays) == ["refused"]
    assert found.arrays["refused"].tolist() == [1, 1]
    assert found.skipped == ("a:prediction:combined", "b:prediction:combined")
    assert found.num_samples == 0


def test_a_rule_that_compares_senders_cannot_be_applied_in_turn() -> None:
    with pytest.raises(ConfigError, match="use applied='averaged'"):
        WorldConfig(aggregation="trimmed_mean", applied="in_turn")
