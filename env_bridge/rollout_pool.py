"""Rollouts of several blocks shared among worker processes: each runs the policy next to its own physics.

Letters: T steps, E environments, W worker processes.

A rollout is a pure function of its request, and so is each share of it; put together they are, bit for bit, what one
process would have given. Who is ahead helps the others (`neighbours`). A worker that dies or hangs is replaced; its
share, and those of the others that had not answered, are performed again.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from env_bridge.neighbours import THROUGH, Share, open_progress, shares_of
from env_bridge.rollout import RolloutCancelled
from env_bridge.shared_arrays import open_memory
from env_bridge.snapshots import join_snapshots
from env_bridge.wire import letter_to_result, request_to_letter
from env_bridge.worker_process import LONG_PATIENCE_S, WorkerProcess, lost_text
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
        self._memory: int | None = None
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
            try:
                self._attempt(shares, results, should_stop)
            except BaseException:
                self.close(kill=True)  # other shares are under way: nobody waits for them
                raise
            done = [result for result in results if result is not None]
            if len(done) == len(shares):
                return join(done, [share for _, share in shares])
        raise PeerLost(f"stepping workers were lost in {MAX_ATTEMPTS} attempts at one rollout: giving up")

    def _attempt(
        self,
        shares: Sequence[tuple[RolloutRequest, Share]],
        results: list[RolloutResult | None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Have all missing shares performed; where a worker is lost, the others that are at work end with it."""
        if self._memory is None:
            self._memory = open_memory()
            self._progress = open_progress(self._memory, self._size)
        for index, result in enumerate(results):
            self._progress[index] = 0 if result is None else THROUGH
        waiting = [index for index, result in enumerate(results) if result is None]
        talks_to: list[int] = []
        try:
            for index in waiting:
                talks_to = [index]
                self._ask(index, *shares[index])
            end_s = self._end_s(waiting)
            while waiting:
                for index in self._readable(waiting):
                    talks_to = [index]
                    worker = self._worker(index)
                    if not worker.is_ready:
                        worker.wait_ready()
                        end_s = self._end_s(waiting)
                        continue
                    results[index] = letter_to_result(worker.wait())
                    waiting.remove(index)
                talks_to = []
                if should_stop():
                    raise RolloutCancelled("stopped while workers were rolling out")
                if time.monotonic() > end_s:
                    raise PeerLost("it did not answer in time")
        except PeerLost as error:
            behind = [place for place in waiting if self._progress[place] != THROUGH]
            self._drop(waiting, talks_to or behind or waiting, error)

    def _end_s(self, waiting: Sequence[int]) -> float:
        """When patience ends with the workers that were just asked, or are just ready; a start may take long."""
        are_ready = all(self._worker(index).is_ready for index in waiting)
        return time.monotonic() + (self._patience_s if are_ready else max(self._patience_s, LONG_PATIENCE_S))

    def _worker(self, index: int) -> WorkerProcess:
        assert self._memory is not None, "an attempt opens it"
        worker = self._workers[index]
        if worker is None:
            worker = self._workers[index] = WorkerProcess(self._memory, patience_s=self._patience_s)
        return worker

    def _ask(self, index: int, request: RolloutRequest, share: Share) -> None:
        letter = request_to_letter(request, 0)
        body = {**letter.body, "share": share.to_json()}
        try:
            self._worker(index).send("rollout", body, letter.arrays)
        except PeerLost as error:  # since its last rollout, with nothing in hand
            self._drop([index], [index], error)
            self._worker(index).send("rollout", body, letter.arrays)

    def _readable(self, waiting: Sequence[int]) -> list[int]:
        """Which workers have an answer, or have ended; none after a while."""
        poll = select.poll()
        places = {self._worker(index).descriptor: index for index in waiting}
        for descriptor in places:
            poll.register(descriptor, select.POLLIN)
        return [places[descriptor] for descriptor, _ in poll.poll(1000 * POLL_S)]

    def _drop(self, waiting: Sequence[int], lost: Sequence[int], error: PeerLost) -> None:
        """End the workers that have not answered: who was lost, and who may wait for what these had in hand."""
        for index in waiting:
            worker, self._workers[index] = self._workers[index], None
            if worker is not None:
                how = worker.kill()
                if index in lost:
                    self.num_replaced += 1
                    log.warning("performing a share of a rollout again", reason=lost_text(error, how))

    def close(self, *, kill: bool = False) -> None:
        """End all workers."""
        for index, worker in enumerate(self._workers):
            if worker is not None:
                worker.kill() if kill else worker.close()
                self._workers[index] = None
        memory, self._memory = self._memory, None
        if memory is not None:
            os.close(memory)


def split(request: RolloutRequest, parts: int) -> list[tuple[RolloutRequest, Share]]:
    """Cut a request into at most ``parts`` shares of whole blocks."""
    num_envs = len(request.tasks)
    num_blocks = num_envs // BLOCK_SIZE
    bounds = np.linspace(0, num_blocks, min(parts, num_blocks) + 1).astype(int) * BLOCK_SIZE
    shares = []
    for share in shares_of(request.tasks, bounds.tolist()):
        rows = slice(share.first, share.first + share.sizes[share.place])
        snapshot, state = request.snapshot, request.policy_state
        part = replace(
            request,
            tasks=request.tasks[rows],
            snapshot=None if snapshot is None else {name: array[rows] for name, array in snapshot.items()},
            policy_state=None if state is None else state[rows],
        )
        shares.append((part, share))
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
