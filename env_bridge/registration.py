"""The robots of the bridge as Gymnasium ids: ``bridge/HalfCheetah-v4`` and so on. Importing this module registers them.

Gymnasium finds them by the module's name too:
``gymnasium.make_vec("env_bridge.registration:bridge/HalfCheetah-v4", num_envs=8)``. An id's vector environment is a
`BridgeVectorEnv` (``make_vec``'s default, and ``vectorization_mode="vector_entry_point"``), which takes its options as
keywords of ``make_vec``; its single environment (``gymnasium.make``, and the modes ``"sync"`` and ``"async"``) is
Gymnasium's own class. Time limit, reward threshold and so on are those of Gymnasium's id.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import gymnasium

NAMESPACE: Final = "bridge"
IDS: Final = tuple(
    f"{robot}-v{version}" for robot in ("HalfCheetah", "Ant", "Humanoid", "Walker2d", "Hopper") for version in (4, 5)
)


def register() -> None:
    """Register all ids of `IDS` under `NAMESPACE`; what is registered already stays."""
    for env_id in IDS:
        if f"{NAMESPACE}/{env_id}" in gymnasium.registry:
            continue
        known = gymnasium.registry[env_id]
        gymnasium.register(
            id=f"{NAMESPACE}/{env_id}",
            entry_point=known.entry_point,
            vector_entry_point=f"{__name__}:{env_id}",
            reward_threshold=known.reward_threshold,
            nondeterministic=known.nondeterministic,
            max_episode_steps=known.max_episode_steps,
            order_enforce=known.order_enforce,
            disable_env_checker=known.disable_env_checker,
            additional_wrappers=known.additional_wrappers,
            kwargs=dict(known.kwargs),
        )


def __getattr__(name: str) -> Callable[..., gymnasium.vector.VectorEnv[Any, Any, Any]]:
    """Return the vector entry point of an id, which Gymnasium asks for by name; imports MuJoCo only then (PEP 562)."""
    if name not in IDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from env_bridge.gym_vector import BridgeVectorEnv

    return partial(BridgeVectorEnv, name)


register()
