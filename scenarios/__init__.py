"""A run is data: team, task, budget, mode, seed. Importing this package imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from scenarios.collaborative_learning import CollaborationResult, CollaborativeLearning
    from scenarios.scenario import Scenario, list_presets, load_preset, load_scenario

__all__ = [
    "CollaborationResult",
    "CollaborativeLearning",
    "Scenario",
    "list_presets",
    "load_preset",
    "load_scenario",
]

_HOMES: Final = {
    "CollaborationResult": "scenarios.collaborative_learning",
    "CollaborativeLearning": "scenarios.collaborative_learning",
    "Scenario": "scenarios.scenario",
    "list_presets": "scenarios.scenario",
    "load_preset": "scenarios.scenario",
    "load_scenario": "scenarios.scenario",
}


def __getattr__(name: str) -> object:
    """Import an exported name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'scenarios' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
