from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from agents.config import ENCODERS, MemberConfig, SacConfig
from agents.learning.replay import Replay
from agents.learning.resets import reset
from agents.learning.sac import MemberState, learn
from agents.learning.updates import GUIDE_PERIOD
from agents.member import (
    MAX_PARAMETERS,
    MIN_PARAMETERS,
    count_parameters,
    default_member_config,
    encoder_sizes,
    from_arrays,
    init_member,
    network_sizes,
    propose_actions,
    to_arrays,
    votes,
)
from swarm.errors import CheckpointError, ConfigError

SMALL = MemberConfig(encoder_width=3, encoder_states=2, actor_hidden=(8, 8), critic_hidden=(8, 8))


def trained() -> tuple[MemberState, Replay]:
    member = init_member(SMALL, 4, 2, seed=0)
    generator = torch.Generator().manual_seed(0)
    packed = torch.cat([torch.randn(100, 19, generator=generator), torch.ones(100, 1)], dim=1)
    return member, Replay(packed=packed, inputs=7, actions=2)


@pytest.mark.parametrize(
    ("robot", "observation", "action"),
    [
        ("HalfCheetah-v4", 17, 6),
        ("Ant-v4", 27, 8),
        ("Humanoid-v4", 376, 17),
        ("Hopper-v4", 11, 3),
        ("Walker2d-v4", 17, 6),
        ("Ant-v5", 105, 8),
        ("Humanoid-v5", 348, 17),
    ],
)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_member_has_between_50_000_and_54_000_trainable_parameters(
    robot: str, observation: int, action: int, encoder: str
) -> None:
    config = replace(default_member_config(observation, action), encoder=encoder)
    counted = encoder_sizes(config, observation, action).layout.size
    counted += init_member(config, observation, action, seed=0).theta.numel()
    assert MIN_PARAMETERS <= counted <= MAX_PARAMETERS, robot
    assert counted == count_parameters(config, observation, action)


def test_parameters_are_counted_array_by_array() -> None:
    sizes = network_sizes(SMALL, 4, 2)
    actor = (7 * 8 + 8) + (8 * 8 + 8) + (8 * 4 + 4)
    critic = (9 * 8 + 8) + (8 * 8 + 8) + (8 + 1)
    encoder = 2 * 2 + 7 * 4 + 4 * 3 + 7 * 3 + 3 + 4 * 3 + 3
    assert sizes.num_parameters == actor + 2 * critic
    assert count_parameters(SMALL, 4, 2) == actor + 2 * critic + encoder


def test_an_encoder_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"member\.encoder is 'gru'; expected one of ssm, mlp, lstm"):
        MemberConfig(encoder="gru")


def test_seeds_make_members_different_and_reproducible() -> None:
    one, same, other = (init_member(SMALL, 4, 2, seed=s).theta for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_two_critics_of_a_member_differ() -> None:
    first, second = init_member(SMALL, 4, 2, seed=0).targets
    assert not torch.equal(first, second)


def test_training_goes_on_from_a_saved_member_as_if_never_stopped() -> None:
    """With all on that has a state: guidance before and after an adaptation, imitation, delay, average, a reset."""
    member, replay = trained()
    config = SacConfig(batch_size=16, guidance=1.0, imitation=0.5, policy_delay=2, average_rate=0.01)
    guide = member.sizes.split(init_member(SMALL, 4, 2, seed=5).theta)[1]

    def train(state: MemberState, updates: int, seed: int) -> MemberState:
        rng = np.random.default_rng(seed)
        return learn(state, None, replay, np.arange(9), updates, rng, config, guide)[0]

    def through_file(state: MemberState) -> MemberState:
        return from_arrays(SMALL, 4, 2, load(save(to_arrays(state))))

    half = reset(train(member, 7, 0), 2, seed=1)
    half = train(half, 2 * GUIDE_PERIOD + 31, 2)
    assert half.scalars.guide_weight != 1
    assert (half.scalars.resets, half.scalars.guide_updates) == (1, (7 + 31) // 2)
    one, two = to_arrays(train(half, 520, 3)), to_arrays(train(through_file(half), 520, 3))
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


def test_a_checkpoint_of_other_sizes_is_refused() -> None:
    arrays = to_arrays(init_member(SMALL, 4, 2, seed=0))
    with pytest.raises(CheckpointError, match="'theta' has shape"):
        from_arrays(replace(SMALL, actor_hidden=(8, 9)), 4, 2, arrays)
    del arrays["m"]
    with pytest.raises(CheckpointError, match="'m' is missing: this run was made by another version"):
        from_arrays(SMALL, 4, 2, arrays)


def test_a_checkpoint_from_before_there_were_anchors_and_averages_is_read_as_having_none() -> None:
    arrays = to_arrays(init_member(MemberConfig(), 5, 2, seed=0))
    older = {name: array for name, array in arrays.items() if name not in ("anchor", "average")}
    found = to_arrays(from_arrays(MemberConfig(), 5, 2, older))
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_proposed_actions_are_bounded() -> None:
    member = init_member(SMALL, 4, 2, seed=0)
    member.theta.mul_(30)
    actions = propose_actions(member, torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))
    assert actions.shape == (50, 2)
    assert actions.abs().max() <= 1


def test_votes_prefer_the_actions_that_the_voters_critics_value() -> None:
    voter = init_member(SMALL, 4, 2, seed=0)
    inputs = torch.randn(32, 7, generator=torch.Generator().manual_seed(0))
    candidates = torch.linspace(-1, 1, 5)[:, None, None].expand(5, 32, 2)
    found = votes(voter, inputs, candidates)
    assert found.shape == (5,)
    assert np.ptp(found) > 0
    np.testing.assert_allclose(votes(voter, inputs, candidates[[2]]), found[[2]])
    np.testing.assert_allclose(votes(voter, inputs, candidates.flip(0)), found[::-1])
