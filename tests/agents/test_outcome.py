"""What a round does to the ledger, and what is told of it."""

from __future__ import annotations

from dataclasses import replace

from agents.config import RoundConfig, TeamConfig
from agents.ledger import Ledger
from agents.outcome import RoundResult, settle, summary_of
from agents.plan import plan_round
from swarm.messages import Evaluation

TEAM = TeamConfig(rounds=RoundConfig(steps=200, random_steps=0, shifted_every=0, evaluate_every=0, adapt_every=0))
PLAN = plan_round(TEAM, 1, 0)


def round_result() -> RoundResult:
    result = RoundResult(seats=("state",) * 4 + ("meta",) * 4, lots={"state": 12, "meta": 8}, updates=1000)
    result.bids = {"act": {"state": 2.0, "meta": 1.5}, "compute": {"state": 3.0, "meta": 2.0}}
    result.performers = {"state": "state", "coordinator": "meta"}
    result.collected = {"nominal": {"mean_rewards": {"state": 1.0, "meta": -1.0}, "episodes": []}}
    return result


def test_a_round_spends_budget_and_remembers_who_was_trained() -> None:
    ledger = settle(TEAM, Ledger(best="state"), PLAN, round_result(), 2.5)
    assert (ledger.env_steps, ledger.updates, ledger.wall_s) == (200, 1000, 2.5)
    assert ledger.trained == {"meta": 400, "state": 600}
    assert ledger.shares(("state", "meta"))["state"] == 0.6


def test_who_acted_better_than_its_peers_gains_calibration() -> None:
    calibration = settle(TEAM, Ledger(best="state"), PLAN, round_result(), 0.0).calibration("act")
    assert calibration["state"] > calibration["meta"]


def test_evaluations_and_adaptations_are_entered_and_counted_apart_from_the_budget() -> None:
    result = round_result()
    scores = dict.fromkeys(TEAM.members, 1.0) | {"meta": 7.0}
    result.evaluation = Evaluation(
        judge="environment",
        round_index=0,
        kind="return-selection",
        scores=scores,
        details={"distances": dict.fromkeys(scores, 0.5), "resets": dict.fromkeys(scores, 0) | {"meta": 2}},
    )
    result.evaluation_steps = 8000
    result.adaptation = {"accepted": False, "steps": 640}
    ledger = settle(TEAM, Ledger(best="state"), PLAN, result, 0.0)
    assert ledger.best == "meta"
    assert (ledger.standings["meta"].resets, ledger.standings["state"].resets) == (2, 0)
    assert (ledger.env_steps, ledger.evaluation_steps, ledger.adaptation_steps) == (200, 8000, 640)
    assert (ledger.accepted, ledger.rejected) == (0, 1)


def test_a_summary_counts_seats_per_member_and_names_incidents() -> None:
    ledger = replace(Ledger(best="state"), incidents=("round 1 was repeated",))
    summary = summary_of(TEAM, ledger, 1, round_result())
    assert summary["seats"] == dict.fromkeys(TEAM.members, 0) | {"state": 4, "meta": 4}
    assert summary["lost"] == ["round 1 was repeated"]
    assert "seats" not in summary_of(TEAM, ledger, 0, None)
