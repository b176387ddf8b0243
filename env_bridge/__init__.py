"""MuJoCo behind a process boundary; importing this package imports neither mujoco nor gymnasium."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from env_bridge.client import BridgeClient, RemoteVectorEnv, connect
    from env_bridge.gym_vector import BridgeVectorEnv
    from env_bridge.render import check_rendering, render_video
    from env_bridge.tasks import SUITES, parse_shift, suite

_HOME: Final = {
    "BridgeClient": "client",
    "BridgeVectorEnv": "gym_vector",
    "RemoteVectorEnv": "client",
    "SUITES": "tasks",
    "check_rendering": "render",
    "connect": "client",
    "parse_shift": "tasks",
    "render_video": "render",
    "suite": "tasks",
}

__all__ = [
    "SUITES",
    "BridgeClient",
    "BridgeVectorEnv",
    "RemoteVectorEnv",
    "check_rendering",
    "connect",
    "parse_shift",
    "render_video",
    "suite",
]


def __getattr__(name: str) -> object:
    """Import an exported name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"env_bridge.{_HOME[name]}"), name)
