"""What test-time adaptation starts from: members' policies, and their world models with critics, ready for acting.

Letters in this file: T time steps, W windows, X inputs of a dynamics head, Y its outputs. Blocks and uses torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from agents.config import AdaptConfig
from agents.deployment import Deployment
from agents.dynamics_heads import Lookahead
from agents.learning.encoder import columns_from_arrays, encode_stream
from agents.learning.inner_loop import adapt
from agents.learning.maml import inner_loop_of, networks_of, ridge_layer
from agents.learning.windows import cut_windows
from agents.learning.world_model import prepare
from agents.learning.world_state import encoder_parameters
from agents.member import encoder_sizes
from agents.pinned import Pinned
from agents.plan import group_of, groups_of
from swarm.environment import RolloutResult


class AdaptableTeam:
    """The members of one committed round."""

    def __init__(self, pinned: Pinned) -> None:
        self.members: tuple[str, ...] = pinned.team.members
        self._pinned = pinned

    def plain(self, member: str) -> Deployment:
        """Return the member's actor with its memory lasting over episodes."""
        group = group_of(self._pinned.team, member)
        return Deployment(member=member, encoder=group, weights=self._pinned.deployed_weights(member), carry=True)

    def looking_ahead(self, member: str, config: AdaptConfig, *, online: bool) -> Deployment:
        """Return the member with its dynamics head as trained; ``online``: adapting at every step."""
        plain = self.plain(member)
        weights = {**plain.weights, **self._critics(member), **self._head(member)}
        return replace(plain, weights=weights, lookahead=self._lookahead(member, config, online=online))

    def adapted(self, deployment: Deployment, result: RolloutResult, config: AdaptConfig) -> Deployment:
        """Return the deployment with its dynamics head, as trained, adapted to the newest transitions of ``result``.

        All environments of the block are under one task, so their transitions are one support set. Environments with
        fewer than ``config.transitions`` of them are left out; where all have fewer, the longest count with all.
        """
        head = self._adapted_head(deployment.member, result, config.transitions)
        return deployment if head is None else replace(deployment, weights={**deployment.weights, **head})

    def _lookahead(self, member: str, config: AdaptConfig, *, online: bool) -> Lookahead:
        team = self._pinned.team
        how = Lookahead(discount=team.discount_of(member), reward_scale=team.sac.reward_scale, reach=config.reach)
        if not online:
            return how
        loop = inner_loop_of(team.world, self._views(member)[1])
        first, last = (float(rate) for rate in loop.layer_rates)
        return replace(
            how,
            window=config.transitions,
            steps=loop.steps,
            context_rate=float(loop.context_rate),
            first_rate=first,
            last_rate=last,
        )

    def _views(self, member: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        group = group_of(self._pinned.team, member)
        world = self._pinned.world(group)
        index = groups_of(self._pinned.team)[group].index(member)
        return world.sizes.views(world.sizes.part(world.theta, index))

    def _head(self, member: str) -> dict[str, NDArray[np.generic]]:
        scales = self._pinned.scales(group_of(self._pinned.team, member))
        head = self._views(member)[1]
        return {
            **{f"world.{name}": head[name].detach().numpy() for name in ("c0", "w1", "b1", "w2", "b2")},
            "world.mean": np.concatenate([scales.change_mean, scales.reward_mean]),
            "world.factor": np.concatenate([scales.change_factor, scales.reward_factor]),
        }

    def _critics(self, member: str) -> dict[str, NDArray[np.generic]]:
        """Return both critics, the scale of the encoder's features being part of their first layer."""
        state, config = self._pinned.member(member), self._pinned.team.member
        critics = dict(state.sizes.critic.views(state.sizes.split(state.theta)[0]))
        scale = torch.ones(critics["w1"].shape[1])
        scale[state.sizes.inputs - config.encoder_width : state.sizes.inputs] = config.feature_scale
        critics["w1"] = critics["w1"] * scale[:, None]
        return {f"critic.{name}": value.detach().numpy() for name, value in critics.items()}

    @torch.no_grad()
    def _adapted_head(self, member: str, result: RolloutResult, length: int) -> dict[str, NDArray[np.generic]] | None:
        team = self._pinned.team
        group = group_of(team, member)
        world, scales = self._pinned.world(group), self._pinned.scales(group)
        valid = np.asarray(result.columns["valid"], bool)
        length = min(length, int(valid.sum(axis=0).max()))
        starts = newest_windows(valid, max(length, 1))
        if not len(starts):
            return None
        columns = columns_from_arrays(result.columns, len(result.columns["reward"]))
        encoder, head = self._views(member)
        sizes = encoder_sizes(team.member, *self._pinned.sizes)
        states = encode_stream(sizes, encoder_parameters(world), columns, scales).states
        seen = prepare(world.sizes, encoder, cut_windows(columns, states, starts, length), scales)
        known, target = (rows.transpose(0, 1).flatten(0, 1)[None] for rows in (seen.known, seen.target))
        if team.world.adapted == "ridge":
            weights, bias = ridge_layer(head, known, target, team.world)
            unchanged = {f"world.{name}": head[name].numpy() for name in ("c0", "w1", "b1")}
            return {**unchanged, "world.w2": weights[0].numpy(), "world.b2": bias.flatten().numpy()}
        before = networks_of(head, known.shape[-1], 1)
        after = adapt(before, known, target, seen.mask, inner_loop_of(team.world, head))
        first, last = (weight.reshape(weight.shape[-2:]) for weight in after.weights)
        context, reading = after.context, after.context_weights
        if context is None or reading is None:
            raise AssertionError("dynamics heads have a context")
        return {
            "world.c0": context.flatten().numpy().copy(),
            "world.w1": torch.cat([first, reading]).numpy(),
            "world.b1": after.biases[0].flatten().numpy().copy(),
            "world.w2": last.numpy().copy(),
            "world.b2": after.biases[1].flatten().numpy().copy(),
        }


def newest_windows(valid_TE: NDArray[np.bool_], length: int) -> NDArray[np.int64]:
    """Return (step, environment) where the last ``length`` valid rows of each environment start, shape (W, 2)."""
    starts: Sequence[tuple[int, int]] = [
        (int(count) - length, environment) for environment, count in enumerate(valid_TE.sum(axis=0)) if count >= length
    ]
    return np.array(starts, np.int64).reshape(-1, 2)
