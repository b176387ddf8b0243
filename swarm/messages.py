"""What travels on the bus: one frozen dataclass per message type.

A message names tasks, agents and members by id. Ids match ``[A-Za-z0-9][A-Za-z0-9._-]{0,63}`` (task ids may be up to
128 characters and also contain ``:``). Times on the wire are *remaining seconds*, never clock readings. Arrays are
C-contiguous, of dtype bool, int32, int64, uint64, float32 or float64, and are read-only on arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Root of all message types; carries nothing itself."""


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission(Message):
    """Somebody asks the manager to have a task done (answered by ``Accepted``, ended by ``Ended``).

    Attributes:
        kind: the skill that a contractor needs.
        units: how many equal units are auctioned together (1: the ordinary single-item auction).
        terms: what the work is, as JSON-like data.
        eligible: names of the agents that may bid; empty means everyone with the skill.
        awaited: names of agents whose answers the auction waits for, alive or not yet; empty means all live eligible
            ones. Reproducible runs set it, so that no decision depends on who was alive.
        lease_s: seconds after which an award without a sign of life is void.
        deadline_s: seconds after which the auction closes with what it has; ``None``: wait for all awaited answers.
    """

    task_id: str
    kind: str
    submitter: str
    terms: Mapping[str, Json] = field(default_factory=dict)
    units: int = 1
    eligible: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()
    lease_s: float = 30.0
    deadline_s: float | None = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement(Message):
    """Call for proposals (FIPA cfp) for one task, under one epoch."""

    task_id: str
    epoch: int
    kind: str
    terms: Mapping[str, Json] = field(default_factory=dict)
    units: int = 1
    eligible: tuple[str, ...] = ()
    deadline_s: float | None = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Award(Message):
    """The task (or ``units`` of it) goes to ``agent``; ``epoch`` fences everything that follows."""

    task_id: str
    epoch: int
    agent: str
    kind: str
    units: int
    terms: Mapping[str, Json]
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection(Message):
    """The proposal of ``agent`` did not win."""

    task_id: str
    epoch: int
    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Message):
    """The manager withdraws the task; work under ``epoch`` or an older one has no effect any more.

    Attributes:
        agent: whose award is void; empty: everybody's.
    """

    task_id: str
    epoch: int
    reason: str
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCommitted(Message):
    """Round ``round_index`` is on disk: from now on its rows and versions exist for every reader.

    Attributes:
        round_index: 1 for the first round of training; 0 is the initial checkpoint.
        rows: committed rows per experience stream.
        summary: what the round decided and measured (env_steps, updates, returns, seats, lots, reputation, …).
    """

    round_index: int
    rows: Mapping[str, int]
    summary: Mapping[str, Json]


# --- proposals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal(Message):
    """A bid: the value of the first, second, … unit to ``agent``, non-increasing, and the cost of one unit.

    Attributes:
        values: marginal value of each unit that the agent can take; its length is the agent's capacity for this task.
        cost: cost of one unit, in the same currency; the manager ranks by value − cost.
        uncertainty: one standard deviation of ``values[0]`` as predicted by the bidder.
        terms: anything that the winner wants to be reminded of.
    """

    task_id: str
    epoch: int
    agent: str
    values: tuple[float, ...]
    cost: float = 0.0
    uncertainty: float = 0.0
    terms: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Message):
    """``agent`` saw the announcement and does not bid."""

    task_id: str
    epoch: int
    agent: str
    reason: str


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Message):
    """The manager has journalled the submission: from now on the task cannot be lost."""

    task_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Message):
    """A sign of life that renews the lease; ``fraction`` in [0, 1]."""

    task_id: str
    epoch: int
    agent: str
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Message):
    """The award is performed. ``state`` is what ``Agent.save`` gave, if anything, to be committed with the result."""

    task_id: str
    epoch: int
    agent: str
    result: Mapping[str, Json] = field(default_factory=dict)
    state: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Message):
    """The award could not be performed; ``retryable`` says whether another attempt may succeed.

    Attributes:
        user_error: something that the user wrote or named is wrong; it is not tried again.
    """

    task_id: str
    epoch: int
    agent: str
    reason: str
    retryable: bool = True
    user_error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Message):
    """A submitted task reached its terminal state.

    Attributes:
        status: ``done``, ``failed``, ``cancelled`` or ``expired``.
        results: result of each award holder by agent name (one entry unless ``units`` > 1).
        units: units won by each agent.
        reason: why, where status is not ``done``.
        user_error: it failed because of something that the user wrote or named.
    """

    task_id: str
    status: str
    results: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    user_error: bool = False


# --- experience, parameters, gradients, evaluations -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsWritten(Message):
    """Rows [first_row, first_row + num_rows) of ``stream`` are written; they exist once their round is committed.

    Attributes:
        seats: who acted: member name per environment.
        episodes: statistics of the episodes that ended inside (``return``, ``length``, ``distance_m``, ``member``).
    """

    round_index: int
    stream: str
    first_row: int
    num_rows: int
    seats: tuple[str, ...]
    episodes: tuple[Mapping[str, Json], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParameterVersion(Message):
    """Acting weights of ``owner`` as of round ``version``; ``digest`` is the sha256 of the full state file."""

    owner: str
    version: int
    digest: str
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gradient(Message):
    """Gradients of the shared parameters at round ``version``.

    Attributes:
        owner: member on whose experience they were computed; of an aggregate, the group of members that share it.
        kind: ``member`` (one agent's own) or ``aggregate`` (the guarded combination of all).
        num_samples: samples behind each gradient, for weighting.
        arrays: ``prediction`` (G, P) and optionally ``meta`` (M, P) float32, of the encoder and the member's own head;
            of an aggregate, each of them split into the shared part and the heads', and ``refused`` arrays by sender.
    """

    owner: str
    version: int
    kind: str
    num_samples: int
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Message):
    """A judgement by ``judge`` about members, in round ``round_index``.

    Attributes:
        kind: ``vote`` (peer critics), ``return-…`` with the purpose of the episodes, ``adaptation`` (accept or reject).
        scores: a number per member name.
        details: anything that explains them.
    """

    judge: str
    round_index: int
    kind: str
    scores: Mapping[str, float]
    details: Mapping[str, Json] = field(default_factory=dict)


# --- presence ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """A peer joined. ``skills`` are kinds of work; ``capacity`` is how many awards it performs at once."""

    agent: str
    incarnation: int
    skills: tuple[str, ...] = ()
    capacity: int = 1
    process_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """The peer's process and loop are alive.

    Attributes:
        progress: a counter that grows whenever the agent finished something.
        sequences: last sequence number published per topic, so that a lost tail is noticed.
        skills: repeated, like capacity and process, so that who missed the hello still learns of the agent.
    """

    agent: str
    incarnation: int
    progress: int
    sequences: Mapping[str, int] = field(default_factory=dict)
    skills: tuple[str, ...] = ()
    capacity: int = 1
    process_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(Message):
    """The peer leaves on purpose."""

    agent: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDown(Message):
    """The supervisor saw the process of ``agent`` end; sent at once, before any heartbeat is missed."""

    agent: str
    reason: str
    restarting: bool
