"""Rollouts shared among worker processes: the bits of one process, also where a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from env_bridge.neighbours import THROUGH
from env_bridge.packed import unpack
from env_bridge.rollout import RolloutCancelled, run_packed, run_rollout
from env_bridge.rollout_pool import RolloutPool, join, split
from env_bridge.vector_env import VectorEnv
from swarm.environment import RolloutRequest, RolloutResult, TaskParameters
from swarm.errors import ConfigError

TASKS = tuple(TaskParameters(gravity=1.0 + 0.05 * index) for index in range(24))


def request(**changes: object) -> RolloutRequest:
    base = RolloutRequest(
        env_id="Hopper-v4", tasks=TASKS, seed=3, num_steps=30, policy="random", noise_seed=5, max_episode_steps=12
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def assert_same(left: RolloutResult, right: RolloutResult) -> None:
    for mine, expected in ((left.columns, right.columns), (left.snapshot, right.snapshot)):
        assert mine.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(mine[name], array, err_msg=name)
    np.testing.assert_array_equal(left.policy_state, right.policy_state)
    assert left.episodes == right.episodes
    assert left.num_steps == right.num_steps


@pytest.fixture(name="pool", scope="module")
def made_pool() -> Iterator[RolloutPool]:
    pool = RolloutPool(2)
    yield pool
    pool.close()


def never() -> bool:
    return False


def performed(pool: RolloutPool, wanted: RolloutRequest) -> RolloutResult:
    return unpack(pool.perform(wanted, never))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("changes", [{}, {"num_steps": None}, {"record_qpos": True}])
def test_shares_put_together_are_the_whole(parts: int, changes: dict[str, object]) -> None:
    whole = run_rollout(request(**changes))
    shares = split(request(**changes), parts)
    assert len(shares) == parts
    results = [run_packed(part, VectorEnv(part.env_id, len(part.tasks)), share=share) for part, share in shares]
    assert whole.episodes, "the test wants ends inside"
    assert_same(unpack(join(results, [share for _, share in shares])), whole)


def test_two_workers_give_the_bits_of_one_process_and_continue_from_a_snapshot(pool: RolloutPool) -> None:
    whole = run_rollout(request())
    shared = performed(pool, request())
    assert_same(shared, whole)
    following = request(snapshot=whole.snapshot, policy_state=whole.policy_state, seed=9)
    assert_same(performed(pool, following), run_rollout(following))


@pytest.mark.parametrize(("sign", "patience_s"), [(signal.SIGKILL, 60.0), (signal.SIGSTOP, 4.0)])
def test_worker_that_is_killed_or_hangs_is_replaced_and_its_share_performed_again(
    sign: signal.Signals, patience_s: float
) -> None:
    pool = RolloutPool(2, patience_s=patience_s)
    try:
        expected = run_rollout(request())
        assert_same(performed(pool, request()), expected)
        worker = pool._workers[0]
        assert worker is not None
        os.kill(worker.process.pid, sign)
        assert_same(performed(pool, request()), expected)
        assert pool.num_replaced == 1
    finally:
        pool.close()


@pytest.mark.parametrize("place", [0, 1])
def test_worker_killed_at_any_moment_of_a_rollout_changes_no_bit(place: int) -> None:
    wanted = request(num_steps=150)
    expected = run_rollout(wanted)
    pool = RolloutPool(2)
    try:
        performed(pool, wanted)
        for moment in range(4):
            worker = pool._workers[place]
            assert worker is not None
            killer = threading.Timer(0.003 + 0.01 * moment, os.kill, (worker.process.pid, signal.SIGKILL))
            killer.start()
            assert_same(performed(pool, wanted), expected)
            killer.join()
    finally:
        pool.close()


def test_workers_that_hang_when_they_are_through_are_replaced_and_counted() -> None:
    pool = RolloutPool(2, patience_s=2.0)
    try:
        performed(pool, request())
        for worker in pool._workers:
            assert worker is not None
            os.kill(worker.process.pid, signal.SIGSTOP)

        def are_through() -> bool:
            if pool.num_replaced == 0:
                pool._progress[:] = THROUGH
            return False

        assert_same(unpack(pool.perform(request(), are_through)), run_rollout(request()))
        assert pool.num_replaced == 2
    finally:
        pool.close()


def test_a_worker_that_died_between_rollouts_costs_no_other() -> None:
    pool = RolloutPool(2)
    try:
        performed(pool, request())
        first, second = pool._workers
        assert first is not None and second is not None  # noqa: PT018
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        assert_same(performed(pool, request()), run_rollout(request()))
        assert pool._workers[1] is second
        assert pool.num_replaced == 1
    finally:
        pool.close()


def test_cancelled_rollout_leaves_no_worker_behind_with_half_of_it(pool: RolloutPool) -> None:
    started = threading.Event()

    def should_stop() -> bool:
        started.set()
        return True

    begun = time.monotonic()
    with pytest.raises(RolloutCancelled):
        pool.perform(request(num_steps=100_000, max_episode_steps=1000, tasks=TASKS[:16]), should_stop)
    assert started.is_set()
    assert time.monotonic() - begun < 30
    assert_same(performed(pool, request()), run_rollout(request()))


def test_error_of_a_share_is_the_error_of_the_rollout(pool: RolloutPool) -> None:
    with pytest.raises(ConfigError, match="unknown policy 'randomm'"):
        pool.perform(request(policy="randomm"), never)
    assert_same(performed(pool, request()), run_rollout(request()))
