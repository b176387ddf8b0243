"""Every exception that this project raises on purpose, by who must act.

SwarmError
├── ConfigError          the user: a scenario, an option, a path
│   └── CheckpointError  the user: a run directory that cannot be continued as it is
├── CodecError           a peer: bytes that are not a message
├── InvalidTransition    us: a state machine was driven wrongly
├── ActionError          the caller of an environment: an action that cannot be stepped
├── BusFull              the publisher: wait with ``wait_writable``
├── BusClosed            the world: the bus was closed
├── PeerLost             the world: a process died, hung or never answered
└── TaskFailed           the submitter: a task ended without a result
    └── TaskImpossible   the user (a ConfigError too): what it was told to do cannot be done, however often it is tried
"""

from __future__ import annotations

import traceback


class SwarmError(Exception):
    """Root of all errors of this project; its text says what was got, what was expected, what to do."""


class ConfigError(SwarmError):
    """Something that the user wrote or named is wrong."""


class CheckpointError(ConfigError):
    """A run directory or checkpoint is missing, damaged or of another version."""


class CodecError(SwarmError):
    """Bytes from a peer are not a valid message; ``reason`` is a short countable slug.

    Attributes:
        reason: a name such as ``truncated`` or ``bad-dtype``, for counters.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class InvalidTransition(SwarmError):
    """A pure state machine was given an event that its contract forbids."""


class ActionError(SwarmError):
    """An action was not finite (or, in strict mode, out of range): nothing was stepped."""


class BusFull(SwarmError):
    """A reliable topic holds as many bytes as it may; nothing was published.

    Attributes:
        topic: name of the topic.
        retained_bytes: bytes held for it.
        slowest: the reader that is furthest behind, where known.
    """

    def __init__(self, topic: str, retained_bytes: int, slowest: str | None) -> None:
        super().__init__(
            f"topic {topic!r} holds {retained_bytes} bytes unread (slowest reader: {slowest or 'unknown'}); "
            "await bus.wait_writable(topic) before publishing again"
        )
        self.topic = topic
        self.retained_bytes = retained_bytes
        self.slowest = slowest


class BusClosed(SwarmError):
    """The bus was closed while it was needed."""


class PeerLost(SwarmError):
    """A process or agent died, hung, or did not answer in time."""


class TaskFailed(SwarmError):
    """A task reached the terminal state failed, cancelled or expired."""


class TaskImpossible(TaskFailed, ConfigError):
    """A task failed because of something that the user wrote or named: trying it again cannot mend it."""


def traceback_of(error: BaseException) -> str:
    """The error's traceback as plain text, logged as `stack=`, which structlog prints as it is.

    The alternative, `exc_info`, lets structlog's default configuration draw every variable of every frame: with large
    libraries loaded that holds up the event loop for seconds, and every agent with it.
    """
    return "".join(traceback.format_exception(error)).rstrip()
