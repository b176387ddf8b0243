"""The choice of training tasks by learning progress: what it prefers, and that it is a function of committed rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.config import TeamConfig, TrialConfig
from agents.curriculum import Attempts, attempts_from_rows, chances, draw_tasks, embed, learning_progress, trials_known
from agents.rollouts import task_vector
from agents.trials import tasks_of_trial
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

TASKS = tuple(TaskParameters(velocity=float(v)) for v in range(12))
TRIALS = TrialConfig(episodes=2, episode_steps=5, curriculum="progress")
TEAM = TeamConfig(train_tasks=TASKS, trials=TRIALS)
TEAM = replace(TEAM, rounds=replace(TEAM.rounds, steps=32))  # 4 rows a round, 10 a trial
VECTORS = np.stack([task_vector(task) for task in TASKS])


def rows_of(tasks: NDArray[np.int64], totals: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
    """Columns of whole trials: (trials, 8) task indices and returns, each spread evenly over the trial's rows."""
    trials, steps = len(tasks), TRIALS.steps
    rewards = np.repeat(totals[:, None] * TRIALS.episodes / steps, steps, axis=1).reshape(trials * steps, 8)
    vectors = np.repeat(VECTORS[tasks][:, None], steps, axis=1).reshape(trials * steps, 8, -1)
    return {"task": vectors, "reward": rewards.astype(np.float32), "valid": np.ones((trials * steps, 8), bool)}


