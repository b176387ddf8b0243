"""Have a remote manager do a task: submit until accepted, ask again until ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from swarm.bus import Bus, Lost
from swarm.errors import TaskFailed, TaskImpossible
from swarm.machine_loop import publish_patiently
from swarm.messages import Accepted, Ended, Submission
from swarm.topics import Topic

FIRST_RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 5.0
"""An accepted task is asked for at this pace too: the manager may have died between its journal and its answer."""


@dataclass(slots=True, eq=False)
class _Pending:
    ended: asyncio.Future[Ended]
    accepted: bool = False
    waiters: int = 0


@dataclass(slots=True, eq=False)
class SubmissionClient:
    """Submits tasks under one bus peer and matches the answers. ``run`` must be running while ``submit`` waits."""

    bus: Bus
    _pending: dict[str, _Pending] = field(default_factory=dict)

    async def run(self) -> None:
        """Read the manager's answers until cancelled or the bus is closed."""
        async for item in self.bus.subscribe(Topic.RESULTS):
            if isinstance(item, Lost):
                continue  # counted by the bus; unanswered tasks are asked for again anyway
            message = item.message
            if isinstance(message, Accepted | Ended) and (pending := self._pending.get(message.task_id)):
                pending.accepted = True
                if isinstance(message, Ended) and not pending.ended.done():
                    pending.ended.set_result(message)

    async def submit(self, task: Submission) -> Ended:
        """Return how ``task`` ended, whatever its status; idempotent by task id."""
        pending = self._pending.setdefault(task.task_id, _Pending(asyncio.get_running_loop().create_future()))
        pending.waiters += 1
        try:
            retry_s = FIRST_RETRY_S
            while True:
                await publish_patiently(self.bus, task)
                done, _ = await asyncio.wait({pending.ended}, timeout=retry_s)
                if done:
                    return pending.ended.result()
                retry_s = MAX_RETRY_S if pending.accepted else min(2.0 * retry_s, MAX_RETRY_S)
        finally:
            pending.waiters -= 1
            if pending.waiters == 0:
                self._pending.pop(task.task_id, None)


def require_done(ended: Ended) -> Ended:
    """Return ``ended`` if its status is ``done``. Raises ``TaskFailed``, or ``TaskImpossible``, otherwise."""
    if ended.status != "done":
        kind = TaskImpossible if ended.user_error else TaskFailed
        raise kind(f"task {ended.task_id!r} ended {ended.status}: {ended.reason or 'no reason given'}")
    return ended
