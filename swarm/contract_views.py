"""What may be set of the contract net's manager, and what may be seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum


class TaskState(StrEnum):
    """Where an accepted task stands; the last four are terminal (and the ``status`` of its `Ended`)."""

    ANNOUNCED = "announced"
    RESTING = "resting"  # nobody bid; it is announced again after a while
    WORKING = "working"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerConfig:
    """Bounds and patience of a manager.

    Attributes:
        max_holders: R, holders that a task may lose before it fails.
        max_auctions: auctions in a row without a bid before a task fails.
        rest_s: wait before the second of them; doubles each time, up to ``max_rest_s``.
        reannounce_s: an open announcement is repeated this often to whom it still waits for.
        deadline_mads: k, an auction that has a bid closes at median + k·MAD of past answer times ...
        deadline_samples: ... once so many are known; only where ``deadline_s`` is given and nobody is ``awaited``.
        min_patience_s: ... but not before: a process that computes may answer late without being gone.
        max_finished: ended tasks that are remembered, to answer a repeated submission.
        max_peers: agents that are remembered; dead ones are forgotten first.
    """

    max_holders: int = 5
    max_auctions: int = 5
    rest_s: float = 0.5
    max_rest_s: float = 8.0
    reannounce_s: float = 2.0
    deadline_mads: float = 6.0
    deadline_samples: int = 8
    min_patience_s: float = 0.25
    max_finished: int = 10_000
    max_peers: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerStatistics:
    """Counts of this life. ``proposals == accepted + rejected + late + pending`` always.

    Attributes:
        tasks: tasks by state.
        pending: proposals to open auctions.
        duplicates: repeated messages that changed nothing.
        late: proposals to a closed or unknown auction, or of an agent that is not known to live.
        fenced: reports under an old or foreign epoch.
        invalid: proposals that were turned down as malformed.
        conflicts: submissions under a known id with other content.
        unsold: units that nobody wanted.
    """

    tasks: Mapping[TaskState, int]
    proposals: int = 0
    accepted: int = 0
    rejected: int = 0
    late: int = 0
    pending: int = 0
    duplicates: int = 0
    fenced: int = 0
    invalid: int = 0
    conflicts: int = 0
    auctions: int = 0
    awards: int = 0
    lost_awards: int = 0
    unsold: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """One task as it stands.

    Attributes:
        epoch: of the open announcement, else ``None``.
        bids: agents that have answered it with a proposal.
        holders: epoch and units of each award that is being performed.
        finished: units by agent of the awards that are done.
        losses: why holders were lost.
        closes_s: monotonic deadline of the open announcement.
    """

    state: TaskState
    epoch: int | None = None
    bids: tuple[str, ...] = ()
    holders: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    finished: Mapping[str, int] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    closes_s: float | None = None
    waits_for_capacity: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """One agent: awards that it holds now, how many it takes, and whether it lives."""

    awards: int
    capacity: int
    alive: bool


@dataclass(slots=True)
class Counts:
    """The counters of `ManagerStatistics` while they count."""

    proposals: int = 0
    accepted: int = 0
    rejected: int = 0
    late: int = 0
    duplicates: int = 0
    fenced: int = 0
    invalid: int = 0
    conflicts: int = 0
    auctions: int = 0
    awards: int = 0
    lost_awards: int = 0
    unsold: int = 0

    def statistics(self, tasks: Mapping[TaskState, int], pending: int) -> ManagerStatistics:
        """The counts as they are now."""
        counts = {f.name: getattr(self, f.name) for f in fields(self)}
        return ManagerStatistics(tasks=tasks, pending=pending, **counts)
