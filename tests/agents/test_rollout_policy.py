from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.config import MemberConfig, WorldConfig
from agents.learning.encoder import Columns, Stream, columns_from_arrays, encode_stream
from agents.learning.networks import actor_output
from agents.learning.normalizer import Scales, normalizer_from_rows
from agents.learning.sac import MemberState
from agents.learning.world_state import WorldState, encoder_parameters, init_world
from agents.member import acting_weights, init_member
from agents.rollout_policy import MemberPolicy, build_policy
from swarm.errors import ConfigError
from swarm.messages import Arrays
from swarm.policy import PolicyInput

STEPS, OBSERVATION, ACTION = 30, 6, 3


class Case:
    """30 random steps of 8 environments, one world model and two members."""

    def __init__(self, projection: int, kind: str = "ssm") -> None:
        config = MemberConfig(
            encoder=kind, projection=projection, encoder_width=5, encoder_states=4, actor_hidden=(16, 12)
        )
        rng = np.random.default_rng(0)
        arrays = {
            "observation": rng.standard_normal((STEPS, 8, OBSERVATION)).astype(np.float32) * 3 + 1,
            "action": rng.uniform(-1, 1, (STEPS, 8, ACTION)).astype(np.float32),
            "reward": rng.standard_normal((STEPS, 8)).astype(np.float32),
            "next_observation": rng.standard_normal((STEPS, 8, OBSERVATION)).astype(np.float32),
            "terminated": np.zeros((STEPS, 8), bool),
            "reset": rng.random((STEPS, 8)) < 0.1,
        }
        arrays["reset"][0] = True
        self.columns: Columns = columns_from_arrays(arrays, STEPS)
        self.scales: Scales = normalizer_from_rows(
            arrays["observation"], arrays["reward"], arrays["next_observation"]
        ).scales()
        self.world: WorldState = init_world(WorldConfig(hidden=8), config, OBSERVATION, ACTION, seed=0)
        self.members: dict[str, MemberState] = {
            name: init_member(config, OBSERVATION, ACTION, seed=s) for s, name in enumerate(("meta", "state"))
        }
        self.stream: Stream = encode_stream(
            self.world.sizes.encoder, encoder_parameters(self.world), self.columns, self.scales
        )

    def weights(self, name: str) -> Arrays:
        return acting_weights(self.members[name], encoder_parameters(self.world), self.scales)

    def all_weights(self) -> Arrays:
        return {f"{name}/{key}": value for name in self.members for key, value in self.weights(name).items()}

    def given(self, t: int, state: np.ndarray, noise: np.ndarray | None = None) -> PolicyInput:
        """What the policy sees at step ``t`` if the recorded action of step t − 1 was taken."""
        state = state.copy()
        reward = np.zeros(8, np.float32)
        if t > 0:
            state[:, -ACTION:] = self.columns.action[t - 1].numpy()
            reward = self.columns.reward[t - 1].numpy()
        return PolicyInput(
            reset=self.columns.reset[t].numpy(),
            observation=self.columns.observation[t].numpy(),
            reward=reward,
            state=state,
            noise=np.zeros((8, ACTION), np.float32) if noise is None else noise,
        )


