"""The five specialists and what they know. The only place with torch; importing this package does not import it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.adaptation import AdaptationAgent
    from agents.coordinator import CoordinatorAgent
    from agents.environment import EnvironmentAgent
    from agents.export import export_policy
    from agents.exported import load_policy
    from agents.meta_learning import MetaLearningAgent
    from agents.state_modeling import StateModelingAgent

__all__ = [
    "AdaptationAgent",
    "CoordinatorAgent",
    "EnvironmentAgent",
    "MetaLearningAgent",
    "StateModelingAgent",
    "export_policy",
    "load_policy",
]

_HOMES = {
    "AdaptationAgent": "agents.adaptation",
    "CoordinatorAgent": "agents.coordinator",
    "EnvironmentAgent": "agents.environment",
    "MetaLearningAgent": "agents.meta_learning",
    "StateModelingAgent": "agents.state_modeling",
    "export_policy": "agents.export",
    "load_policy": "agents.exported",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used, so that the coordinator's process stays without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
