from __future__ import annotations

from dataclasses import replace
from typing import Any

import numba
import numpy as np
import pytest

from agents.acting_kernel import tanh
from agents.learning.compiled import FAST
from agents.rollout_policy import MemberPolicy, build_policy
from swarm.errors import ConfigError
from swarm.messages import Arrays
from swarm.policy import PolicyInput

OBSERVATION, ACTION, HIDDEN, STATES, FEATURES = 17, 6, 64, 8, 20


@numba.njit(fastmath=FAST)
def squash(values: Any) -> Any:
    result = np.empty_like(values)
    for k in range(len(values)):
        result[k] = tanh(values[k])
    return result


def weights_of(kind: str, seed: int) -> Arrays:
    """Weights of a member with as many columns as fill vectors, with some left over, and with less than one."""
    rng = np.random.default_rng(seed)
    inputs, wide = OBSERVATION + ACTION + 1, 2 * STATES
    readout = {
        "output_w": (wide, FEATURES),
        "skip_w": (inputs, FEATURES),
        "gate_w": (wide, FEATURES),
        "gate_b": (FEATURES,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "ssm": {"nu": (STATES,), "theta": (STATES,), "input_w": (inputs, wide), **readout},
        "mlp": {"hidden_w": (inputs, wide), "hidden_b": (wide,), **readout},
        "lstm": {
            "recurrent_w": (inputs + STATES, 4 * STATES),
            "recurrent_b": (4 * STATES,),
            "output_w": (STATES, FEATURES),
        },
    }[kind]
    shapes = {f"enc.{name}": shape for name, shape in shapes.items()} | {"enc.output_b": (FEATURES,)}
    shapes |= {"actor.w1": (OBSERVATION + FEATURES, HIDDEN), "actor.w2": (HIDDEN, 33), "actor.w3": (33, 2 * ACTION)}
    shapes |= {"actor.b1": (HIDDEN,), "actor.b2": (33,), "actor.b3": (2 * ACTION,)}
    shapes |= {"norm.mean": (OBSERVATION,), "norm.factor": (OBSERVATION,), "norm.reward_factor": (1,)}
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def given_to(state_size: int, num_envs: int = 32) -> PolicyInput:
    rng = np.random.default_rng(7)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return PolicyInput(
        reset=rng.random(num_envs) < 0.2,
        observation=drawn(num_envs, OBSERVATION),
        reward=drawn(num_envs),
        state=drawn(num_envs, state_size),
        noise=drawn(num_envs, ACTION),
    )


def test_tanh_is_within_half_a_millionth_and_never_beyond_one() -> None:
    values = np.concatenate([np.linspace(-12, 12, 1_000_001), np.logspace(-38, 38, 100_001)]).astype(np.float32)
    found = squash(values)
    assert np.abs(found - np.tanh(values.astype(np.float64))).max() < 5e-7
    assert np.abs(found).max() <= 1
    np.testing.assert_array_equal(squash(np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)), [np.nan, 1, -1, 0])


@pytest.mark.parametrize("kind", ["ssm", "mlp", "lstm"])
def test_the_bits_of_a_row_do_not_depend_on_the_number_of_rows(kind: str) -> None:
    policy = MemberPolicy({k: np.asarray(v, np.float32) for k, v in weights_of(kind, 0).items()})
    given = given_to(policy.state_size)
    action, state = policy.act(given)
    for first, last in ((0, 1), (1, 4), (3, 16), (15, 32)):
        rows = slice(first, last)
        for whole, part in zip((action, state), policy.act(given.rows(rows)), strict=True):
            np.testing.assert_array_equal(part, whole[rows])


@pytest.mark.parametrize("kind", ["ssm", "mlp", "lstm"])
def test_any_layout_of_what_is_given_gives_the_same_bits(kind: str) -> None:
    policy = build_policy(weights_of(kind, 0), {})
    given = given_to(policy.state_size)
    columns = np.asfortranarray(given.observation)
    fixed = given.state.copy()
    fixed.flags.writeable = False
    other = replace(given, observation=columns, state=fixed, reward=np.repeat(given.reward, 2)[::2])
    for one, two in zip(policy.act(given), policy.act(other), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", ["ssm", "mlp", "lstm"])
def test_what_is_not_a_number_stays_so_in_its_row_alone_and_ends_with_the_episode(kind: str) -> None:
    policy = build_policy(weights_of(kind, 0), {})
    given = replace(given_to(policy.state_size), reset=np.zeros(32, bool))
    action, _ = policy.act(given)
    broken = replace(given, observation=given.observation.copy(), state=given.state.copy(), reset=given.reset.copy())
    broken.observation[3, 0] = np.nan
    broken.state[5], broken.reset[5] = np.nan, True
    found, _ = policy.act(broken)
    assert np.isnan(found[3]).all()
    assert np.isfinite(found[5]).all()
    others = [e for e in range(32) if e not in (3, 5)]
    np.testing.assert_array_equal(found[others], action[others])


def test_what_does_not_fit_the_weights_is_refused() -> None:
    policy = build_policy(weights_of("ssm", 0), {})
    given = given_to(policy.state_size)
    with pytest.raises(ConfigError, match="weights of another environment"):
        policy.act(replace(given, observation=given.observation[:, 1:]))
    with pytest.raises(ConfigError, match="weights of another environment"):
        policy.act(replace(given, reward=given.reward[1:]))
    with pytest.raises(ConfigError, match="got 31 environments, expected blocks of 8"):
        policy.act(given.rows(slice(0, 31)))


@pytest.mark.parametrize("kind", ["ssm", "mlp", "lstm"])
def test_every_array_of_another_shape_is_refused(kind: str) -> None:
    weights = weights_of(kind, 0)
    for name, value in weights.items():
        for other in (np.asarray(value, np.float32)[None], np.asarray(value, np.float32)[:0]):
            with pytest.raises(ConfigError, match="arrays of other sizes"):
                build_policy({**weights, name: other}, {})
