from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.config import MemberConfig, SacConfig
from agents.learning.replay import Replay
from agents.learning.sac import MemberState, draw_updates, learn
from agents.learning.updates import CLAMP_PERIOD, GUIDE_PERIOD
from agents.member import init_member, propose_actions, to_arrays

CONFIG = MemberConfig(encoder_width=1, encoder_states=1, actor_hidden=(32, 32), critic_hidden=(32, 32))
SAC = SacConfig(batch_size=32, learning_rate=1e-3, target_entropy=-1.0)
NOBODY = np.arange(0)
pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def member(seed: int = 0) -> MemberState:
    return init_member(CONFIG, 2, 1, seed)


def point_mass(rows: int = 4_000, *, terminal: bool = False, seed: int = 0) -> Replay:
    """Position and velocity, pushed by the action; reward is minus the squared distance and effort."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
    state[:, 2] = 0  # the one encoder feature
    action = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    following = state.copy()
    following[:, 1] = 0.8 * state[:, 1] + 0.4 * action[:, 0]
    following[:, 0] = state[:, 0] + 0.4 * following[:, 1]
    reward = -(following[:, 0] ** 2) - 0.1 * following[:, 1] ** 2 - 0.01 * action[:, 0] ** 2
    ends = np.zeros((rows, 1)) if terminal else np.ones((rows, 1))
    packed = np.concatenate([state, action, following, np.zeros((rows, 1)), reward[:, None], ends], axis=1)
    return Replay(packed=torch.from_numpy(packed.astype(np.float32)), inputs=3, actions=1)


def run(start: MemberState, updates: int, *, seed: int = 0, peers: Tensor | None = None, sac: SacConfig = SAC):  # noqa: ANN201
    return learn(start, peers, point_mass(), NOBODY, updates, np.random.Generator(np.random.Philox(seed)), sac)


def digest(state: MemberState) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in to_arrays(state).items()}


def control_cost(state: MemberState) -> float:
    """Mean cost of 40 steps of the deterministic policy from 64 starts."""
    rng = np.random.default_rng(7)
    x, v = (torch.from_numpy(rng.uniform(-1, 1, 64).astype(np.float32)) for _ in range(2))
    total = 0.0
    for _ in range(40):
        action = propose_actions(state, torch.stack([x, v, torch.zeros(64)], dim=1))[:, 0]
        v = 0.8 * v + 0.4 * action
        x = x + 0.4 * v
        total += float((x**2 + 0.1 * v**2 + 0.01 * action**2).mean())
    return total


def test_the_same_arguments_give_the_same_bits_and_leave_the_given_member_alone() -> None:
    start = member()
    before = digest(start)
    one, two = run(start, 20)[0], run(start, 20)[0]
    assert digest(one) == digest(two)
    assert digest(start) == before != digest(one)
    assert digest(run(start, 20, seed=1)[0]) != digest(one)


def test_a_member_learns_to_control_a_point_mass() -> None:
    start = member()
    learned, metrics = run(start, 1_500, sac=replace(SAC, discount=0.95))
    assert control_cost(learned) < 3.0 < 6.0 < control_cost(start)
    assert metrics.num_updates == 1_500
    assert metrics.skipped == 0


def test_terminal_rows_are_worth_their_reward_only() -> None:
    start, rng = member(), np.random.default_rng
    ending, _ = learn(start, None, point_mass(terminal=True), NOBODY, 600, rng(0), SAC)
    going_on, _ = learn(start, None, point_mass(), NOBODY, 600, rng(0), SAC)
    assert ending.scalars.seen_low > -4
    assert going_on.scalars.seen_low < 2 * ending.scalars.seen_low


def test_a_successor_that_is_not_finite_does_not_reach_a_terminated_row() -> None:
    replay = point_mass(terminal=True)
    replay.packed[:, 4:7] = math.inf
    learned, metrics = learn(member(), None, replay, NOBODY, 5, np.random.default_rng(0), SAC)
    assert metrics.skipped == 0
    assert learned.theta.isfinite().all()


def test_updates_with_targets_that_are_not_finite_are_skipped_and_counted() -> None:
    replay = point_mass()
    replay.packed[:, -2] = math.nan
    start = member()
    learned, metrics = learn(start, None, replay, NOBODY, 5, np.random.default_rng(0), SAC)
    assert (metrics.skipped, metrics.num_updates) == (5, 0)
    assert torch.equal(learned.theta, start.theta)


def test_peers_targets_change_what_is_learned_and_stay_as_they_are() -> None:
    peers = torch.cat([member(s).targets for s in (1, 2)])
    copy = peers.clone()
    alone, together = run(member(), 10)[0], run(member(), 10, peers=peers)[0]
    assert not torch.equal(alone.theta, together.theta)
    assert torch.equal(peers, copy)


def test_without_pooling_peers_change_nothing_but_the_random_stream() -> None:
    peers = member(1).targets
    alone = replace(SAC, pooled_targets=1)
    assert digest(run(member(), 10, peers=peers, sac=alone)[0]) == digest(run(member(), 10, sac=alone)[0])


def test_targets_follow_slowly() -> None:
    start = member()
    learned, _ = run(start, 1)
    critics = learned.sizes.split(learned.theta)[0]
    expected = start.targets + SAC.target_rate * (critics - start.targets)
    torch.testing.assert_close(learned.targets, expected)


def test_temperature_moves_towards_the_target_entropy() -> None:
    hot = run(member(), 50, sac=replace(SAC, target_entropy=5.0))[0]
    cold = run(member(), 50, sac=replace(SAC, target_entropy=-5.0))[0]
    assert hot.scalars.log_alpha > 0 > cold.scalars.log_alpha


def test_policy_delay_updates_the_actor_less_often() -> None:
    state, _ = run(member(), 10, sac=replace(SAC, policy_delay=5))
    assert (state.scalars.critic_steps, state.scalars.actor_steps) == (10, 2)


def test_the_range_of_past_targets_becomes_the_clamp() -> None:
    state, _ = run(member(), CLAMP_PERIOD - 1)
    assert state.scalars.target_high == math.inf
    state, _ = run(state, 1)
    assert (state.scalars.target_low, state.scalars.target_high) == (state.scalars.seen_low, state.scalars.seen_high)


def test_a_clamp_holds_back_runaway_targets() -> None:
    runaway = member()
    runaway.targets.mul_(50)
    held = replace(runaway, scalars=replace(runaway.scalars, target_low=-1.0, target_high=1.0))
    free_range = run(runaway, 5)[0].scalars
    held_range = run(held, 5)[0].scalars
    assert held_range.seen_low > -4
    assert held_range.seen_high < 1.1
    assert max(-free_range.seen_low, free_range.seen_high) > 10


def test_no_updates_give_the_same_member() -> None:
    start = member()
    assert digest(run(start, 0)[0]) == digest(start)


def distance(one: MemberState, two: MemberState) -> float:
    """Mean of half the squared difference of their deterministic actions."""
    states = point_mass().packed[:500, :3]
    return float(0.5 * (propose_actions(one, states) - propose_actions(two, states)).square().sum(1).mean())


def actor_of(state: MemberState) -> Tensor:
    return state.sizes.split(state.theta)[1]


def decided(seed: int, sign: float) -> MemberState:
    """A member whose actor always pushes one way."""
    state = member(seed)
    state.sizes.actor.views(actor_of(state))["b3"][0] = 1.5 * sign
    return state


def guided(weight: float, updates: int, least: float = 0.03, start: MemberState | None = None):  # noqa: ANN201
    sac = replace(SAC, guidance=weight, guidance_distance=least)
    rng = np.random.default_rng(0)
    return learn(start or member(), None, point_mass(), NOBODY, updates, rng, sac, actor_of(decided(1, 1.0)))


def test_guidance_pulls_towards_the_best_members_actions() -> None:
    best = decided(1, 1.0)
    free, _ = guided(0.0, 200)
    pulled, metrics = guided(10.0, 200)
    assert distance(pulled, best) < 0.1 * distance(free, best)
    assert metrics.guide_distance > 0
    assert metrics.guide_weight == 1


def test_guidance_grows_while_far_from_the_best_and_fades_when_near() -> None:
    far, _ = guided(1e-3, GUIDE_PERIOD, least=0.001)
    near, metrics = guided(10.0, 2 * GUIDE_PERIOD, least=10.0)
    assert far.scalars.guide_weight == 2
    assert near.scalars.guide_weight == metrics.guide_weight == 0.25


def test_guidance_allows_more_distance_while_the_best_itself_moves() -> None:
    moving = replace(member(), anchor=actor_of(decided(1, -1.0)))
    resting = replace(member(), anchor=actor_of(decided(1, 1.0)))
    weights = [guided(1e-3, GUIDE_PERIOD, 0.001, start)[0].scalars.guide_weight for start in (moving, resting)]
    assert weights == [0.5, 2]


def test_without_a_guide_guidance_changes_nothing() -> None:
    on = replace(SAC, guidance=1.0)
    state, metrics = run(member(), 20, sac=on)
    assert digest(state) == digest(run(member(), 20)[0])
    assert math.isnan(metrics.guide_weight)


def test_actions_of_peers_are_imitated_only_where_the_own_critics_value_them_higher() -> None:
    """The critics see actions near +1 as good: a peer's +1 is followed, its −1 is not."""
    start = member()
    for flat in start.sizes.split(start.theta)[0]:
        flat.zero_()
        views = start.sizes.critic.views(flat)
        views["w1"][3, :16] = 1.0
        views["w1"][3, 16:] = -1.0
        views["b1"].copy_(torch.tensor([1.0, -1.0]).repeat(16))
        views["w2"].copy_(torch.eye(32))
        views["w3"][:16] = 1.0
    start = replace(start, targets=start.sizes.split(start.theta)[0].clone())
    frozen = replace(SAC, learning_rate=0.0)
    good, bad = (point_mass() for _ in range(2))
    good.packed[:, 3], bad.packed[:, 3] = 0.99, -0.99

    def shares(replay: Replay, own: np.ndarray) -> tuple[float, Tensor]:
        learned, metrics = learn(
            start, None, replay, own, 1, np.random.default_rng(0), replace(frozen, imitation=1.0, own_share=0.0)
        )
        return metrics.imitated_share, learned.m

    assert shares(good, NOBODY)[0] > 0.9
    assert shares(bad, NOBODY)[0] < 0.1
    everybody = np.arange(good.num_rows)
    share, moments = shares(good, everybody)
    assert share == 0
    plain, _ = learn(start, None, good, everybody, 1, np.random.default_rng(0), replace(frozen, own_share=0.0))
    assert torch.equal(moments, plain.m)
    critics = 2 * start.sizes.critic.size
    assert not torch.equal(shares(good, NOBODY)[1][critics:], plain.m[critics:])
    assert torch.equal(shares(good, NOBODY)[1][:critics], plain.m[:critics])


