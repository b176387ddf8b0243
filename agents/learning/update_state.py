"""What a call of `agents.learning.updates.run_updates` reads and writes: sizes, settings, vectors, draws, buffers.

Letters in this file: U updates, B batch, X inputs, A actions, K target critics, P parameters, R rows, W packed width.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.learning.passes import (
    ActorPass,
    Common,
    CriticPass,
    Floats,
    Layers,
    actor_pass,
    critic_pass,
    layer_views,
)
from agents.learning.tiles import aligned, scratch_size

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

(
    LOG_ALPHA,
    ALPHA_M,
    ALPHA_V,
    CRITIC_STEPS,
    ACTOR_STEPS,
    TARGET_LOW,
    TARGET_HIGH,
    SEEN_LOW,
    SEEN_HIGH,
    SKIPPED,
    CRITIC_RESTART,
    ACTOR_RESTART,
    RESETS,
    GUIDE_WEIGHT,
    GUIDE_DISTANCE,
    GUIDE_UPDATES,
) = range(16)
"""Places in the vector of a member's scalars, in the order of `sac.Scalars`."""

SUM_LOSS, SUM_VALUE, SUM_ENTROPY, SUM_DISTANCE, SUM_IMITATED = range(5)
"""Places in the vector of sums over the updates of a call."""
NUM_SUMS: Final = 5


class Sizes(NamedTuple):
    """Sizes of actor and critics; `networks.NetworkSizes` without methods."""

    inputs: int
    actions: int
    actor_first: int
    actor_second: int
    critic_first: int
    critic_second: int


class Settings(NamedTuple):
    """What `config.SacConfig` says of an update."""

    learning_rate: float
    discount: float
    target_rate: float
    target_entropy: float
    policy_delay: int
    guidance: float
    guidance_distance: float
    imitation: float


class Vectors(NamedTuple):
    """A member's vectors, written in place: two critics and the actor (P,), Adam's moments, targets (K, P_critic)."""

    theta: Floats
    m: Floats
    v: Floats
    targets: Floats


class Peers(NamedTuple):
    """What an actor learns from its peers.

    Attributes:
        guide: (P_actor,) the best member's actor, or empty.
        anchor: (P_actor,) that actor when the weight of guidance was last adapted; written in place. Empty with it.
        foreign: (R,) 1 for the rows in which a peer acted, or empty.
    """

    guide: Floats
    anchor: Floats
    foreign: NDArray[np.uint8]


class Draws(NamedTuple):
    """All that is random: rows (U, B), noise (U, 2, B, A) of successor and own actions, pairs of targets (U, 2)."""

    rows: Integers
    noise: Floats
    pairs: Integers


class Nets(NamedTuple):
    """Views of the trained networks and of their gradient."""

    critic_0: Layers
    critic_1: Layers
    actor: Layers
    critic_gradient_0: Layers
    critic_gradient_1: Layers
    actor_gradient: Layers


class Work(NamedTuple):
    """Buffers of a call, and views of the batch: (B, X + A), (B, X), (B, A) of now and next, (B,)."""

    gradient: Floats
    batch: Floats
    q_0: Floats
    q_1: Floats
    target: Floats
    d_action: Floats
    chosen: Integers
    pass_0: CriticPass
    pass_1: CriticPass
    actor: ActorPass
    guide: ActorPass
    q_stored: Floats
    stored: Floats
    aim: Floats
    weights: Floats
    common: Common


class Workspace(NamedTuple):
    """What a call of `run_updates` writes to besides the vectors."""

    nets: Nets
    work: Work


def workspace(vectors: Vectors, sizes: Sizes, batch: int, width: int) -> Workspace:
    """Return views of the networks, and buffers for batches (B, W) of ``width`` W."""
    dtype, size = vectors.theta.dtype, vectors.targets.shape[1]
    gradient = aligned(vectors.theta.shape, dtype)
    c1, c2 = sizes.critic_first, sizes.critic_second
    critic = (sizes.inputs + sizes.actions, c1, c2, 1)
    actor = (sizes.inputs, sizes.actor_first, sizes.actor_second, 2 * sizes.actions)
    views = [
        layer_views(flat[part], *shape)
        for flat in (vectors.theta, gradient)
        for part, shape in (
            (slice(0, size), critic),
            (slice(size, 2 * size), critic),
            (slice(2 * size, None), actor),
        )
    ]
    widest = max(*critic, *actor)
    q_0, q_1, target, q_stored, weights = (aligned(batch, dtype) for _ in range(5))
    d_action, stored, aim, few = (aligned((batch, sizes.actions), dtype) for _ in range(4))
    scratch = aligned(scratch_size(max(batch, widest), max(batch, widest), widest), dtype)
    work = Work(
        gradient=gradient,
        batch=aligned((batch, width), dtype),
        q_0=q_0,
        q_1=q_1,
        target=target,
        d_action=d_action,
        chosen=np.zeros(batch, np.int64),
        pass_0=critic_pass(batch, c1, c2, dtype),
        pass_1=critic_pass(batch, c1, c2, dtype),
        actor=actor_pass(batch, *actor[1:3], sizes.actions, dtype),
        guide=actor_pass(batch, *actor[1:3], sizes.actions, dtype),
        q_stored=q_stored,
        stored=stored,
        aim=aim,
        weights=weights,
        common=Common(zeros=aligned(widest, dtype), scratch=scratch, few=few, all_rows=np.arange(batch)),
    )
    return Workspace(nets=Nets(*views), work=work)
