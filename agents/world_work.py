"""What a round does to the shared world model: members' gradients of it, its next version, how well it predicts.

Everything here is a function of what is pinned, and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from agents.config import WorldConfig
from agents.learning.aggregation import KINDS, Aggregate, aggregate
from agents.learning.maml import meta_gradients
from agents.learning.world_model import prediction_error, prediction_gradients
from agents.learning.world_state import WorldState, apply_gradients, encoder_parameters, world_to_arrays
from agents.pinned import Pinned
from agents.plan import SHIFTED, group_of, groups_of
from agents.randomness import generator
from agents.world_quality import QUALITY_WINDOWS, nominal_windows, num_stretches, task_windows, world_quality
from swarm.messages import Arrays, Gradient, Json

MAX_SKIPS: Final = 10
KEPT_WORLDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberGradients:
    """Gradients of the world model, (G, P) float32 each: ``prediction`` and, where there are shifted rows, ``meta``."""

    arrays: dict[str, NDArray[np.generic]]
    num_samples: int


def member_gradients(pinned: Pinned, member: str, round_index: int) -> MemberGradients:
    """Return gradients on windows that ``member`` draws: prediction, and MAML's outer loop."""
    team = pinned.team
    group, config = group_of(team, member), team.world
    head = groups_of(team)[group].index(member)
    world, scales = pinned.world(group), pinned.scales(group)
    rng = generator(team.seed, round_index, "gradient", member)
    arrays: dict[str, NDArray[np.generic]] = {}
    number = config.gradients_per_round
    windows = nominal_windows(pinned, group, rng, number * config.windows_per_batch)
    if windows is not None:
        arrays["prediction"] = prediction_gradients(world, windows, scales, number, head)
    number = config.meta_gradients_per_round
    if num_stretches(pinned) and number:
        support, query = task_windows(pinned, pinned.view(group, SHIFTED), rng, number * config.meta_tasks)
        arrays["meta"] = meta_gradients(world, support, query, scales, config, number, head)
    return MemberGradients(arrays=arrays, num_samples=config.windows_per_batch * config.window)


def combine_gradients(pinned: Pinned, group: str, gradients: Sequence[Gradient], round_index: int) -> Aggregate:
    """Guard and combine the gradients of a group's members, in the order of the members."""
    sizes = pinned.world(group).sizes
    return aggregate(
        gradients, pinned.team.world, version=round_index, shared=sizes.num_shared, parameters=sizes.num_part
    )


def apply_to_world(
    pinned: Pinned, group: str, gradients: Arrays, round_index: int
) -> tuple[bytes, Arrays, Mapping[str, Json]]:
    """Return the next world model as a file, its encoder's weights, and how well the pinned one predicts.

    Meta-gradients are applied after the prediction gradients, each in turn. After ten rounds in a row with refused
    gradients of one sender, or without any usable one, the last good version takes the place of the pinned one.
    """
    pinned_world = pinned.world(group)
    skips = counted_skips(pinned_world.skips, gradients)
    world, rolled_back = pinned_world, None
    if skips.max() >= MAX_SKIPS:
        rolled_back = rounds_to_last_good(pinned, group)
        world = pinned.earlier_world(group, rolled_back) or pinned_world
        skips = np.zeros_like(skips)
    else:
        world = apply_aggregate(world, gradients, pinned.team.world)
    world = replace(world, skips=skips)
    weights = {name: value.numpy() for name, value in encoder_parameters(world).items()}
    quality = dict(world_quality(pinned, group, round_index))
    if rolled_back is not None:
        quality["rolled_back_to"] = pinned.base - rolled_back
    return save(world_to_arrays(world)), weights, quality


def apply_aggregate(world: WorldState, gradients: Arrays, config: WorldConfig) -> WorldState:
    """Return the world model after the steps of an aggregate: prediction first, then meta."""
    for kind in KINDS:
        if f"{kind}/shared" not in gradients:
            continue
        heads = {
            index: np.array(gradients[name], np.float32)
            for index in range(world.sizes.heads)
            if (name := f"{kind}/head-{index}") in gradients
        }
        world = apply_gradients(world, np.array(gradients[f"{kind}/shared"], np.float32), heads, config)
    return world


def counted_skips(skips: NDArray[np.int64], gradients: Arrays) -> NDArray[np.int64]:
    """Return for how many rounds in a row nothing was usable, and each sender was refused something; (1 + N,)."""
    refused = np.array(gradients["refused"], np.int64) > 0
    nothing = refused.any() and not any(f"{kind}/shared" in gradients for kind in KINDS)
    return np.where(np.concatenate([[nothing], refused]), skips + 1, 0)


def rounds_to_last_good(pinned: Pinned, group: str) -> int:
    """Return how many rounds ago the newest kept world model was whose parameters and prediction error are finite."""
    for rounds_ago in range(KEPT_WORLDS):
        world = pinned.earlier_world(group, rounds_ago)
        if world is not None and bool(torch.isfinite(world.theta).all()):
            windows = nominal_windows(pinned, group, np.random.default_rng(0), QUALITY_WINDOWS, with_states=False)
            if windows is None or np.isfinite(prediction_error(world, windows, pinned.scales(group))["mse"]):
                return rounds_ago
    return 0
