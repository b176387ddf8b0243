"""Rollouts of several blocks shared among worker processes: each runs the policy next to its own physics.

Letters: T steps, E environments.

A rollout is a pure function of its request, and so is each share of it; put together they are, bit for bit, what one
process would have given. A worker that dies or hangs is replaced and its share performed again.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from env_bridge.rollout import RolloutCancelled, Share
from env_bridge.shared_arrays import open_memory
from env_bridge.snapshots import join_snapshots
from env_bridge.wire import letter_to_result, request_to_letter
from env_bridge.worker_process import WorkerProcess, lost_text
from swarm.environment import EpisodeStatistics, RolloutRequest, RolloutResult
from swarm.errors import PeerLost
from swarm.policy import BLOCK_SIZE

log = structlog.get_logger(__name__)

MAX_ATTEMPTS: Final = 3
POLL_S: Final = 0.1


class RolloutPool:
    """W worker processes, started when they are first needed. Belongs to one thread."""

    def __init__(self, workers: int, *, patience_s: float = 600.0) -> None:
        self._size = workers
        self._patience_s = patience_s
        self._workers: list[WorkerProcess | None] = [None] * workers
        self.num_replaced = 0

    def takes(self, request: RolloutRequest) -> bool:
        """Whether ``request`` is large enough to be shared."""
        return self._size > 1 and len(request.tasks) > BLOCK_SIZE

    def perform(self, request: RolloutRequest, should_stop: Callable[[], bool]) -> RolloutResult:
        """Perform a checked request; the result is packed.

        Raises:
            ConfigError: the request does not fit the environment.
            ActionError: the policy gave an action that is not finite.
            RolloutCancelled: ``should_stop`` said so.
            PeerLost: workers were lost again and again.
        """
        shares = split(request, self._size)
        results: list[RolloutResult | None] = [None] * len(shares)
        for _ in range(MAX_ATTEMPTS):
            missing = [index for index, result in enumerate(results) if result is None]
            try:
                asked = [index for index in missing if self._ask(index, *shares[index])]
                for index in asked:
                    results[index] = self._answer(index, should_stop)
            except BaseException:
                self.close(kill=True)  # other shares are under way: nobody waits for them
                raise
            done = [result for result in results if result is not None]
            if len(done) == len(shares):
                return join(done, [share for _, share in shares])
        raise PeerLost(f"stepping workers were lost in {MAX_ATTEMPTS} attempts at one rollout: giving up")

    def _ask(self, index: int, request: RolloutRequest, share: Share) -> bool:
        worker = self._workers[index]
        if worker is None:
            memory = open_memory()
            try:
                worker = self._workers[index] = WorkerProcess(memory, patience_s=self._patience_s)
            finally:
                os.close(memory)
        letter = request_to_letter(request, 0)
        try:
            worker.send("rollout", {**letter.body, "share": [share.first, share.of]}, letter.arrays)
        except PeerLost as error:
            self._drop(index, error)
            return False
        return True

    def _answer(self, index: int, should_stop: Callable[[], bool]) -> RolloutResult | None:
        """The result of a share; ``None`` where its worker was lost."""
        worker = self._workers[index]
        assert worker is not None, "it was asked"
        try:
            worker.wait_ready()
            asked_at = time.monotonic()
            while not worker.poll(POLL_S):
                if should_stop():
                    raise RolloutCancelled("stopped while workers were rolling out")
                if time.monotonic() - asked_at > self._patience_s:
                    raise PeerLost("it did not answer in time")
            return letter_to_result(worker.wait())
        except PeerLost as error:
            self._drop(index, error)
            return None

    def _drop(self, index: int, error: PeerLost) -> None:
        worker, self._workers[index] = self._workers[index], None
        assert worker is not None, "it was lost"
        self.num_replaced += 1
        log.warning("performing a share of a rollout again", reason=lost_text(error, worker.kill()))

    def close(self, *, kill: bool = False) -> None:
        """End all workers."""
        for index, worker in enumerate(self._workers):
            if worker is not None:
                worker.kill() if kill else worker.close()
                self._workers[index] = None


def split(request: RolloutRequest, parts: int) -> list[tuple[RolloutRequest, Share]]:
    """Cut a request into at most ``parts`` shares of whole blocks."""
    num_envs = len(request.tasks)
    num_blocks = num_envs // BLOCK_SIZE
    bounds = np.linspace(0, num_blocks, min(parts, num_blocks) + 1).astype(int) * BLOCK_SIZE
    shares = []
    for first, end in itertools.pairwise(bounds.tolist()):
        snapshot = request.snapshot
        state = request.policy_state
        part = replace(
            request,
            tasks=request.tasks[first:end],
            snapshot=None if snapshot is None else {name: array[first:end] for name, array in snapshot.items()},
            policy_state=None if state is None else state[first:end],
        )
        shares.append((part, Share(first=first, of=num_envs)))
    return shares


def join(results: Sequence[RolloutResult], shares: Sequence[Share]) -> RolloutResult:
    """Put the packed results of all shares together, in order."""
    num_rows = max(len(result.columns["reward"]) for result in results)
    columns = {
        name: np.concatenate(
            [_padded(result.columns[name], num_rows + (name == "observation")) for result in results], axis=1
        )
        for name in results[0].columns
        if name != "ended_observation"
    }
    ended = [item for result, share in zip(results, shares, strict=True) for item in _ended(result, share)]
    ended.sort(key=lambda item: item[:2])
    width = results[0].columns["ended_observation"].shape[1:]
    columns["ended_observation"] = np.array([last for *_, last in ended], np.float32).reshape(-1, *width)
    return RolloutResult(
        columns=columns,
        snapshot=join_snapshots([result.snapshot for result in results]),
        policy_state=np.concatenate([result.policy_state for result in results]),
        episodes=tuple(episode for _, _, episode, _ in ended),
        num_steps=sum(result.num_steps for result in results),
    )


def _padded(column: NDArray[np.generic], num_rows: int) -> NDArray[np.generic]:
    """A column (T, E, …) with rows of zeros up to ``num_rows``: its environments were through before others."""
    missing = num_rows - len(column)
    if not missing:
        return column
    return np.concatenate([column, np.zeros((missing, *column.shape[1:]), dtype=column.dtype)])


def _ended(result: RolloutResult, share: Share) -> list[tuple[int, int, EpisodeStatistics, NDArray[np.generic]]]:
    """Step, environment in the whole, statistics and last observation of each episode of a share that ended."""
    columns = result.columns
    places = np.argwhere(np.asarray(columns["terminated"]) | np.asarray(columns["truncated"])).tolist()
    return [
        (step, share.first + index, replace(episode, environment=share.first + index), last)
        for (step, index), episode, last in zip(places, result.episodes, columns["ended_observation"], strict=True)
    ]
