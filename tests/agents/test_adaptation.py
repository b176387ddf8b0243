"""Adapting at test time, over real physics in this process: levels, accounting, guard, and the file that is left."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from agents.adaptable import AdaptableTeam
from agents.adaptation import Adaptation, AdaptationResult, with_adapter
from agents.config import AdaptConfig, TeamConfig
from agents.deployment import AdaptedPolicy, Deployment, adapted_path, deployed_blocks, load_adapted, save_adapted
from agents.pinned import Pinned
from env_bridge.rollout import run_rollout
from swarm.environment import EnvironmentSpec, RolloutRequest, RolloutResult, TaskParameters
from swarm.errors import CheckpointError, ConfigError
from tests.agents.made_runs import make_run

STEPS = 24
HEAVY = TaskParameters(gravity=1.5)


@dataclass
class LocalBridge:
    """Rollouts in this process; keeps what it was asked."""

    asked: list[RolloutRequest] = field(default_factory=list)

    async def describe(self, env_id: str) -> EnvironmentSpec:
        raise AssertionError("adapting needs no sizes")

    async def rollout(self, request: RolloutRequest) -> RolloutResult:
        self.asked.append(request)
        return run_rollout(request)

    async def aclose(self) -> None:
        pass


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Pinned:
    """A committed round of new-born members; probes of 24 steps."""
    path = tmp_path_factory.mktemp("made") / "run"
    team = make_run(path)
    return Pinned(path, replace(team, rounds=replace(team.rounds, adapt_steps=STEPS)), 1)


def run(
    pinned: Pinned, config: AdaptConfig, *, source: AdaptableTeam | None = None, incumbent: str = "state"
) -> tuple[AdaptationResult, LocalBridge]:
    bridge = LocalBridge()
    adaptation = Adaptation(
        bridge, pinned.team, source or AdaptableTeam(pinned), config, label="test", compute=asyncio.to_thread
    )
    return asyncio.run(adaptation.run(incumbent, HEAVY)), bridge


def config(level: str, *, online: bool = False) -> AdaptConfig:
    return AdaptConfig(level=level, online=online, episodes=3, evaluation_blocks=1, transitions=16)


EVERY_LEVEL = [(level, online) for level in ("context", "inner", "probe", "climb") for online in (False, True)]


@pytest.mark.parametrize(("level", "online"), EVERY_LEVEL[:1] + EVERY_LEVEL[2:])  # context does not adapt at a step
def test_every_episode_is_counted_at_every_level(pinned: Pinned, level: str, online: bool) -> None:
    result, bridge = run(pinned, config(level, online=online))
    assert result.curve.shape == (3, 8)
    assert len(result.before) == len(result.after) == 8
    assert result.account.episodes == 8 * len(bridge.asked) == 8 * 5
    assert result.account.steps == 8 * 5 * STEPS
    assert all(request.tasks == (HEAVY,) * 8 for request in bridge.asked)
    assert all(request.carry_state for request in bridge.asked[:3])


def test_the_same_adaptation_gives_the_same_bits(pinned: Pinned) -> None:
    first, second = (run(pinned, config("climb", online=True))[0] for _ in range(2))
    np.testing.assert_array_equal(first.curve, second.curve)
    np.testing.assert_array_equal(first.after, second.after)
    for name, value in first.candidate.weights.items():
        np.testing.assert_array_equal(value, second.candidate.weights[name])


def test_each_episode_goes_on_with_the_memory_of_the_one_before(pinned: Pinned) -> None:
    _, bridge = run(pinned, config("context"))
    first, second = bridge.asked[:2]
    assert first.policy_state is None
    np.testing.assert_array_equal(second.policy_state, run_rollout(first).policy_state)  # type: ignore[arg-type]
    before, after = bridge.asked[3:]
    assert (before.carry_state, before.policy_state) == (False, None)
    assert after.carry_state
    np.testing.assert_array_equal(after.policy_state, run_rollout(bridge.asked[2]).policy_state)  # type: ignore[arg-type]


def test_re_evaluation_uses_starts_that_no_episode_before_it_had_and_the_same_for_both(pinned: Pinned) -> None:
    _, bridge = run(pinned, config("climb"))
    seeds = [request.seed for request in bridge.asked]
    assert seeds[3] == seeds[4]
    assert len(set(seeds)) == 4


def test_between_episodes_the_head_of_level_inner_adapts_and_online_it_is_given_as_trained(pinned: Pinned) -> None:
    _, between = run(pinned, config("inner"))
    heads = [np.asarray(request.weights["seat-0/world.w2"]) for request in between.asked[:3]]
    assert (heads[0] != heads[1]).any()
    assert (heads[1] != heads[2]).any()
    _, online = run(pinned, config("inner", online=True))
    heads = [np.asarray(request.weights["seat-0/world.w2"]) for request in online.asked[:3]]
    np.testing.assert_array_equal(heads[0], heads[2])


@pytest.mark.parametrize("level", ["probe", "climb"])
@pytest.mark.parametrize("online", [False, True])
def test_a_probe_also_compares_the_incumbent_with_its_world_model(pinned: Pinned, level: str, online: bool) -> None:
    _, bridge = run(pinned, config(level, online=online))
    equipped = [name.partition("/")[0] for name in bridge.asked[0].weights if name.endswith("/world.w2")]
    assert len(equipped) == 1


class OnlyAhead(AdaptableTeam):
    """Members whose actions are all saturated, but for the one that looks ahead."""

    def plain(self, member: str) -> Deployment:
        return with_adapter(super().plain(member), np.array([0.0] * 6 + [5.0] * 6, np.float32))

    def looking_ahead(self, member: str, config: AdaptConfig, *, online: bool) -> Deployment:
        found = super().looking_ahead(member, config, online=online)
        return with_adapter(found, np.array([0.0] * 6 + [-5.0] * 6, np.float32))


def test_a_chosen_world_model_goes_on_adapting_between_the_episodes_of_a_climb(pinned: Pinned) -> None:
    _, bridge = run(pinned, config("climb"), source=OnlyAhead(pinned))
    heads = [request.weights.get("seat-0/world.w2") for request in bridge.asked[1:3]]
    assert all(head is not None for head in heads)
    assert (np.asarray(heads[0]) != np.asarray(heads[1])).any()


class Handicapped(AdaptableTeam):
    """One member whose actions are all saturated, which costs 0.6 a step and moves nothing for long."""

    def plain(self, member: str) -> Deployment:
        found = super().plain(member)
        return with_adapter(found, np.array([0.0] * 6 + [5.0] * 6, np.float32)) if member == "state" else found


def test_a_better_member_is_found_by_one_probe_and_accepted(pinned: Pinned) -> None:
    result, _ = run(pinned, config("probe"), source=Handicapped(pinned))
    assert result.decision.accepted, result.decision.reason
    assert result.deployment.member != "state"
    assert result.after.mean() > result.before.mean()


def test_what_is_rejected_leaves_the_incumbent_as_it_was(pinned: Pinned) -> None:
    result, _ = run(pinned, config("context"))
    assert not result.decision.accepted
    assert result.deployment.member == "state"
    assert not result.deployment.carry
    assert result.deployment.memory is None


def test_a_memory_written_by_another_encoder_is_emptied(pinned: Pinned) -> None:
    class OwnEncoders(AdaptableTeam):
        def plain(self, member: str) -> Deployment:
            return replace(super().plain(member), encoder=member)

    result, bridge = run(pinned, config("probe"), source=OwnEncoders(pinned))
    seats = [0, 1, 2, 3, 4, 5, 0, 1]
    members = ["state", "coordinator", "environment", "meta", "adaptation", "state"]
    second = bridge.asked[1].policy_state
    assert second is not None
    kept = [bool(row.any()) for row in second]
    assert kept == [members[seat] == result.candidate.member for seat in seats]


def adapted_policy(pinned: Pinned, team: TeamConfig) -> AdaptedPolicy:
    result, _ = run(pinned, config("inner", online=True))
    return AdaptedPolicy(deployment=result.candidate, task=HEAVY, env_id=team.env_id, round_index=1, level="inner")


def test_a_saved_policy_comes_back_and_acts_to_the_bit_as_it_did(pinned: Pinned, tmp_path: Path) -> None:
    policy = adapted_policy(pinned, pinned.team)
    assert save_adapted(tmp_path, "heavy", policy) == adapted_path(tmp_path, "heavy")
    found = load_adapted(tmp_path, "heavy")
    assert (found.task, found.env_id, found.round_index, found.level) == (HEAVY, "HalfCheetah-v4", 1, "inner")
    requests = [deployed_blocks(pinned.team, p.deployment, HEAVY, 8, 5, max_steps=STEPS)[0] for p in (policy, found)]
    first, second = (run_rollout(request) for request in requests)
    np.testing.assert_array_equal(first.columns["action"], second.columns["action"])
    assert requests[1].carry_state
    assert requests[1].policy_state is not None


def test_damaged_and_missing_policies_are_named(pinned: Pinned, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapted policy 'heavy'; it has: none"):
        load_adapted(tmp_path, "heavy")
    for name in ("../heavy", "", "a/b", "x" * 65):
        with pytest.raises(ConfigError, match="for an adapted policy"):
            load_adapted(tmp_path, name)
    path = save_adapted(tmp_path, "heavy", adapted_policy(pinned, pinned.team))
    with pytest.raises(ConfigError, match="no adapted policy 'light'; it has: heavy"):
        load_adapted(tmp_path, "light")
    data = path.read_bytes()
    for damaged in (b"", data[:100], b"\xff" * 64, data.replace(b"adapted-policy-1", b"adapted-policy-9")):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged or no adapted policy"):
            load_adapted(tmp_path, "heavy")
