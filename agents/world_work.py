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
from agents.pinned import Pinned, good_file, world_file
from agents.plan import SHIFTED, group_of, groups_of
from agents.randomness import generator
from agents.world_quality import QUALITY_WINDOWS, nominal_windows, num_stretches, task_windows, world_quality
from swarm.errors import SwarmError
from swarm.messages import Arrays, Gradient, Json

MAX_SKIPS: Final = 10
KEPT_WORLDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberGradients:
    """Gradients of the world model, (G, P) float32 each: ``prediction`` and, where there are shifted rows, ``meta``."""

    arrays: dict[str, NDArray[np.generic]]
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NextWorld:
    """What a round makes of a group's world model.

    Attributes:
        files: by name, to be committed: the next world model, and the one to fall back on where skips begin.
        weights: of its encoder.
        quality: how well the pinned world model predicts.
        troubles: what was left out or put back, in words.
    """

    files: Mapping[str, bytes]
    weights: Arrays
    quality: Mapping[str, Json]
    troubles: tuple[str, ...] = ()


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


def apply_to_world(pinned: Pinned, group: str, gradients: Arrays, round_index: int) -> NextWorld:
    """Return what the gradients make of the pinned world model.

    Meta-gradients are applied after the prediction gradients, each in turn; steps to what is not finite are left out.
    After ten rounds in a row with refused gradients of one sender, or without any usable one, the last good version
    takes the place of the pinned one. The newest good one of when skips began stays in the checkpoints until then.

    Raises:
        SwarmError: no version is good.
    """
    before, files, troubles = pinned.world(group), dict[str, bytes](), list[str]()
    world = apply_aggregate(before, gradients, pinned.team.world)
    skips = counted_skips(before.skips, gradients, world)
    if not is_finite(world):
        world = before
        troubles.append(f"a step of the world model {group} was left out: it led to what is not finite")
    if skips.any() and not before.skips.any():
        good = newest_good(pinned, group)
        if good is not None:
            files[good_file(group)] = save({**world_to_arrays(good[0]), "round": np.array([good[1]])})
    if skips.max() >= MAX_SKIPS:
        world, good_round = last_good(pinned, group)
        skips = np.zeros_like(skips)
        troubles.append(f"the world model {group} was set back to round {good_round}: {MAX_SKIPS} skips in a row")
    world = replace(world, skips=skips)
    files[world_file(group)] = save(world_to_arrays(world))
    weights = {name: value.numpy() for name, value in encoder_parameters(world).items()}
    quality = world_quality(pinned, group, round_index)
    return NextWorld(files=files, weights=weights, quality=quality, troubles=tuple(troubles))


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


def counted_skips(skips: NDArray[np.int64], gradients: Arrays, stepped: WorldState) -> NDArray[np.int64]:
    """Return for how many rounds in a row nothing was usable, and each sender was refused something; (1 + N,).

    Args:
        stepped: what the gradients lead to; they are of no use where that is not finite.
    """
    refused = np.array(gradients["refused"], np.int64) > 0
    nothing = refused.any() and not any(f"{kind}/shared" in gradients for kind in KINDS)
    return np.where(np.concatenate([[nothing or not is_finite(stepped)], refused]), skips + 1, 0)


def is_finite(world: WorldState) -> bool:
    """Return whether parameters and Adam's moments are finite: with an infinite moment nothing would move again."""
    return all(bool(torch.isfinite(vector).all()) for vector in (world.theta, world.m, world.v))


def is_good(pinned: Pinned, group: str, world: WorldState) -> bool:
    """Return whether a world model and its error of prediction on the group's rows are finite."""
    if not is_finite(world):
        return False
    windows = nominal_windows(pinned, group, np.random.default_rng(0), QUALITY_WINDOWS, with_states=False)
    return windows is None or bool(np.isfinite(prediction_error(world, windows, pinned.scales(group))["mse"]))


def newest_good(pinned: Pinned, group: str) -> tuple[WorldState, int] | None:
    """Return the newest good world model of the kept checkpoints, and its round; ``None`` where there is none."""
    for rounds_ago in range(KEPT_WORLDS):
        world = pinned.earlier_world(group, rounds_ago)
        if world is not None and is_good(pinned, group, world):
            return world, pinned.base - rounds_ago
    return None


def last_good(pinned: Pinned, group: str) -> tuple[WorldState, int]:
    """Return the newest good world model, from before the skips where no kept checkpoint has one, and its round.

    Raises:
        SwarmError: there is none.
    """
    found = newest_good(pinned, group) or pinned.good_world(group)
    if found is None or not is_good(pinned, group, found[0]):
        raise SwarmError(
            f"the world model {group} of round {pinned.base} and all that are kept of earlier rounds are not finite, "
            "or predict what is not: nothing good is left to go on with; start the run anew"
        )
    return found
