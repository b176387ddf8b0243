"""What a round consists of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.config import MEMBERS, RoundConfig, TeamConfig
from agents.plan import SHARED, finished, fixed_lots, fixed_seats, group_of, plan_round, training_homes
from swarm.errors import ConfigError

TEAM = TeamConfig(rounds=RoundConfig(steps=200, random_steps=1000, shifted_every=3, evaluate_every=4, adapt_every=5))


def test_nobody_trains_or_is_evaluated_while_actions_are_random() -> None:
    plan = plan_round(TEAM, 4, 600)
    assert plan.random
    assert plan.lots == 0
    assert not plan.evaluate


def test_the_first_round_is_random_whatever_the_setting_since_there_are_no_rows() -> None:
    eager = replace(TEAM, rounds=replace(TEAM.rounds, random_steps=0))
    assert plan_round(eager, 1, 0).random
    assert not plan_round(eager, 2, 200).random


def test_lots_follow_the_steps_of_all_streams() -> None:
    plain, shifted = plan_round(TEAM, 7, 2000), plan_round(TEAM, 9, 2000)
    assert plain.lots == 20
    assert shifted.steps == {"nominal": 200, "shifted": 400}
    assert shifted.lots == 60


def test_the_budget_is_never_exceeded_and_always_spent() -> None:
    env_steps, index = 0, 0
    while not finished(TEAM, env_steps):
        index += 1
        plan = plan_round(TEAM, index, env_steps)
        assert plan.num_steps > 0
        env_steps += plan.num_steps
    assert 0 <= TEAM.budget_steps - env_steps < 8


def test_modes_differ_in_who_shares_a_world_model() -> None:
    alone = replace(TEAM, mode="independent")
    assert plan_round(TEAM, 1, 0).groups == {SHARED: MEMBERS}
    assert group_of(alone, "meta") == "meta"
    assert not plan_round(alone, 1, 0).exchange


def test_without_an_adaptation_agent_there_is_no_trial() -> None:
    assert plan_round(TEAM, 5, 2000).adapt
    assert not plan_round(replace(TEAM, agents=("coordinator", "environment")), 5, 2000).adapt


def test_fixed_seats_and_lots_are_even() -> None:
    plan = plan_round(TEAM, 7, 2000)
    assert set(fixed_lots(TEAM, plan).values()) == {4}
    assert fixed_seats(TEAM, 0) != fixed_seats(TEAM, TEAM.rounds.seat_steps)


def test_a_team_survives_json() -> None:
    assert TeamConfig.from_json(TEAM.to_json()) == TEAM


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown SacConfig key 'learnin_rate'.*learning_rate"):
        TeamConfig.from_json({"sac": {"learnin_rate": 1.0}})


def test_two_leads_of_one_process_are_trained_in_two() -> None:
    lots = {"environment": 18, "meta": 18, "state": 2, "adaptation": 1, "coordinator": 1}
    processes = {"environment": 1, "meta": 1, "state": 2, "adaptation": 2}
    homes = training_homes(lots, processes)
    assert homes.keys() == lots.keys()
    assert processes[homes["environment"]] != processes[homes["meta"]]
    loads = {process: sum(lots[m] for m in lots if processes[homes[m]] == process) for process in (1, 2)}
    assert max(loads.values()) <= 20


def test_owners_train_their_members_where_the_balance_allows() -> None:
    processes = {"environment": 1, "meta": 2, "state": 3, "adaptation": 4}
    lots = dict.fromkeys(processes, 4)
    assert training_homes(lots, processes) == {name: name for name in processes}
