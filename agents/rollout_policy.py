"""Acting as a `swarm.policy.Policy`: encoder and actor of one or more members in NumPy. Imports no torch.

Letters in this file: E environments (always `BLOCK_SIZE`), O observation, A action, N complex encoder states,
S = 2 N + A policy state.

State of an environment: real and imaginary parts of the encoder's states, interleaved, then the previous action. Every
distinct member acts on the whole block and the rows of its seats are taken, so that the shape of each matrix product,
and with it the last bit of its result, does not depend on who sits where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from swarm.errors import ConfigError
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE, PolicyInput

Float32Array = NDArray[np.float32]
OBSERVATION_CLIP = 10.0
LOG_STD_MIN = -10.0
LOG_STD_MAX = 2.0
OPTIONS = frozenset({"seats", "random", "zero_encoder"})
REQUIRED = (
    *(f"enc.{name}" for name in ("nu", "theta", "input_w", "output_w", "skip_w", "output_b", "gate_w", "gate_b")),
    *(f"actor.{name}" for name in ("w1", "b1", "w2", "b2", "w3", "b3")),
    *(f"norm.{name}" for name in ("mean", "factor", "reward_factor")),
)


def build_policy(weights: Arrays, options: Mapping[str, Json]) -> SeatedPolicy:
    """Build the policy of a block.

    Args:
        weights: acting weights (`agents.member.acting_weights`) with names ``<member>/<array>``, or, for a single
            member, plain names.
        options: ``seats``: member name per environment (one block, or blocks with the same members in each seat);
            default: the only member everywhere. ``random``: uniform actions made from the given noise.
            ``zero_encoder``: the actor sees zeros in place of the encoder's features.

    Raises:
        ConfigError: an unknown option, a seat without weights, or missing or misshapen arrays.
    """
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise ConfigError(f"unknown policy option {unknown[0]!r}; known options: {', '.join(sorted(OPTIONS))}")
    by_member = _by_member(weights)
    seats = tuple(cast(Sequence[str], options.get("seats") or [next(iter(by_member))] * BLOCK_SIZE))
    if len(seats) != BLOCK_SIZE:
        raise ConfigError(
            f"got {len(seats)} seats, expected {BLOCK_SIZE}: one member name per environment of the block"
        )
    missing = sorted(set(seats) - set(by_member))
    if missing:
        raise ConfigError(f"no weights for seated member {missing[0]!r}; weights given for: {', '.join(by_member)}")
    zero = bool(options.get("zero_encoder", False))
    actors = {name: MemberPolicy(by_member[name], zero_encoder=zero) for name in sorted(set(seats))}
    return SeatedPolicy(actors, seats, random=bool(options.get("random", False)))


def _by_member(weights: Arrays) -> dict[str, dict[str, Float32Array]]:
    members: dict[str, dict[str, Float32Array]] = {}
    for key, value in weights.items():
        member, _, name = key.rpartition("/")
        members.setdefault(member or "member", {})[name] = np.asarray(value, np.float32)
    if not members:
        raise ConfigError("got no weights, expected the acting weights of at least one member")
    return members


class SeatedPolicy:
    """Members on the seats of one block; see `swarm.policy.Policy`."""

    def __init__(self, actors: Mapping[str, MemberPolicy], seats: Sequence[str], *, random: bool) -> None:
        self._rows = [(actor, np.array([s == name for s in seats])) for name, actor in actors.items()]
        self._random = random
        self.state_size = self._rows[0][0].state_size
        if any(actor.state_size != self.state_size for actor, _ in self._rows):
            raise ConfigError("seated members differ in state size; all members of a block need the same sizes")

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions (E, A) in [−1, 1] and the next state (E, S)."""
        action = np.zeros_like(given.noise)
        state = np.zeros_like(given.state)
        for actor, rows in self._rows:
            its_action, its_state = actor.act(given)
            action[rows], state[rows] = its_action[rows], its_state[rows]
        if self._random:
            action = _uniform(given.noise)
            state[:, -action.shape[1] :] = action
        return action, state


