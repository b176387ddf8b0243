"""What the two state machines of the contract net are told (events) and what they ask for (instructions).

A shell turns messages, timers and deaths into events, calls ``handle(event, now_s)`` and executes the instructions in
order. ``now_s`` is a reading of the monotonic clock. The manager is in `swarm.contract_net`, the contractor in
`swarm.contractor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from swarm.journal import JournalEntry
from swarm.messages import (
    Announcement,
    Award,
    Cancel,
    Done,
    Failed,
    Message,
    Progress,
    Proposal,
    Refusal,
    Rejection,
    Submission,
)

# --- events of both ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; sent at or soon after the ``due_s`` of a `WakeAt`. An early or extra tick does no harm."""


# --- events of the manager --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """Somebody asks for a task."""

    submission: Submission


@dataclass(frozen=True, slots=True)
class Answered:
    """A contractor answered an announcement. Shells drop what an earlier life of the sender sent."""

    message: Proposal | Refusal


@dataclass(frozen=True, slots=True)
class Reported:
    """A holder works, has finished, or could not."""

    message: Progress | Done | Failed


@dataclass(frozen=True, slots=True)
class PeerUp:
    """An agent is alive; may be repeated (each heartbeat) without effect. A higher incarnation is a new life."""

    agent: str
    skills: frozenset[str]
    capacity: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The current life of an agent has ended or is given up."""

    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """A task is not wanted any more."""

    task_id: str
    reason: str


ManagerEvent: TypeAlias = Submitted | Answered | Reported | PeerUp | PeerGone | CancelAsked | Ticked

# --- events of the contractor -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of the manager arrived; those for other agents are ignored."""

    message: Announcement | Award | Rejection | Cancel


@dataclass(frozen=True, slots=True)
class Proposed:
    """The agent has made up its mind about an announcement."""

    answer: Proposal | Refusal


@dataclass(frozen=True, slots=True)
class Performed:
    """The agent has finished with an award, well or badly."""

    message: Done | Failed


ContractorEvent: TypeAlias = Heard | Proposed | Performed | Ticked

# --- instructions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish on the topic of the message's type."""

    message: Message


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send `Ticked` at or soon after ``due_s`` (monotonic); a newer one replaces the older."""

    due_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """Append to the journal; must be durable before the instructions after it are executed."""

    entry: JournalEntry


@dataclass(frozen=True, slots=True)
class Propose:
    """Have the agent answer; then send `Proposed`."""

    announcement: Announcement


@dataclass(frozen=True, slots=True)
class Perform:
    """Have the agent do the work; then send `Performed`."""

    award: Award


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop performing (task, epoch) if that is possible; its result will not be published."""

    task_id: str
    epoch: int


Instruction: TypeAlias = Publish | Record | WakeAt
ContractorInstruction: TypeAlias = Publish | Propose | Perform | Abandon | WakeAt
