from __future__ import annotations

import numpy as np
import pytest

from agents.learning.test_time import (
    ProbeAccount,
    accept_if_better,
    choose_arm,
    move_center,
    plan_life,
    propose_candidates,
    seat_arms,
)
from swarm.errors import ConfigError


def test_candidates_are_the_center_and_antithetic_pairs() -> None:
    center = np.arange(4, dtype=np.float32)
    candidates = propose_candidates(np.random.default_rng(0), center, 0.1, 8)
    assert candidates.shape == (8, 4)
    assert candidates.dtype == np.float32
    np.testing.assert_array_equal(candidates[0], center)
    np.testing.assert_allclose(candidates[1] + candidates[2], 2 * center, atol=1e-6)
    assert 0 < np.abs(candidates[1:] - center).max() < 0.6


def test_more_than_sixteen_dimensions_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 17 dimensions"):
        propose_candidates(np.random.default_rng(0), np.zeros(17, np.float32), 0.1, 8)


def test_climbing_finds_the_top_of_a_hill() -> None:
    rng, top = np.random.default_rng(0), np.linspace(-0.5, 0.5, 6)
    center = np.zeros(6, np.float32)
    for _ in range(60):
        candidates = propose_candidates(rng, center, 0.1, 9)
        center = move_center(center, candidates, -np.square(candidates - top).sum(axis=1).astype(np.float64))
    assert np.abs(center - top).max() < 0.15


def test_candidates_with_returns_that_are_not_finite_are_never_followed() -> None:
    center, candidates = np.zeros(2, np.float32), np.ones((4, 2), np.float32)
    np.testing.assert_array_equal(move_center(center, candidates, np.full(4, np.nan)), center)
    moved = move_center(center, np.diag([1, 2, 3, 4]).astype(np.float32), np.array([np.nan, 5, 4, np.nan]))
    assert moved[0] == moved[3] == 0


def test_a_clear_gain_is_accepted_and_a_loss_rejected() -> None:
    low, high = np.array([100.0, 110, 90, 105]), np.array([200.0, 210, 190, 205])
    assert accept_if_better(low, high).accepted
    rejected = accept_if_better(high, low)
    assert not rejected.accepted
    assert "does not exceed" in rejected.reason


def test_a_gain_within_the_noise_is_rejected() -> None:
    before, after = np.array([0.0, 200, 50, 150]), np.array([10.0, 210, 60, 160])
    decision = accept_if_better(before, after)
    assert decision.gain == 10
    assert not decision.accepted
    assert accept_if_better(before, after, margin_in_errors=0.0).accepted


def test_equal_returns_are_rejected() -> None:
    same = np.array([5.0, 5.0])
    assert not accept_if_better(same, same).accepted


def test_a_return_that_is_not_finite_is_rejected() -> None:
    assert not accept_if_better(np.array([1.0]), np.array([np.nan])).accepted


def test_re_evaluation_without_episodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 0 and 2 re-evaluation episodes"):
        accept_if_better(np.zeros(0), np.zeros(2))


def test_probes_are_counted() -> None:
    account = ProbeAccount().add(8, 1_600).add(4, 400)
    assert (account.episodes, account.steps) == (12, 2_000)


@pytest.mark.parametrize(
    ("level", "purposes"),
    [
        ("context", ("live", "live", "live")),
        ("inner", ("live", "live", "live")),
        ("probe", ("probe", "live", "live")),
        ("climb", ("probe", "climb", "climb")),
    ],
)
def test_every_level_spends_its_episodes_on_what_it_adds(level: str, purposes: tuple[str, ...]) -> None:
    assert plan_life(level, 3) == purposes


def test_too_few_episodes_and_unknown_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="level climb takes at least 2 episodes, got 1"):
        plan_life("climb", 1)
    with pytest.raises(ConfigError, match="unknown level 'magic'"):
        plan_life("magic", 3)


def test_every_arm_has_a_seat_and_the_incumbent_not_fewer_than_others() -> None:
    assert seat_arms(5, 8) == (0, 1, 2, 3, 4, 0, 1, 2)
    assert seat_arms(1, 8) == (0,) * 8
    with pytest.raises(ConfigError, match="got 9 arms for 8 seats"):
        seat_arms(9, 8)


def test_the_incumbent_keeps_ties_and_returns_that_are_not_finite_never_win() -> None:
    assert choose_arm((0, 1, 2, 0), np.array([1.0, 2.0, 0.0, 3.0])) == 0
    assert choose_arm((0, 1, 2, 0), np.array([1.0, 2.5, 0.0, 3.0])) == 1
    assert choose_arm((0, 1), np.array([-5.0, np.nan])) == 0
    assert choose_arm((0, 1), np.array([np.nan, -5.0])) == 1
