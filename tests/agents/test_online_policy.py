"""Looking ahead with a dynamics head that adapts next to the physics."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.adaptable import AdaptableTeam, newest_windows
from agents.config import AdaptConfig, TeamConfig, WorldConfig
from agents.deployment import Deployment, block_request
from agents.dynamics_heads import Heads, Lookahead, adapt_heads
from agents.learning.encoder import columns_from_arrays, encode_stream
from agents.learning.inner_loop import adapt, predict
from agents.learning.maml import inner_loop_of, networks_of
from agents.learning.networks import critic_values
from agents.learning.windows import cut_windows
from agents.learning.world_model import prepare
from agents.learning.world_state import encoder_parameters
from agents.member import encoder_sizes
from agents.online_policy import build_policy
from agents.pinned import Pinned
from agents.plan import SHARED
from agents.rollout_policy import MemberPolicy
from env_bridge.rollout import run_rollout
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import ConfigError
from tests.agents.made_runs import make_run

E, W, X, Y, C, H = 3, 12, 7, 5, 4, 16
ADAPT = AdaptConfig(level="inner", transitions=16, reach=0.1)


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Pinned:
    """A committed round of new-born members."""
    path = tmp_path_factory.mktemp("made") / "run"
    return Pinned(path, make_run(path), 1)


def head_of(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"c0": (C,), "w1": (X + C, H), "b1": (H,), "w2": (H, Y), "b2": (Y,), "rates": (2,)}
    return {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def numpy_heads(head: dict[str, np.ndarray]) -> Heads:
    w1 = head["w1"]
    return Heads(w1=w1[:X], wc=w1[X:], b1=head["b1"], w2=head["w2"], b2=head["b2"], c=head["c0"].reshape(1, 1, -1))


@pytest.mark.parametrize("adapted", ["context", "head", "both", "all"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_inner_loop_next_to_the_physics_is_that_of_training(adapted: str, learned: bool) -> None:
    rng = np.random.default_rng(0)
    head, config = head_of(rng), WorldConfig(adapted=adapted, inner_steps=3, learned_rates=learned)
    known = rng.standard_normal((E, W, X)).astype(np.float32)
    target = rng.standard_normal((E, W, Y)).astype(np.float32)
    asked = rng.standard_normal((E, 2, X)).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1], np.float32)
    tensors = {name: torch.from_numpy(value) for name, value in head.items()}
    loop = inner_loop_of(config, tensors)
    networks = adapt(
        networks_of(tensors, X, E),
        torch.from_numpy(known),
        torch.from_numpy(target),
        torch.from_numpy(mask),
        loop,
    )
    first, last = (float(rate) for rate in loop.layer_rates)
    how = Lookahead(
        discount=0.99,
        reward_scale=1,
        reach=0.1,
        steps=3,
        context_rate=float(loop.context_rate),
        first_rate=first,
        last_rate=last,
    )
    found = adapt_heads(numpy_heads(head), known, target, np.ones((E, W), np.float32), mask, how)
    expected = predict(networks, torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(found.predict(asked), expected, atol=1e-5)
    assert np.abs(found.predict(asked) - numpy_heads(head).predict(asked)).max() > 1e-2


def test_empty_places_do_not_count() -> None:
    rng = np.random.default_rng(1)
    heads = numpy_heads(head_of(rng))
    known, target = rng.standard_normal((E, W, X)), rng.standard_normal((E, W, Y))
    known, target = known.astype(np.float32), target.astype(np.float32)
    mask = np.ones(Y, np.float32)
    how = Lookahead(discount=0.99, reward_scale=1, reach=0.1, steps=2, context_rate=0.1, last_rate=0.1)
    counts = np.zeros((E, W), np.float32)
    counts[:, :5] = 1
    some = adapt_heads(heads, known, target, counts, mask, how)
    alone = adapt_heads(heads, known[:, :5], target[:, :5], np.ones((E, 5), np.float32), mask, how)
    np.testing.assert_allclose(some.predict(known), alone.predict(known), atol=1e-6)
    nothing = adapt_heads(heads, known, target, np.zeros((E, W), np.float32), mask, how)
    np.testing.assert_array_equal(nothing.predict(known), heads.predict(known))


def request_of(pinned: Pinned, seats: list[Deployment], steps: int, **changes: object) -> RolloutRequest:
    request = block_request(pinned.team, seats, TaskParameters(), 3, max_steps=9)
    return replace(request, num_steps=steps, **changes)  # type: ignore[arg-type]


def test_an_action_that_is_looked_ahead_is_the_actors_own_or_moved_along_one_axis(pinned: Pinned) -> None:
    source = AdaptableTeam(pinned)
    ahead = source.looking_ahead("state", ADAPT, online=False)
    columns = run_rollout(request_of(pinned, [ahead] * 8, 20)).columns
    actor = MemberPolicy({name: np.asarray(value, np.float32) for name, value in ahead.weights.items()})
    stream = encode_stream(
        encoder_sizes(pinned.team.member, *pinned.sizes),
        pinned.encoder(SHARED),
        columns_from_arrays(columns, 20),
        pinned.scales(SHARED),
    )
    shape = (20 * 8, -1)
    proposed = actor.choose(
        stream.visible.reshape(shape).numpy(), stream.features.reshape(shape).numpy(), np.zeros((160, 6), np.float32)
    )
    moved = np.abs(np.asarray(columns["action"]).reshape(160, 6) - proposed) > 1e-4
    assert moved.sum(axis=1).max() == 1
    assert moved.any(axis=1).mean() > 0.2
    np.testing.assert_allclose(np.abs(np.asarray(columns["action"]).reshape(160, 6) - proposed).max(), 0.1, atol=1e-4)


def test_looking_ahead_sees_the_values_of_the_members_own_critics(pinned: Pinned) -> None:
    ahead = AdaptableTeam(pinned).looking_ahead("meta", ADAPT, online=False)
    policy = build_policy(
        {f"a/{name}": value for name, value in ahead.weights.items()},
        {"seats": ["a"] * 8, "lookahead": asdict(ahead.lookahead)},  # type: ignore[arg-type]
    )
    looking = policy._others[0][0]._actor  # type: ignore[attr-defined, union-attr]
    member = pinned.member("meta")
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((9, member.sizes.inputs + 6)).astype(np.float32)
    scaled = inputs.copy()
    scaled[:, 17:49] *= pinned.team.member.feature_scale
    expected = critic_values(member.sizes, member.sizes.split(member.theta)[0], torch.from_numpy(scaled)).min(0).values
    np.testing.assert_allclose(looking._value(inputs), expected.numpy(), atol=1e-5)


def test_transitions_are_remembered_as_training_would_prepare_them_and_none_leads_from_one_episode_to_the_next(
    pinned: Pinned,
) -> None:
    online = AdaptableTeam(pinned).looking_ahead("state", ADAPT, online=True)
    result = run_rollout(request_of(pinned, [online] * 8, 14, carry_state=True))  # an episode of 9, 5 of the next
    columns = columns_from_arrays(result.columns, 14)
    world, scales = pinned.world(SHARED), pinned.scales(SHARED)
    states = encode_stream(encoder_sizes(pinned.team.member, *pinned.sizes), encoder_parameters(world), columns, scales)
    starts = np.array([[0, environment] for environment in range(8)])
    encoder = world.sizes.views(world.sizes.part(world.theta, 0))[0]
    seen = prepare(world.sizes, encoder, cut_windows(columns, states.states, starts, 14), scales)
    inputs = seen.known.shape[-1]
    own = result.policy_state.shape[1] - (2 + 17 + inputs + 16 * (inputs + 18))
    memory = result.policy_state[:, own:]
    assert memory[:, 0].tolist() == [12.0] * 8  # 8 of the first episode, 4 of the second
    kept = memory[:, 2 + 17 + inputs :].reshape(8, 16, -1)
    rows = [row for row in range(13) if row != 8]
    expected = torch.cat([seen.known, seen.target], dim=-1)[rows].transpose(0, 1).numpy()
    np.testing.assert_allclose(kept[:, :12], expected, atol=1e-4)


def test_the_head_adapts_once_half_of_the_window_is_known(pinned: Pinned) -> None:
    source = AdaptableTeam(pinned)
    fixed = source.looking_ahead("state", ADAPT, online=False)
    online = source.looking_ahead("state", ADAPT, online=True)
    task, limit = TaskParameters(gravity=2.0), {"max_episode_steps": 100}
    first = run_rollout(request_of(pinned, [fixed] * 8, 12, tasks=(task,) * 8, **limit)).columns["action"]
    second = run_rollout(request_of(pinned, [online] * 8, 12, tasks=(task,) * 8, **limit)).columns["action"]
    np.testing.assert_array_equal(first[:8], second[:8])
    assert (np.asarray(first[8]) != np.asarray(second[8])).any()


def test_members_that_do_not_look_ahead_act_beside_it_as_they_do_alone(pinned: Pinned) -> None:
    source = AdaptableTeam(pinned)
    plain, online = source.plain("meta"), source.looking_ahead("state", ADAPT, online=True)
    mixed = run_rollout(request_of(pinned, [plain, online] * 4, 6)).columns["action"]
    alone = run_rollout(request_of(pinned, [plain] * 8, 6)).columns["action"]
    np.testing.assert_allclose(mixed[:, ::2], alone[:, ::2], atol=1e-6)


def test_a_head_adapted_between_episodes_predicts_the_shifted_transitions_better(pinned: Pinned) -> None:
    source, team = AdaptableTeam(pinned), pinned.team
    ahead = source.looking_ahead("state", ADAPT, online=False)
    result = run_rollout(request_of(pinned, [ahead] * 8, 40, max_episode_steps=100))
    adapted = source.adapted(ahead, result, ADAPT)
    losses = [transition_loss(pinned, deployment, result.columns, team) for deployment in (ahead, adapted)]
    assert losses[1] < losses[0]


def transition_loss(pinned: Pinned, deployment: Deployment, columns: dict, team: TeamConfig) -> float:  # type: ignore[type-arg]
    rows = columns_from_arrays(columns, 40)
    world, scales = pinned.world(SHARED), pinned.scales(SHARED)
    stream = encode_stream(encoder_sizes(team.member, *pinned.sizes), encoder_parameters(world), rows, scales)
    starts = np.array([[24, environment] for environment in range(8)])
    encoder = world.sizes.views(world.sizes.part(world.theta, 0))[0]
    seen = prepare(world.sizes, encoder, cut_windows(rows, stream.states, starts, 16), scales)
    w = {name: np.asarray(deployment.weights[f"world.{name}"]) for name in ("c0", "w1", "b1", "w2", "b2")}
    split = seen.known.shape[-1]
    heads = Heads(w1=w["w1"][:split], wc=w["w1"][split:], b1=w["b1"], w2=w["w2"], b2=w["b2"], c=w["c0"][None, None])
    error = (heads.predict(seen.known.numpy()) - seen.target.numpy()) * seen.mask.numpy()
    return float(np.square(error).mean())


def test_environments_with_too_few_transitions_are_left_out() -> None:
    valid = np.zeros((20, 3), bool)
    valid[:15, 0] = valid[:20, 1] = valid[:9, 2] = True
    assert newest_windows(valid, 10).tolist() == [[5, 0], [10, 1]]
    assert newest_windows(valid[:5], 10).shape == (0, 2)


def test_what_does_not_fit_is_one_line(pinned: Pinned) -> None:
    ahead = AdaptableTeam(pinned).looking_ahead("state", ADAPT, online=False)
    weights = {f"a/{name}": value for name, value in ahead.weights.items()}
    options = {"seats": ["a"] * 8, "lookahead": asdict(ahead.lookahead)}  # type: ignore[arg-type]
    for bad, message in (
        ({**options, "speed": 1}, "unknown policy option 'speed'"),
        ({**options, "seats": ["a"] * 7}, "got 7 seats"),
        ({**options, "seats": ["b"] * 8}, "no weights for seated member 'b'"),
        ({**options, "lookahead": {"reach": "far"}}, "lookahead.reach is 'far'"),
        ({**options, "lookahead": {"reach": 0.1}}, "missing"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            build_policy(weights, bad)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    del weights["a/critic.w2"]
    with pytest.raises(ConfigError, match=r"lack 'critic\.w2'"):
        build_policy(weights, options)


def test_looking_ahead_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys, agents.online_policy, agents.deployment; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
