"""Observation delay and sensor noise, alone: what is seen of made-up observations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from env_bridge import BridgeVectorEnv
from env_bridge.sensors import Sensors
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

PLAIN = TaskParameters()
NUM_ENVS = 4


def generators(seed: int = 0) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index]))) for index in range(NUM_ENVS)]


def at_step(step: int, size: int = 3) -> NDArray[np.float64]:
    """Observations that tell environment and step: 100 · e + step."""
    return np.repeat(100.0 * np.arange(NUM_ENVS)[:, None] + step, size, axis=1)


def started(tasks: tuple[TaskParameters, ...], seed: int = 0) -> tuple[Sensors, list[np.random.Generator]]:
    sensors, own = Sensors(NUM_ENVS), generators(seed)
    sensors.set_tasks(tasks)
    sensors.reset(range(NUM_ENVS), at_step(0), own)
    return sensors, own


def test_without_delay_and_noise_the_same_array_comes_back_untouched() -> None:
    sensors, own = started((TaskParameters(gravity=2.0),) * NUM_ENVS)
    observation = at_step(1)
    assert sensors.sense(observation, None, own) is observation
    assert sensors.reset([1], observation, own) is observation
    assert sensors.get_state() == {}


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_a_delayed_observation_is_that_of_as_many_steps_ago_and_first_that_of_the_reset(delay: int) -> None:
    sensors, own = started((TaskParameters(observation_delay=delay), PLAIN, PLAIN, PLAIN))
    for step in range(1, 12):
        given = at_step(step)
        seen = sensors.sense(given, None, own)
        assert (seen[0] == max(0, step - delay)).all()
        np.testing.assert_array_equal(seen[1:], given[1:])
        np.testing.assert_array_equal(given, at_step(step))


def test_a_reset_fills_the_memory_of_its_environment_alone() -> None:
    sensors, own = started((TaskParameters(observation_delay=2),) * NUM_ENVS)
    for step in (1, 2, 3):
        sensors.sense(at_step(step), None, own)
    seen = sensors.reset([1], at_step(50), own)
    np.testing.assert_array_equal(seen[:, 0], [1, 150, 201, 301])
    seen = sensors.sense(at_step(51), None, own)
    np.testing.assert_array_equal(seen[:, 0], [2, 150, 202, 302])


def test_environments_that_are_not_stepped_do_not_age() -> None:
    sensors, own = started((TaskParameters(observation_delay=1),) * NUM_ENVS)
    active = np.array([True, False, True, False])
    sensors.sense(at_step(1), active, own)
    sensors.sense(at_step(2), active, own)
    np.testing.assert_array_equal(sensors.sense(at_step(3), None, own)[:, 0], [2, 100, 202, 300])


def test_environments_of_different_delays_keep_their_own_time() -> None:
    sensors, own = started(tuple(TaskParameters(observation_delay=delay) for delay in (0, 1, 2, 3)))
    for step in range(1, 8):
        seen = sensors.sense(at_step(step), None, own)
    np.testing.assert_array_equal(seen[:, 0], [7, 106, 205, 304])


def test_another_task_within_an_episode_leaves_the_others_delays_alone() -> None:
    two = TaskParameters(observation_delay=2)
    sensors, own = started((two,) * NUM_ENVS)
    for step in (1, 2, 3):
        sensors.sense(at_step(step), None, own)
    sensors.set_tasks((two, TaskParameters(observation_delay=4), PLAIN, two))
    np.testing.assert_array_equal(sensors.sense(at_step(4), None, own)[:, 0], [2, 104, 204, 302])
    np.testing.assert_array_equal(sensors.sense(at_step(5), None, own)[:, 0], [3, 104, 205, 303])


def test_noise_has_the_deviation_asked_for_and_is_drawn_anew_each_step() -> None:
    sensors, own = Sensors(NUM_ENVS), generators()
    sensors.set_tasks((TaskParameters(sensor_noise=0.25), PLAIN, PLAIN, TaskParameters(sensor_noise=2.0)))
    zeros = np.zeros((NUM_ENVS, 50))
    sensors.reset(range(NUM_ENVS), zeros, own)
    drawn = np.stack([sensors.sense(zeros, None, own) for _ in range(100)])
    assert drawn[:, 0].std() == pytest.approx(0.25, rel=0.05)
    assert drawn[:, 3].std() == pytest.approx(2.0, rel=0.05)
    assert drawn[:, 0].mean() == pytest.approx(0.0, abs=0.02)
    assert (drawn[:, 1:3] == 0.0).all()
    assert (drawn[1:, 0] != drawn[:-1, 0]).all()


def test_noise_follows_the_environments_seed_and_leaves_its_generator_alone() -> None:
    noisy = (TaskParameters(sensor_noise=1.0),) * NUM_ENVS
    seen = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        sensors, own = started(noisy, seed)
        seen[name] = np.stack([sensors.sense(at_step(step), None, own) for step in range(3)])
        untouched = generators(seed)
        assert [a.random() for a in own] == [b.random() for b in untouched]
    np.testing.assert_array_equal(seen["first"], seen["again"])
    assert (seen["first"] != seen["other"]).all()
    first = seen["first"] - np.stack([at_step(step) for step in range(3)])
    assert (first[:, 0] != first[:, 1]).all(), "each environment has noise of its own"
    assert not np.isin(first.ravel(), generators()[0].standard_normal(1000)).any(), "not the environment's stream"


def test_a_new_seed_starts_the_noise_anew() -> None:
    sensors, own = started((TaskParameters(sensor_noise=1.0),) * NUM_ENVS)
    first = [sensors.sense(at_step(step), None, own) for step in range(2)]
    sensors.seed(range(NUM_ENVS))
    own = generators()
    sensors.reset(range(NUM_ENVS), at_step(0), own)
    again = [sensors.sense(at_step(step), None, own) for step in range(2)]
    np.testing.assert_array_equal(first, again)


MIXED = (
    TaskParameters(observation_delay=3),
    TaskParameters(sensor_noise=0.5),
    PLAIN,
    TaskParameters(observation_delay=1, sensor_noise=0.1),
)


@pytest.mark.parametrize("stop", [1, 2, 6])
def test_going_on_from_a_saved_state_equals_not_having_stopped(stop: int) -> None:
    whole, own = started(MIXED)
    for step in range(1, stop):
        whole.sense(at_step(step), None, own)
    saved = whole.get_state()
    assert all(len(array) == NUM_ENVS for array in saved.values())
    other, _ = started(MIXED, seed=9)
    for step in range(4):
        other.sense(at_step(step), None, own)
    other.set_state(saved)
    for step in range(stop, stop + 8):
        np.testing.assert_array_equal(whole.sense(at_step(step), None, own), other.sense(at_step(step), None, own))
    np.testing.assert_array_equal(whole.reset([0], at_step(99), own), other.reset([0], at_step(99), own))


def test_a_state_without_sensors_starts_as_new() -> None:
    used, own = started(MIXED)
    for step in (1, 2, 3):
        used.sense(at_step(step), None, own)
    used.set_state({"physics": np.zeros((NUM_ENVS, 5))})
    fresh = Sensors(NUM_ENVS)
    fresh.set_tasks(MIXED)
    np.testing.assert_array_equal(used.sense(at_step(7), None, own), fresh.sense(at_step(7), None, own))


def test_a_saved_state_under_other_delays_counts_from_then_on() -> None:
    used, own = started((TaskParameters(observation_delay=1),) * NUM_ENVS)
    used.sense(at_step(1), None, own)
    saved = used.get_state()
    used.set_tasks((TaskParameters(observation_delay=1), *(TaskParameters(observation_delay=2),) * 3))
    used.set_state(saved)
    np.testing.assert_array_equal(used.sense(at_step(2), None, own)[:, 0], [1, 102, 202, 302])


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    sensors, own = started(MIXED)
    saved = sensors.get_state()
    wrong = [
        {name: array for name, array in saved.items() if name != "sensor.seen"},
        saved | {"sensor.seen": saved["sensor.seen"][:2]},
        saved | {"sensor.history": saved["sensor.history"][:, :, :2]},
        saved | {"sensor.history": saved["sensor.history"][:, :2]},
        saved | {"sensor.generator": saved["sensor.generator"].astype(np.int64)},
        saved | {"sensor.delay": saved["sensor.delay"].astype(np.float64)},
    ]
    for state in wrong:
        with pytest.raises(ConfigError, match="snapshot"):
            sensors.set_state(state)
    for name, array in sensors.get_state().items():
        np.testing.assert_array_equal(array, saved[name])
    with pytest.raises(ConfigError, match=r"got \(4, 5\)"):
        sensors.sense(at_step(1, 5), None, own)


def test_delay_and_noise_keep_the_observations_type() -> None:
    own = generators()
    sensors = Sensors(NUM_ENVS)
    sensors.set_tasks((TaskParameters(observation_delay=1),) * NUM_ENVS)
    numbers = np.arange(NUM_ENVS)
    assert sensors.reset(range(NUM_ENVS), numbers, own).dtype == numbers.dtype
    np.testing.assert_array_equal(sensors.sense(numbers + 10, None, own), numbers)
    small = Sensors(NUM_ENVS)
    small.set_tasks((TaskParameters(sensor_noise=1.0),) * NUM_ENVS)
    assert small.reset(range(NUM_ENVS), at_step(0).astype(np.float32), own).dtype == np.float32


@pytest.mark.parametrize("workers", [0, 2])
def test_noise_on_whole_numbers_is_refused_when_it_is_given_and_delay_is_not(workers: int) -> None:
    with pytest.raises(ConfigError, match=r"sensor noise needs observations of real numbers; these are int64"):
        BridgeVectorEnv("FrozenLake-v1", 2, workers=workers, tasks=(PLAIN, TaskParameters(sensor_noise=0.1)))
    env = BridgeVectorEnv("FrozenLake-v1", 2, workers=workers, tasks=(TaskParameters(observation_delay=1),) * 2)
    before, _ = env.reset(seed=0)
    with pytest.raises(ConfigError, match="real numbers"):
        env.set_tasks((PLAIN, TaskParameters(sensor_noise=0.1)))
    np.testing.assert_array_equal(env.step(np.array([1, 2]))[0], before)
    env.close()
