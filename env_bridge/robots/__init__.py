"""Robots whose observation and reward are computed over a batch, by Gymnasium id."""

from __future__ import annotations

from env_bridge.robots.anatomy import Robot
from env_bridge.robots.ant import ant
from env_bridge.robots.half_cheetah import HalfCheetah
from env_bridge.robots.humanoid import Humanoid
from env_bridge.robots.walker import hopper, walker2d


def robot_for(env_id: str) -> Robot | None:
    """The robot of ``env_id``, or ``None``: that environment steps through its own Gymnasium class."""
    name, _, version = env_id.rpartition("-v")
    if version not in ("4", "5"):
        return None
    number = int(version)
    match name:
        case "HalfCheetah":
            return HalfCheetah()
        case "Ant":
            return ant(number)
        case "Humanoid":
            return Humanoid(version=number)
        case "Walker2d":
            return walker2d(number)
        case "Hopper":
            return hopper(number)
        case _:
            return None
