"""Networks drawn afresh now and then, while experience stays: many updates a step over-fit to early experience.

Sources: Nikishin et al. 2022, arXiv:2205.07802 (the primacy bias; at resets the optimiser starts afresh too); Kim et
al. 2023, arXiv:2310.20287 (members of an ensemble reset by turns, so that the others carry on).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from agents.learning.networks import init_networks
from agents.learning.sac import MemberState

LAYERS = ("1", "2", "3")


def is_due(member: MemberState, every: int, place: int, num_members: int, round_index: int) -> bool:
    """Return whether the member resets in this round.

    Members take turns by round, so no two reset in one; the first reset of each also comes later by its place.

    Args:
        every: updates between resets; 0: never.
        place: of the member in the team, from 0.
    """
    scalars = member.scalars
    if every == 0 or round_index % num_members != place:
        return False
    offset = every * place // num_members if scalars.resets == 0 else 0
    return member.updates_since_reset >= every + offset


def reset(member: MemberState, num_layers: int, seed: int) -> MemberState:
    """Return the member with fresh weights in the last ``num_layers`` of each network, targets and optimiser included.

    Temperature, range of targets and what has been counted stay.
    """
    sizes = member.sizes
    theta, fresh = member.theta.clone(), init_networks(sizes, torch.Generator().manual_seed(seed), member.theta.dtype)
    names = [kind + layer for layer in LAYERS[len(LAYERS) - num_layers :] for kind in ("w", "b")]
    targets = member.targets.clone()
    (critics, actor), (new_critics, new_actor) = sizes.split(theta), sizes.split(fresh)
    critic_part, actor_part = sizes.critic.span(*names), sizes.actor.span(*names)
    critics[:, critic_part] = new_critics[:, critic_part]
    targets[:, critic_part] = new_critics[:, critic_part]
    actor[actor_part] = new_actor[actor_part]
    scalars = member.scalars
    return replace(
        member,
        theta=theta,
        m=torch.zeros_like(theta),
        v=torch.zeros_like(theta),
        targets=targets,
        average=torch.empty(0),
        scalars=replace(
            scalars,
            alpha_m=0.0,
            alpha_v=0.0,
            critic_restart=scalars.critic_steps,
            actor_restart=scalars.actor_steps,
            resets=scalars.resets + 1,
        ),
    )