def _uniform(noise: Float32Array) -> Float32Array:
    """Map standard normal numbers to uniform ones on [−1, 1] through their distribution function."""
    erf = np.fromiter((math.erf(z / math.sqrt(2)) for z in noise.ravel().tolist()), np.float32, noise.size)
    return erf.reshape(noise.shape)


class MemberPolicy:
    """Encoder and tanh-Gaussian actor of one member."""

    def __init__(self, weights: Mapping[str, Float32Array], *, zero_encoder: bool = False) -> None:
        missing = [name for name in REQUIRED if name not in weights]
        if missing:
            raise ConfigError(f"acting weights lack {missing[0]!r}; expected {', '.join(REQUIRED)}")
        self._w = dict(weights)
        self._zero_encoder = zero_encoder
        self._actions = self._w["actor.b3"].shape[0] // 2
        self._states = self._w["enc.nu"].shape[0]
        self._gain = self._w.get("adapter.gain", np.ones(self._actions, np.float32))
        self._bias = self._w.get("adapter.bias", np.zeros(self._actions, np.float32))
        self.state_size = 2 * self._states + self._actions
        radius = np.exp(-np.exp(self._w["enc.nu"]))
        self._decay = (radius * np.exp(1j * np.exp(self._w["enc.theta"]))).astype(np.complex64)
        gamma = np.sqrt(1 - np.square(radius))
        self._input_w = (self._w["enc.input_w"] * np.repeat(gamma, 2)).astype(np.float32)
        self._check_shapes()

    def _check_shapes(self) -> None:
        visible = self._w["enc.proj_b" if "enc.proj_w" in self._w else "norm.mean"].shape[0]
        features = self._w["enc.output_b"].shape[0]
        inputs = visible + self._actions + 1
        for name, rows in (
            ("enc.input_w", inputs),
            ("enc.skip_w", inputs),
            ("enc.output_w", 2 * self._states),
            ("actor.w1", visible + features),
            ("adapter.gain", self._actions),
        ):
            found = self._w[name].shape[0] if name in self._w else rows
            if found != rows:
                raise ConfigError(f"acting weight {name!r} has {found} rows, expected {rows}: arrays of other sizes?")

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions (E, A) in [−1, 1] and the next state (E, S)."""
        visible, features, states = self.encode(given)
        w = self._w
        if self._zero_encoder:
            features = np.zeros_like(features)
        hidden = np.maximum(np.concatenate([visible, features], axis=1) @ w["actor.w1"] + w["actor.b1"], 0)
        hidden = np.maximum(hidden @ w["actor.w2"] + w["actor.b2"], 0)
        out = hidden @ w["actor.w3"] + w["actor.b3"]
        mean, log_std = out[:, : self._actions], out[:, self._actions :]
        std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))
        action = np.tanh(mean * self._gain + self._bias + std * given.noise)
        return action, np.concatenate([states.view(np.float32), action], axis=1)

    def encode(self, given: PolicyInput) -> tuple[Float32Array, Float32Array, NDArray[np.complex64]]:
        """Return visible part (E, V), features (E, D) and encoder states (E, N) for the given observation."""
        w, split = self._w, 2 * self._states
        keep = ~given.reset[:, None]
        clip = OBSERVATION_CLIP
        visible = np.clip((given.observation - w["norm.mean"]) * w["norm.factor"], -clip, clip)
        if "enc.proj_w" in w:
            visible = visible @ w["enc.proj_w"] + w["enc.proj_b"]
        reward = np.clip(given.reward[:, None] * w["norm.reward_factor"], -clip, clip)
        inputs = np.concatenate(
            [visible, np.where(keep, given.state[:, split:], 0), np.where(keep, reward, 0)], axis=1, dtype=np.float32
        )
        previous = np.ascontiguousarray(given.state[:, :split]).view(np.complex64)
        drive = np.ascontiguousarray(inputs @ self._input_w).view(np.complex64)
        states = np.where(keep, self._decay * previous, 0).astype(np.complex64) + drive
        real = states.view(np.float32)
        output = np.tanh(real @ w["enc.output_w"] + inputs @ w["enc.skip_w"] + w["enc.output_b"])
        gate = 1 / (1 + np.exp(-(real @ w["enc.gate_w"] + w["enc.gate_b"])))
        return visible, output * gate, states
