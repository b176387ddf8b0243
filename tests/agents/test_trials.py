"""Runs on several tasks: trials, the memory that lasts over their episodes, and what is stored of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.config import TeamConfig, TrialConfig
from agents.intervals import estimate_mean
from agents.rollouts import mark_cut_episodes, shifted_tasks
from agents.trials import cut_into_trials, episodes_played, tasks_of_trial
from env_bridge.rollout import run_rollout
from swarm.environment import EpisodeStatistics, RolloutRequest, TaskParameters

TASKS = tuple(TaskParameters(velocity=float(v)) for v in range(5))
TEAM = TeamConfig(train_tasks=TASKS, trials=TrialConfig(episodes=2, episode_steps=20))


def test_a_stretch_of_rows_is_cut_where_trials_end() -> None:
    found = [(s.trial, s.steps, s.fresh, s.ends) for s in cut_into_trials(25, 60, 40)]
    assert found == [(0, 15, False, True), (1, 40, True, True), (2, 5, True, False)]


def test_stretches_of_any_rounds_cover_each_trial_once() -> None:
    for rows in (7, 25, 40, 90):
        steps: dict[int, int] = {}
        for first in range(0, 10 * rows, rows):
            for stretch in cut_into_trials(first, rows, 40):
                steps[stretch.trial] = steps.get(stretch.trial, 0) + stretch.steps
        assert all(steps[trial] == 40 for trial in range(len(steps) - 1))


def test_all_tasks_are_used_before_one_comes_again() -> None:
    drawn = [task for trial in range(5) for task in tasks_of_trial(TEAM, trial)]
    assert all(set(drawn[first : first + 5]) == set(TASKS) for first in range(0, 40, 5))
    assert drawn[:5] != drawn[5:10]
    assert tasks_of_trial(replace(TEAM, seed=1), 0) != tasks_of_trial(TEAM, 0)


def test_shifted_stretches_of_such_a_run_use_its_training_tasks() -> None:
    assert set(shifted_tasks(TEAM, 3)) <= set(TASKS)


def test_team_with_tasks_survives_the_way_through_plain_data() -> None:
    assert TeamConfig.from_json(TEAM.to_json()) == TEAM


def episode(environment: int, total: float) -> EpisodeStatistics:
    return EpisodeStatistics(
        environment=environment, total_reward=total, length=3, distance_m=total / 10, terminated=False
    )


def test_the_first_episodes_of_each_environment_count_and_one_with_too_few_is_left_out() -> None:
    episodes = [episode(e, 10.0 * k + e) for k in range(3) for e in range(8) if not (e == 5 and k > 0)]
    played = episodes_played(episodes, 2)
    assert [row.environment for row in played] == [0, 1, 2, 3, 4, 6, 7]
    assert played[1].returns == (1.0, 11.0)
    assert played[1].mean_return == 6.0
    assert played[1].mean_length == 3


def test_an_episode_that_its_trial_cuts_is_truncated_unless_it_terminated() -> None:
    columns = {"truncated": np.zeros((5, 8), bool), "terminated": np.zeros((5, 8), bool)}
    columns["terminated"][2, 3] = True
    mark_cut_episodes(columns, 37, 40)
    assert columns["truncated"][2].tolist() == [True, True, True, False, True, True, True, True]
    assert not columns["truncated"][[0, 1, 3, 4]].any()


def test_interval_is_that_of_the_normal_distribution_for_many_values_and_reproducible() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400).tolist()
    found = estimate_mean(values)
    error = float(np.std(values)) / 20
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.03)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.03)
    assert found == estimate_mean(values)
    assert estimate_mean([4.0]).low == estimate_mean([4.0]).high == 4.0
    with pytest.raises(ValueError, match="no values"):
        estimate_mean([])


def carried(num_steps: int | None, **changes: object) -> RolloutRequest:
    request = RolloutRequest(
        env_id="HalfCheetah-v4",
        tasks=(TaskParameters(),) * 8,
        seed=4,
        num_steps=num_steps,
        policy="random",
        noise_seed=2,
        carry_state=True,
        max_episode_steps=4,
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def test_carried_memory_is_reset_at_the_first_step_only() -> None:
    columns = run_rollout(carried(10)).columns
    assert columns["truncated"][[3, 7]].all()
    assert columns["reset"][0].all()
    assert not columns["reset"][1:].any()


def test_carried_memory_goes_on_from_a_given_state() -> None:
    size = run_rollout(carried(1)).policy_state.shape
    columns = run_rollout(carried(3, policy_state=np.zeros(size, np.float32))).columns
    assert not columns["reset"].any()
