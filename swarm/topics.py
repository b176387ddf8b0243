"""The topics of the bus: which message types each carries, and with which delivery promise."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from swarm.messages import (
    Accepted,
    Announcement,
    Award,
    Cancel,
    Done,
    Ended,
    Evaluation,
    Failed,
    Goodbye,
    Gradient,
    Heartbeat,
    Hello,
    Message,
    ParameterVersion,
    PeerDown,
    Progress,
    Proposal,
    Refusal,
    Rejection,
    RoundCommitted,
    RowsWritten,
    Submission,
)


class Topic(StrEnum):
    """Name of a topic; its value is what travels in the first frame."""

    TASKS = "tasks"
    PROPOSALS = "proposals"
    RESULTS = "results"
    EXPERIENCE = "experience"
    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    EVALUATIONS = "evaluations"
    PRESENCE = "presence"


class Delivery(StrEnum):
    """What a subscriber may rely on.

    ``reliable``: in order per publisher, repaired from the publisher's retention, what fell out arrives as ``Lost(n)``.
    ``latest``: the last value per key; a late joiner gets it; older values may be skipped.
    ``best_effort``: oldest dropped under pressure, counted.
    """

    RELIABLE = "reliable"
    LATEST = "latest"
    BEST_EFFORT = "best_effort"


MESSAGE_TYPES: Final[dict[Topic, tuple[type[Message], ...]]] = {
    Topic.TASKS: (Submission, Announcement, Award, Rejection, Cancel, RoundCommitted),
    Topic.PROPOSALS: (Proposal, Refusal),
    Topic.RESULTS: (Accepted, Progress, Done, Failed, Ended),
    Topic.EXPERIENCE: (RowsWritten,),
    Topic.PARAMETERS: (ParameterVersion,),
    Topic.GRADIENTS: (Gradient,),
    Topic.EVALUATIONS: (Evaluation,),
    Topic.PRESENCE: (Hello, Heartbeat, Goodbye, PeerDown),
}

DELIVERY: Final[dict[Topic, Delivery]] = {
    Topic.TASKS: Delivery.RELIABLE,
    Topic.PROPOSALS: Delivery.RELIABLE,
    Topic.RESULTS: Delivery.RELIABLE,
    Topic.EXPERIENCE: Delivery.RELIABLE,
    Topic.PARAMETERS: Delivery.LATEST,
    Topic.GRADIENTS: Delivery.RELIABLE,
    Topic.EVALUATIONS: Delivery.RELIABLE,
    Topic.PRESENCE: Delivery.BEST_EFFORT,
}

TOPIC_OF: Final[dict[type[Message], Topic]] = {
    message_type: topic for topic, message_types in MESSAGE_TYPES.items() for message_type in message_types
}
