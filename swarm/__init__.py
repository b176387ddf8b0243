"""The runtime: messages, bus, contract net, supervision, journal, launchers. No torch, no mujoco, no RL.

The names below are imported when they are first used, so that ``import swarm`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.ablation import Faults
    from swarm.agent import Agent, AgentContext
    from swarm.bus import Bus, Lost, Received
    from swarm.errors import ConfigError, PeerLost, SwarmError, TaskFailed, TaskImpossible
    from swarm.launch import ExtraProcess, InlineLauncher, Launcher, ProcessesLauncher
    from swarm.messages import Announcement, Award, Ended, Proposal, Refusal, Submission
    from swarm.swarm import Swarm, SwarmOptions
    from swarm.topics import Topic

__all__ = [
    "Agent",
    "AgentContext",
    "Announcement",
    "Award",
    "Bus",
    "ConfigError",
    "Ended",
    "ExtraProcess",
    "Faults",
    "InlineLauncher",
    "Launcher",
    "Lost",
    "PeerLost",
    "ProcessesLauncher",
    "Proposal",
    "Received",
    "Refusal",
    "Submission",
    "Swarm",
    "SwarmError",
    "SwarmOptions",
    "TaskFailed",
    "TaskImpossible",
    "Topic",
]

_HOMES = {
    "swarm.ablation": ("Faults",),
    "swarm.agent": ("Agent", "AgentContext"),
    "swarm.bus": ("Bus", "Lost", "Received"),
    "swarm.errors": ("ConfigError", "PeerLost", "SwarmError", "TaskFailed", "TaskImpossible"),
    "swarm.launch": ("ExtraProcess", "InlineLauncher", "Launcher", "ProcessesLauncher"),
    "swarm.messages": ("Announcement", "Award", "Ended", "Proposal", "Refusal", "Submission"),
    "swarm.swarm": ("Swarm", "SwarmOptions"),
    "swarm.topics": ("Topic",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'swarm' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