def learned(trials: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Tasks 4 to 7 get better with every trial; 0 to 3 are mastered, 8 to 11 out of reach."""
    draw = np.random.default_rng(seed)
    tasks = draw.integers(12, size=(trials, 8))
    level = np.where(tasks < 4, 100.0, np.where(tasks < 8, 10.0 * np.arange(trials)[:, None], -5.0))
    return rows_of(tasks, level + draw.normal(size=level.shape))


def test_tasks_that_improve_are_preferred() -> None:
    rows = learned(10)
    drawn = np.array([draw_tasks(replace(TEAM, seed=seed), 11, VECTORS, rows) for seed in range(200)])
    share = np.isin(drawn, (4, 5, 6, 7)).mean()
    assert share > 0.65, "a third of the tasks; four fifths of the choices are by progress"
    assert {int(index) for index in drawn.ravel()} == set(range(12)), "exploration leaves no task out"


def test_tasks_that_get_worse_are_preferred_as_well() -> None:
    rows = learned(10)
    rows["reward"] = -np.asarray(rows["reward"], np.float32)
    drawn = np.array([draw_tasks(replace(TEAM, seed=seed), 11, VECTORS, rows) for seed in range(100)])
    assert np.isin(drawn, (4, 5, 6, 7)).mean() > 0.65


def test_full_exploration_draws_all_tasks_alike() -> None:
    team = replace(TEAM, trials=replace(TRIALS, exploration=1.0))
    drawn = np.array([draw_tasks(replace(team, seed=seed), 11, VECTORS, learned(10)) for seed in range(300)])
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=12) / drawn.size, 1 / 12, atol=0.03)


def test_progress_is_that_of_the_nearest_attempts_and_the_latest_of_them() -> None:
    points = np.array([[0.0], [0.1], [1.0]])
    attempts = Attempts(trial=np.array([0, 0, 1, 2]), task=np.array([0, 2, 2, 0]), total=np.array([5.0, 0.0, 3.0, 9.0]))
    progress = learning_progress(points, attempts)
    np.testing.assert_allclose(progress, [3.5, 3.5, 3.5], err_msg="two changes: |3 - 0| and |9 - 5|, both within reach")
    repeated = Attempts(
        trial=np.arange(7), task=np.array([0, 0, 0, 0, 2, 2, 2]), total=np.array([0.0, 1, 2, 3, 3, 3, 3])
    )
    np.testing.assert_allclose(learning_progress(points, repeated), [1.0, 1.0, 0.0])


def test_without_any_change_all_tasks_are_as_likely() -> None:
    np.testing.assert_array_equal(chances(np.zeros(4), 0.2), np.full(4, 0.25))
    np.testing.assert_allclose(chances(np.array([3.0, 1.0]), 0.2), [0.7, 0.3])
    nothing = Attempts(trial=np.zeros(8, np.int64), task=np.zeros(8, np.int64), total=np.ones(8))
    np.testing.assert_array_equal(learning_progress(embed(TASKS), nothing), np.zeros(12))


def test_every_round_of_a_trial_comes_to_the_same_tasks_whatever_was_committed_since() -> None:
    rows = learned(12)
    for trial in range(12):
        known = trials_known(TEAM, trial)
        first_row = trial * TRIALS.steps
        assert known * TRIALS.steps <= first_row // 4 * 4 <= first_row, "only rows that the first round could read"
        part = {name: column[: known * TRIALS.steps] for name, column in rows.items()}
        assert draw_tasks(TEAM, trial, VECTORS, part) == draw_tasks(TEAM, trial, VECTORS, rows)
    assert [trials_known(TEAM, trial) for trial in range(6)] == [0, 0, 2, 2, 4, 4]


def test_draws_follow_seed_and_trial() -> None:
    rows = learned(10)
    first = draw_tasks(TEAM, 10, VECTORS, rows)
    assert first == draw_tasks(TEAM, 10, VECTORS, rows)
    assert len({draw_tasks(replace(TEAM, seed=seed), 10, VECTORS, rows) for seed in range(5)}) == 5


def test_there_is_nothing_to_go_by_before_two_trials_are_known() -> None:
    assert draw_tasks(TEAM, 1, VECTORS, learned(1)) is None
    assert draw_tasks(TEAM, 2, VECTORS, learned(2)) is not None


def test_attempts_are_read_from_rows_with_invalid_ones_left_out() -> None:
    rows = rows_of(np.arange(16).reshape(2, 8) % 12, np.arange(16.0).reshape(2, 8))
    valid = np.asarray(rows["valid"]).copy()
    valid[10:, 3] = False
    found = attempts_from_rows(TEAM, VECTORS, {**rows, "valid": valid}, 2)
    np.testing.assert_array_equal(found.trial, [0] * 8 + [1] * 8)
    np.testing.assert_array_equal(found.task, np.arange(16) % 12)
    np.testing.assert_allclose(found.total, [*range(11), 0.0, *range(12, 16)], atol=1e-5)


def test_points_tell_tasks_apart_and_headings_close_the_circle() -> None:
    directions = embed([TaskParameters(direction=angle) for angle in (0.01, math.pi, 2 * math.pi - 0.01)])
    assert np.linalg.norm(directions[0] - directions[2]) < 0.1 * np.linalg.norm(directions[0] - directions[1])
    factors = embed([TaskParameters(mass=mass) for mass in (0.5, 1.0, 2.0)])
    np.testing.assert_allclose(np.diff(factors[:, 0]), [0.5, 0.5])
    crippled = embed([TaskParameters(crippled=index) for index in (0, 1, 5)])
    assert len({round(float(np.linalg.norm(a - b)), 6) for a in crippled for b in crippled}) == 2
    assert (embed([TaskParameters()] * 3) == 0.0).all()


def test_uniform_is_the_default_and_in_turn() -> None:
    assert TrialConfig().curriculum == "uniform"
    drawn = [[TASKS.index(task) for task in tasks_of_trial(TeamConfig(train_tasks=TASKS, seed=3), k)] for k in (0, 1)]
    assert drawn == [[9, 3, 10, 1, 11, 7, 2, 8], [6, 4, 0, 5, 11, 2, 1, 8]], "as in earlier versions"


def test_an_unknown_curriculum_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"trials.curriculum is 'progres'; expected one of uniform, progress"):
        TrialConfig(curriculum="progres")
