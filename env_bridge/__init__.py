"""MuJoCo behind a process boundary; importing this package imports neither mujoco nor gymnasium."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from env_bridge.async_env import AsyncBridgeVectorEnv
    from env_bridge.client import BridgeClient, RemoteVectorEnv, connect
    from env_bridge.clips import Clip, VideoOptions
    from env_bridge.gym_vector import BridgeVectorEnv, branch
    from env_bridge.render import check_rendering, contact_sheet, render_video
    from env_bridge.suites import SUITES, suite
    from env_bridge.tasks import parse_shift

_HOME: Final = {
    "AsyncBridgeVectorEnv": "async_env",
    "BridgeClient": "client",
    "BridgeVectorEnv": "gym_vector",
    "RemoteVectorEnv": "client",
    "SUITES": "suites",
    "branch": "gym_vector",
    "Clip": "clips",
    "VideoOptions": "clips",
    "check_rendering": "render",
    "contact_sheet": "render",
    "connect": "client",
    "parse_shift": "tasks",
    "render_video": "render",
    "suite": "suites",
}

__all__ = [
    "SUITES",
    "AsyncBridgeVectorEnv",
    "BridgeClient",
    "BridgeVectorEnv",
    "Clip",
    "RemoteVectorEnv",
    "VideoOptions",
    "branch",
    "check_rendering",
    "connect",
    "contact_sheet",
    "parse_shift",
    "render_video",
    "suite",
]


def __getattr__(name: str) -> object:
    """Import an exported name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"env_bridge.{_HOME[name]}"), name)
    except AttributeError as error:  # such as of a missing GL library; Python would only say that there is no such name
        raise ImportError(f"cannot import {name!r} from {__name__!r}: {error}{_gl_hint()}") from error


def _gl_hint() -> str:
    backend = os.environ.get("MUJOCO_GL")
    return f" (MUJOCO_GL={backend}: install its library, or unset it)" if backend else ""