def test_imitation_brings_the_actor_closer_to_good_actions_of_peers() -> None:
    replay = point_mass()
    replay.packed[:, 4:7] = replay.packed[:, :3]
    replay.packed[:, 3] = torch.where(replay.packed[:, 3] > 0, 0.9, -0.9)
    replay.packed[:, -2] = replay.packed[:, 3]
    replay.packed[:, -1] = 0

    def lean(weight: float) -> float:
        sac = replace(SAC, imitation=weight)
        learned, _ = learn(member(), None, replay, NOBODY, 60, np.random.default_rng(0), sac)
        return float(propose_actions(learned, replay.packed[:200, :3]).mean())

    assert lean(20.0) > lean(0.0) + 0.1


def test_a_target_is_the_minimum_over_the_drawn_pair_of_pooled_critics() -> None:
    """One peer's critics say −100 everywhere: whenever one of its two is drawn, the target shows it."""
    pessimist = member(1).targets
    for flat in pessimist:
        flat.zero_()
        member().sizes.critic.views(flat)["b3"].fill_(-100.0)
    draws = draw_updates(np.random.default_rng(0), 1, point_mass(), NOBODY, 4, SAC)
    low = run(member(), 1, peers=pessimist)[0].scalars
    assert draws.pairs.max() >= 2, "or this shows nothing"
    assert low.seen_low < -90
    alone = run(member(), 1, peers=pessimist, sac=replace(SAC, pooled_targets=1))[0].scalars
    assert alone.seen_low > -10


def test_all_pairs_of_pooled_targets_are_drawn_equally_often() -> None:
    pairs = draw_updates(np.random.default_rng(0), 6_000, point_mass(), NOBODY, 4, replace(SAC, batch_size=1)).pairs
    found, counts = np.unique(np.sort(pairs, axis=1), axis=0, return_counts=True)
    assert found.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert counts.min() > 900


def test_the_deployed_actor_is_a_running_average_that_training_does_not_see() -> None:
    averaging = replace(SAC, average_rate=0.01)
    first = run(member(), 20, sac=averaging)[0]
    assert torch.equal(first.deployed_actor, first.actor)
    second = run(first, 30, seed=1, sac=averaging)[0]
    expected = first.actor + (1 - 0.99**30) * (second.actor - first.actor)
    torch.testing.assert_close(second.deployed_actor, expected)
    assert not torch.equal(second.deployed_actor, second.actor)
    plain = run(run(member(), 20)[0], 30, seed=1)[0]
    assert torch.equal(second.theta, plain.theta)
    assert torch.equal(plain.deployed_actor, plain.actor)
