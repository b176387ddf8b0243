"""Robots whose observation, reward and infos are computed over a batch: Gymnasium's classes, by where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import gymnasium

from env_bridge.robots.anatomy import Robot
from env_bridge.robots.ant import OPTIONS as ANT_OPTIONS
from env_bridge.robots.ant import Ant, ant
from env_bridge.robots.half_cheetah import OPTIONS as HALF_CHEETAH_OPTIONS
from env_bridge.robots.half_cheetah import HalfCheetah, half_cheetah
from env_bridge.robots.humanoid import OPTIONS as HUMANOID_OPTIONS
from env_bridge.robots.humanoid import Humanoid, humanoid
from env_bridge.robots.options import PICTURE_OPTIONS, Reader, read_options
from env_bridge.robots.walker import HOPPER_OPTIONS, WALKER2D_OPTIONS, Walker, hopper, walker2d

__all__ = ["PICTURE_OPTIONS", "robot_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How to make a robot as a version of Gymnasium's class, and the readers of its options by version."""

    make: Callable[[int], HalfCheetah | Ant | Humanoid | Walker]
    options: Mapping[int, Mapping[str, Reader]]


_KINDS: Final[Mapping[str, tuple[_Kind, int]]] = {
    f"gymnasium.envs.mujoco.{module}_v{version}:{name}": (kind, version)
    for module, name, kind in (
        ("half_cheetah", "HalfCheetahEnv", _Kind(make=half_cheetah, options=HALF_CHEETAH_OPTIONS)),
        ("ant", "AntEnv", _Kind(make=ant, options=ANT_OPTIONS)),
        ("humanoid", "HumanoidEnv", _Kind(make=humanoid, options=HUMANOID_OPTIONS)),
        ("walker2d", "Walker2dEnv", _Kind(make=walker2d, options=WALKER2D_OPTIONS)),
        ("hopper", "HopperEnv", _Kind(make=hopper, options=HOPPER_OPTIONS)),
    )
    for version in (4, 5)
}


def robot_for(env_id: str, options: Mapping[str, object] | None = None) -> Robot | None:
    """The robot of ``env_id``, or ``None``: that environment steps through its own Gymnasium class.

    Args:
        env_id: registered for one of Gymnasium's classes without further wrappers, under whatever name.
        options: of the class's constructor, over those that are registered with the id.

    Raises:
        ConfigError: an option that the class does not take or that is about pictures, or a value of the wrong type.
    """
    spec = gymnasium.registry.get(env_id)
    if spec is None or not isinstance(spec.entry_point, str) or spec.additional_wrappers:
        return None
    found = _KINDS.get(spec.entry_point)
    if found is None:
        return None
    kind, version = found
    given = {name: value for name, value in spec.kwargs.items() if name not in PICTURE_OPTIONS} | dict(options or {})
    values = read_options(env_id, kind.options[version], kind.options[9 - version], given)
    return replace(kind.make(version), **values)
