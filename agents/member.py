"""A member of the team: sizes, birth, checkpoint form, acting weights and its judgement of peers.

Letters: B states, M members, X inputs of actor and critics, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import MemberConfig
from agents.learning.encoder import EncoderSizes, Parameters
from agents.learning.networks import NetworkSizes, actor_output, critic_values, init_networks
from agents.learning.normalizer import Scales
from agents.learning.sac import MemberState, Scalars, scalars_from
from swarm.errors import CheckpointError

MIN_PARAMETERS = 50_000
MAX_PARAMETERS = 54_000
WIDE_OBSERVATION = 100
MAY_BE_EMPTY = ("anchor", "average")
VECTORS = ("theta", "m", "v", "targets", "anchor", "average")
_SCALARS = len(astuple(Scalars()))


def encoder_sizes(config: MemberConfig, observation_size: int, action_size: int) -> EncoderSizes:
    """Return the sizes of the encoder that belongs to a member."""
    return EncoderSizes(
        observation=observation_size,
        action=action_size,
        projection=config.projection,
        features=config.encoder_width,
        states=config.encoder_states,
        kind=config.encoder,
    )


def network_sizes(config: MemberConfig, observation_size: int, action_size: int) -> NetworkSizes:
    """Return the sizes of a member's actor and critics, which see [visible part, features]."""
    encoder = encoder_sizes(config, observation_size, action_size)
    return NetworkSizes(
        inputs=encoder.visible + encoder.features,
        actions=action_size,
        actor_hidden=config.actor_hidden,
        critic_hidden=config.critic_hidden,
    )


def count_parameters(config: MemberConfig, observation_size: int, action_size: int) -> int:
    """Return the trainable parameters of one member: encoder copy, actor and two critics; targets excluded."""
    encoder = encoder_sizes(config, observation_size, action_size).layout.size
    return encoder + network_sizes(config, observation_size, action_size).num_parameters


def default_member_config(observation_size: int, action_size: int) -> MemberConfig:
    """Return sizes with 50 000-54 000 trainable parameters, for narrow and for wide observations."""
    wide = observation_size > WIDE_OBSERVATION
    config = MemberConfig(projection=36, critic_hidden=(64, 64)) if wide else MemberConfig(critic_hidden=(64, 104))
    while count_parameters(config, observation_size, action_size) < MIN_PARAMETERS:
        first, second = config.critic_hidden
        config = replace(config, critic_hidden=(first + 4, second))
    return config


def init_member(
    config: MemberConfig,
    observation_size: int,
    action_size: int,
    seed: int,
    *,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> MemberState:
    """Return a new-born member with an initial SAC temperature; members with different seeds differ.

    On another ``device`` it acts and votes; updates (`agents.learning.sac`) are compiled and take it on the CPU only.
    """
    sizes = network_sizes(config, observation_size, action_size)
    theta = init_networks(sizes, torch.Generator().manual_seed(seed), device=device)
    return MemberState(
        sizes=sizes,
        theta=theta,
        m=torch.zeros_like(theta),
        v=torch.zeros_like(theta),
        targets=sizes.split(theta)[0].clone(),
        scalars=Scalars(log_alpha=math.log(temperature)),
    )


def to_arrays(member: MemberState) -> dict[str, NDArray[np.generic]]:
    """Arrays for a checkpoint; `from_arrays` gives the same member back, to the last bit."""
    scalars = np.array(astuple(member.scalars), np.float64)
    vectors = {name: getattr(member, name).cpu().numpy() for name in VECTORS}
    return {**vectors, "scalars": scalars}


def from_arrays(
    config: MemberConfig, observation_size: int, action_size: int, arrays: Mapping[str, NDArray[np.generic]]
) -> MemberState:
    """Rebuild a member from `to_arrays`.

    Raises:
        CheckpointError: an array is missing or has another shape than ``config`` implies.
    """
    arrays = {**{name: np.zeros(0, np.float32) for name in MAY_BE_EMPTY}, **arrays}  # an older run has none
    sizes = network_sizes(config, observation_size, action_size)
    total = (sizes.num_parameters,)
    expected = {"theta": total, "m": total, "v": total, "targets": (2, sizes.critic.size), "scalars": (_SCALARS,)}
    for name in MAY_BE_EMPTY:
        if arrays[name].shape != (0,):
            expected[name] = (sizes.actor.size,)
    for name, shape in expected.items():
        if name not in arrays:
            raise CheckpointError(
                f"member array {name!r} is missing: this run was made by another version; use that one"
            )
        found = arrays[name].shape
        if found != shape:
            raise CheckpointError(f"member array {name!r} has shape {found}, expected {shape}: other network sizes?")
    return MemberState(
        sizes=sizes,
        **{name: torch.tensor(arrays[name]) for name in VECTORS},
        scalars=scalars_from(arrays["scalars"].tolist()),
    )


def is_finite(member: MemberState) -> bool:
    """Return whether networks, Adam's moments and temperature are finite: what is not makes all updates be skipped."""
    scalars = member.scalars
    numbers = (scalars.log_alpha, scalars.alpha_m, scalars.alpha_v)
    vectors = (getattr(member, name) for name in VECTORS)
    return all(map(math.isfinite, numbers)) and all(bool(torch.isfinite(vector).all()) for vector in vectors)


def acting_weights(
    member: MemberState, encoder: Parameters, scales: Scales, feature_scale: float = 1.0, *, deployed: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Return what a rollout policy needs: ``enc.*``, ``actor.*``, ``norm.*`` and an identity ``adapter.*``.

    Args:
        feature_scale: factor on the encoder's output while training; here it is part of the actor's first layer.
        deployed: of the actor that is deployed, instead of the newest.
    """
    actor = dict(member.sizes.actor.views(member.deployed_actor if deployed else member.actor))
    features = len(encoder["output_b"])
    scale = torch.ones(member.sizes.inputs, dtype=actor["w1"].dtype, device=actor["w1"].device)
    scale[-features:] = feature_scale
    actor["w1"] = actor["w1"] * scale[:, None]
    actions = member.sizes.actions
    return {
        **{f"enc.{name}": value.detach().cpu().numpy() for name, value in encoder.items()},
        **{f"actor.{name}": value.cpu().numpy() for name, value in actor.items()},
        "norm.mean": scales.observation_mean,
        "norm.factor": scales.observation_factor,
        "norm.reward_factor": scales.reward_factor,
        "adapter.gain": np.ones(actions, np.float32),
        "adapter.bias": np.zeros(actions, np.float32),
    }


@torch.inference_mode()
def propose_actions(member: MemberState, inputs_BX: Tensor) -> Tensor:
    """Return the member's deterministic actions (B, A) in [−1, 1]."""
    return torch.tanh(actor_output(member.sizes, member.actor, inputs_BX)[0])


@torch.inference_mode()
def votes(voter: MemberState, inputs_BX: Tensor, proposals_MBA: Tensor) -> NDArray[np.float64]:
    """Return the voter's mean value of each member's proposed actions, (M,), over its two critics and B states.

    Source: cross-critic judgement of peers' proposals; the bids of the `act` auction are made from these.
    """
    critics = voter.sizes.split(voter.theta)[0]
    means = [
        critic_values(voter.sizes, critics, torch.cat([inputs_BX, proposals_BA], dim=-1)).double().mean()
        for proposals_BA in proposals_MBA
    ]
    return torch.stack(means).cpu().numpy()