@pytest.fixture(params=[(0, "ssm"), (4, "ssm"), (0, "mlp"), (0, "lstm")], ids=["plain", "projected", "mlp", "lstm"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def test_features_step_by_step_equal_those_of_the_stream(case: Case) -> None:
    policy = MemberPolicy({k: np.asarray(v, np.float32) for k, v in case.weights("meta").items()})
    state = np.zeros((8, policy.state_size), np.float32)
    for t in range(STEPS):
        given = case.given(t, state)
        visible, features, _ = policy.encode(given)
        np.testing.assert_allclose(features, case.stream.features[t].numpy(), atol=1e-5)
        np.testing.assert_allclose(visible, case.stream.visible[t].numpy(), atol=1e-5)
        state = policy.act(given)[1]
    state[:, -ACTION:] = case.columns.action[-1].numpy()
    np.testing.assert_allclose(state, case.stream.policy_state, atol=1e-5)


def test_actions_equal_those_of_the_torch_actor(case: Case) -> None:
    policy = build_policy(case.weights("state"), {})
    member = case.members["state"]
    inputs = torch.cat([case.stream.visible, case.stream.features], dim=-1)
    noise = np.random.default_rng(1).standard_normal((STEPS, 8, ACTION)).astype(np.float32)
    state = np.zeros((8, policy.state_size), np.float32)
    for t in range(STEPS):
        action, state = policy.act(case.given(t, state, noise[t]))
        mean, log_std = actor_output(member.sizes, member.sizes.split(member.theta)[1], inputs[t])
        expected = torch.tanh(mean + log_std.exp() * torch.from_numpy(noise[t]))
        np.testing.assert_allclose(action, expected.numpy(), atol=1e-5)
        np.testing.assert_array_equal(state[:, -ACTION:], action)


def test_each_seat_is_acted_by_its_member_to_the_last_bit(case: Case) -> None:
    names = ["meta", "state", "state", "meta", "meta", "state", "meta", "state"]
    both = build_policy(case.all_weights(), {"seats": names})
    given = case.given(0, np.zeros((8, both.state_size), np.float32))
    action, state = both.act(given)
    for e, name in enumerate(names):
        alone_action, alone_state = build_policy(case.weights(name), {}).act(given)
        np.testing.assert_array_equal(action[e], alone_action[e])
        np.testing.assert_array_equal(state[e], alone_state[e])


def test_members_with_encoders_of_their_own_act_as_they_would_alone(case: Case) -> None:
    """Independent members: each goes on from its own encoder's state, by its own scales."""
    weights = dict(case.all_weights())
    for name in weights:
        if name.startswith("state/") and name.split("/")[1].startswith(("enc.", "norm.")):
            weights[name] = np.asarray(weights[name], np.float32) * np.float32(0.9)
    names = ["meta", "state"] * 4
    both = build_policy(weights, {"seats": names})
    given = case.given(1, np.full((8, both.state_size), 0.3, np.float32))
    found = both.act(given)
    for e, name in enumerate(names):
        own = {key.partition("/")[2]: value for key, value in weights.items() if key.startswith(name)}
        for mine, alone in zip(found, build_policy(own, {}).act(given), strict=True):
            np.testing.assert_array_equal(mine[e], alone[e])


def test_members_of_other_sizes_can_share_a_block(case: Case) -> None:
    weights = dict(case.all_weights())
    for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
        weights[f"state/actor.{name}"] = np.delete(weights[f"state/actor.{name}"], 3, axis=axis)
    names = ["meta", "state"] * 4
    both = build_policy(weights, {"seats": names})
    given = case.given(0, np.zeros((8, both.state_size), np.float32))
    action, _ = both.act(given)
    own = {key.partition("/")[2]: value for key, value in weights.items() if key.startswith("state/")}
    np.testing.assert_array_equal(action[1], build_policy(own, {}).act(given)[0][1])
    np.testing.assert_array_equal(action[0], build_policy(case.weights("meta"), {}).act(given)[0][0])


def test_zeroing_the_encoder_changes_actions(case: Case) -> None:
    with_features, without = (build_policy(case.weights("meta"), {"zero_encoder": z}) for z in (False, True))
    given = case.given(0, np.zeros((8, with_features.state_size), np.float32))
    assert np.abs(with_features.act(given)[0] - without.act(given)[0]).max() > 1e-4


def test_random_actions_are_uniform_and_remembered(case: Case) -> None:
    policy = build_policy(case.weights("meta"), {"random": True})
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        noise = rng.standard_normal((8, ACTION)).astype(np.float32)
        action, state = policy.act(case.given(0, np.zeros((8, policy.state_size), np.float32), noise))
        np.testing.assert_array_equal(state[:, -ACTION:], action)
        drawn.append(action)
    counts, _ = np.histogram(np.concatenate(drawn), bins=10, range=(-1, 1))
    assert counts.sum() == 200 * 8 * ACTION
    assert counts.min() > 0.8 * counts.mean()


def test_the_adapter_scales_and_shifts_before_squashing(case: Case) -> None:
    weights = dict(case.weights("meta"))
    policy = build_policy(weights, {})
    given = case.given(0, np.zeros((8, policy.state_size), np.float32))
    plain = policy.act(given)[0]
    weights["adapter.gain"] = np.full(ACTION, 0.5, np.float32)
    weights["adapter.bias"] = np.full(ACTION, 0.2, np.float32)
    adapted = build_policy(weights, {}).act(given)[0]
    np.testing.assert_allclose(np.arctanh(adapted), 0.5 * np.arctanh(plain) + 0.2, atol=1e-4)


def test_reset_forgets_state_reward_and_action(case: Case) -> None:
    policy = build_policy(case.weights("meta"), {})
    given = replace(case.given(0, np.zeros((8, policy.state_size), np.float32)), reset=np.ones(8, bool))
    dirty = replace(given, state=np.full_like(given.state, 3), reward=np.full(8, 5, np.float32))
    for one, two in zip(policy.act(given), policy.act(dirty), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seat": []}, "unknown policy option 'seat'"),
        ({"seats": ["meta"] * 7}, "got 7 seats, expected 8"),
        ({"seats": ["nobody"] * 8}, "no weights for seated member 'nobody'"),
    ],
)
def test_bad_options_are_refused_in_one_line(case: Case, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_policy(case.all_weights(), options)  # type: ignore[arg-type]


def test_missing_and_misshapen_weights_are_refused(case: Case) -> None:
    weights = dict(case.weights("meta"))
    weights["actor.w1"] = weights["actor.w1"][:-1]
    with pytest.raises(ConfigError, match=r"'actor.w1' has shape .*, expected .*: arrays of other sizes"):
        build_policy(weights, {})
    del weights["enc.output_b"]
    with pytest.raises(ConfigError, match=r"acting weights lack 'enc.output_b'"):
        build_policy(weights, {})
    with pytest.raises(ConfigError, match="got no weights"):
        build_policy({}, {})


def test_the_policy_imports_no_torch() -> None:
    code = "import sys, agents.rollout_policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("kind", ["ssm", "mlp", "lstm"])
@pytest.mark.parametrize("seats", [["state"] * 8, ["meta"] * 3 + ["state"] * 5])
def test_several_blocks_at_once_give_the_bits_of_block_by_block(kind: str, seats: list[str]) -> None:
    case = Case(projection=4, kind=kind)
    policy = build_policy(case.all_weights(), {"seats": seats})
    rng = np.random.default_rng(1)
    parts, noises = [], rng.standard_normal((4, 8, ACTION)).astype(np.float32)
    for t, noise in zip(range(3, 7), noises, strict=True):
        state = rng.standard_normal((8, policy.state_size)).astype(np.float32)
        parts.append(case.given(t, state, noise))
    whole = PolicyInput(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("reset", "observation", "reward", "state", "noise")
        }
    )
    action, state = policy.act(whole)
    for index, part in enumerate(parts):
        rows = slice(8 * index, 8 * index + 8)
        own_action, own_state = policy.act(part)
        np.testing.assert_array_equal(action[rows], own_action)
        np.testing.assert_array_equal(state[rows], own_state)
