"""The compiled updates against the same updates by autograd."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.config import MemberConfig, SacConfig
from agents.learning.networks import LOG_STD_MAX
from agents.learning.replay import Replay
from agents.learning.resets import reset
from agents.learning.sac import MemberState, draw_updates, learn
from agents.learning.updates import GUIDE_PERIOD
from agents.member import init_member
from tests.agents.learning.reference_sac import Reference

SIZES = MemberConfig(encoder_width=3, encoder_states=2, actor_hidden=(11, 19), critic_hidden=(18, 9))
OBSERVATION, ACTIONS, ROWS = 4, 3, 60
PLAIN = SacConfig(batch_size=13, learning_rate=1e-3, target_entropy=-2.0, own_share=0.4)
EXTRAS = replace(PLAIN, guidance=0.7, guidance_distance=0.001, imitation=0.9, policy_delay=2)
OWN = np.arange(0, ROWS, 4)
pytestmark = pytest.mark.timeout(400)  # the first run on a machine compiles, for both types of numbers


def in_double(member: MemberState) -> MemberState:
    vectors = {name: getattr(member, name).double() for name in ("theta", "m", "v", "targets", "anchor")}
    return replace(member, **vectors)


def newborn(seed: int) -> MemberState:
    return in_double(init_member(SIZES, OBSERVATION, ACTIONS, seed))


def actor_of(member: MemberState) -> Tensor:
    return member.sizes.split(member.theta)[1]


@pytest.fixture
def replay() -> Replay:
    generator = torch.Generator().manual_seed(5)
    inputs = OBSERVATION + 3
    packed = torch.randn(ROWS, 2 * (inputs + ACTIONS) + 2, generator=generator, dtype=torch.float64)
    packed[:, inputs : inputs + ACTIONS] = torch.tanh(packed[:, inputs : inputs + ACTIONS])
    packed[:, -1] = (packed[:, -1] > -1).double()
    return Replay(packed=packed, inputs=inputs, actions=ACTIONS)


def compare(member: MemberState, replay: Replay, config: SacConfig, updates: int, tolerance: float) -> Reference:
    """Make the same updates both ways, with two peers of whom one guides."""
    peers = torch.cat([newborn(1).targets, newborn(2).targets])
    guide = actor_of(newborn(3)) if config.guidance else None
    learned, metrics = learn(member, peers, replay, OWN, updates, np.random.default_rng(9), config, guide)
    reference = Reference(member, replay, config)
    if guide is not None:
        reference.anchor = guide.clone() if len(member.anchor) == 0 else member.anchor.clone()
    foreign = ~torch.from_numpy(np.isin(np.arange(ROWS), OWN))
    rng = np.random.default_rng(9)
    for start in range(0, updates, 64):
        draws = draw_updates(rng, min(64, updates - start), replay, OWN, 6, config)
        for rows, noise, pair in zip(*draws, strict=True):
            chosen = torch.from_numpy(rows)
            reference.update(chosen, torch.from_numpy(noise), pair.tolist(), peers, foreign[chosen], guide)
    assert metrics.num_updates == updates
    for name in ("theta", "m", "v", "targets"):
        torch.testing.assert_close(getattr(learned, name), getattr(reference, name), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(astuple(learned.scalars), astuple(reference.scalars), rtol=tolerance, atol=tolerance)
    if guide is not None:
        assert torch.equal(learned.anchor, reference.anchor)
    return reference


def test_one_update_equals_the_update_by_autograd(replay: Replay) -> None:
    compare(newborn(0), replay, PLAIN, 1, 1e-9)


def test_one_update_with_guidance_and_imitation_equals_the_update_by_autograd(replay: Replay) -> None:
    compare(newborn(0), replay, replace(EXTRAS, policy_delay=1), 1, 1e-9)


def test_many_updates_with_everything_on_stay_equal_across_the_adaptation_of_guidance(replay: Replay) -> None:
    reference = compare(newborn(0), replay, EXTRAS, 2 * GUIDE_PERIOD + 70, 1e-6)
    assert reference.scalars.guide_weight != 1
    assert reference.scalars.target_high < np.inf


def test_updates_after_a_reset_equal_those_by_autograd(replay: Replay) -> None:
    trained, _ = learn(newborn(0), None, replay, OWN, 20, np.random.default_rng(0), PLAIN)
    compare(reset(trained, 2, seed=4), replay, PLAIN, 5, 1e-9)


def test_where_the_clamp_holds_the_standard_deviation_no_gradient_passes(replay: Replay) -> None:
    member = newborn(0)
    member.sizes.actor.views(actor_of(member))["b3"][ACTIONS:] = LOG_STD_MAX + 1
    compare(member, replay, PLAIN, 1, 1e-9)


def test_float32_stays_close_to_float64(replay: Replay) -> None:
    single = init_member(SIZES, OBSERVATION, ACTIONS, 0)
    coarse = Replay(packed=replay.packed.float(), inputs=replay.inputs, actions=replay.actions)
    one, _ = learn(single, None, coarse, OWN, 40, np.random.default_rng(1), PLAIN)
    two, _ = learn(in_double(single), None, replay, OWN, 40, np.random.default_rng(1), PLAIN)
    torch.testing.assert_close(one.theta.double(), two.theta, rtol=1e-3, atol=1e-4)
