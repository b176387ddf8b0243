from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from agents.config import MemberConfig, SacConfig
from agents.learning.replay import Replay
from agents.learning.resets import is_due, reset
from agents.learning.sac import MemberState, learn
from agents.member import init_member

SIZES = MemberConfig(encoder_width=3, encoder_states=2, actor_hidden=(8, 8), critic_hidden=(8, 8))


@pytest.fixture
def trained() -> MemberState:
    generator = torch.Generator().manual_seed(0)
    packed = torch.cat([torch.randn(100, 19, generator=generator), torch.ones(100, 1)], dim=1)
    replay = Replay(packed=packed, inputs=7, actions=2)
    start = init_member(SIZES, 4, 2, seed=0)
    return learn(start, None, replay, np.arange(0), 30, np.random.default_rng(0), SacConfig(batch_size=16))[0]


def rounds_of_resets(every: int, updates_per_round: list[int], num_rounds: int) -> list[list[int]]:
    """In which rounds each of the members resets that make so many updates a round."""
    members = [init_member(SIZES, 4, 2, seed=0) for _ in updates_per_round]
    found: list[list[int]] = [[] for _ in members]
    for index in range(1, num_rounds):
        for place, updates in enumerate(updates_per_round):
            if is_due(members[place], every, place, len(members), index):
                members[place] = reset(members[place], 3, seed=index)
                found[place].append(index)
            scalars = members[place].scalars
            members[place] = replace(
                members[place], scalars=replace(scalars, critic_steps=scalars.critic_steps + updates)
            )
    return found


def test_no_two_members_reset_in_one_round_however_many_updates_each_wins() -> None:
    for updates in ([50] * 5, [100, 0, 25, 75, 50], [200, 200]):
        rounds = rounds_of_resets(500, updates, 200)
        together = [index for member in rounds for index in member]
        assert len(together) == len(set(together)) > 10
        assert all(member for member, won in zip(rounds, updates, strict=True) if won)


def test_members_with_equal_updates_reset_one_after_the_other_and_about_as_often_as_asked() -> None:
    rounds = rounds_of_resets(1_000, [50] * 5, 120)
    assert rounds[0][0] < rounds[1][0] < rounds[2][0] < rounds[3][0] < rounds[4][0]
    assert all(20 <= later - earlier < 25 for member in rounds for earlier, later in pairwise(member))


def test_a_single_member_resets_when_its_updates_are_due() -> None:
    assert rounds_of_resets(100, [50], 9) == [[3, 5, 7]]


def test_nobody_resets_where_that_is_off() -> None:
    assert rounds_of_resets(0, [1_000, 1_000], 20) == [[], []]


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_reset_draws_the_last_layers_afresh_and_keeps_the_others(trained: MemberState, num_layers: int) -> None:
    fresh = reset(trained, num_layers, seed=9)
    sizes = trained.sizes
    before, after = sizes.split(trained.theta), sizes.split(fresh.theta)
    pairs = [
        (sizes.critic.views(old[k]), sizes.critic.views(new[k]), k)
        for k in (0, 1)
        for old, new in [(before[0], after[0])]
    ]
    kept = {f"{kind}{layer}" for layer in range(1, 4 - num_layers) for kind in "wb"}
    for old, new, _ in [*pairs, (sizes.actor.views(before[1]), sizes.actor.views(after[1]), 0)]:
        assert {name for name in old if torch.equal(old[name], new[name])} == kept
    for k in (0, 1):
        old, new = sizes.critic.views(trained.targets[k]), sizes.critic.views(fresh.targets[k])
        assert {name for name in old if torch.equal(old[name], new[name])} == kept
    if num_layers == 3:
        assert torch.equal(fresh.targets, after[0])


def test_after_a_reset_the_optimiser_starts_afresh_and_counts_and_ranges_stay(trained: MemberState) -> None:
    fresh = reset(trained, 3, seed=9)
    assert not fresh.m.any()
    assert not fresh.v.any()
    assert (fresh.scalars.critic_restart, fresh.scalars.actor_restart, fresh.scalars.resets) == (30, 30, 1)
    assert fresh.num_updates == trained.num_updates
    assert fresh.scalars.log_alpha == trained.scalars.log_alpha
    assert fresh.scalars.seen_high == trained.scalars.seen_high
    assert trained.scalars.resets == 0


def test_a_reset_forgets_the_running_average(trained: MemberState) -> None:
    fresh = reset(replace(trained, average=trained.actor / 2), 3, seed=9)
    assert torch.equal(fresh.deployed_actor, fresh.actor)
