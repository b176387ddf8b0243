"""Acting as a `swarm.policy.Policy`: encoder and actor of one or more members in NumPy. Imports no torch.

Letters in this file: M members, B blocks, E environments of a block (always `BLOCK_SIZE`), O observation, A action, S
policy state.

State of an environment: that of the encoder, then the previous action. Every distinct member acts on the whole block
and the rows of its seats are taken, so that the shape of each matrix product, and with it the last bit of its result,
does not depend on who sits where. Members of the same sizes act side by side, as one stack of matrices; where they
share an encoder, it makes its step once. Several blocks of a single member act as a stack too: the same small products,
in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from agents.acting_encoders import acting_encoder, expected_rows, required_arrays
from swarm.errors import ConfigError
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE, Policy, PolicyInput

Float32Array = NDArray[np.float32]
OBSERVATION_CLIP = 10.0
LOG_STD_MIN = -10.0
LOG_STD_MAX = 2.0
OPTIONS = frozenset({"seats", "random", "zero_encoder"})
REQUIRED = (
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


def prefixed(weights: Arrays, name: str) -> dict[str, NDArray[np.generic]]:
    """Return ``weights`` with ``name/`` before each key, as `build_policy` takes those of several members."""
    return {f"{name}/{key}": value for key, value in weights.items()}


class SeatedPolicy:
    """Members on the seats of each block; see `swarm.policy.Policy`."""

    takes_blocks = True

    def __init__(self, actors: Mapping[str, Policy], seats: Sequence[str], *, random: bool) -> None:
        sizes = {actor.state_size for actor in actors.values()}
        if len(sizes) > 1:
            raise ConfigError("seated members differ in state size; all members of a block need the same sizes")
        (self.state_size,) = sizes
        self._random = random
        alike: dict[object, list[str]] = {}
        for name, actor in actors.items():
            alike.setdefault(actor.members.shapes if isinstance(actor, MemberPolicy) else name, []).append(name)
        self._groups = [(_side_by_side([actors[n] for n in names]), *_places(names, seats)) for names in alike.values()]
        self._block = len(seats)
        first = self._groups[0][0]
        self._alone = first if len(actors) == 1 and isinstance(first, Members) else None

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions in [−1, 1] and the next state, of one block (E, …) or of several, (B · E, …)."""
        num_blocks = len(given.reset) // self._block
        if num_blocks == 1:
            return self._act_block(given)
        alone = self._alone
        if alone is None:
            answers = [self._act_block(_block(given, slice(i, i + self._block))) for i in self._starts(given)]
            return np.concatenate([a for a, _ in answers]), np.concatenate([s for _, s in answers])
        actions, states = alone.act(_stacked(given, num_blocks))
        action, state = actions.reshape(given.noise.shape), states.reshape(given.state.shape)
        return self._finished(given, action, state)

    def _starts(self, given: PolicyInput) -> range:
        return range(0, len(given.reset), self._block)

    def _act_block(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        action = np.empty_like(given.noise)
        state = np.empty_like(given.state)
        for actor, rows, places in self._groups:
            if isinstance(actor, Members):
                actions, states = actor.act(given)
                action[rows] = actions[places, rows]
                state[rows] = states[places if len(states) > 1 else 0, rows]
            else:
                its_action, its_state = actor.act(given)
                action[rows], state[rows] = its_action[rows], its_state[rows]
        return self._finished(given, action, state)

    def _finished(
        self, given: PolicyInput, action: Float32Array, state: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        if self._random:
            action = _uniform(given.noise)
        state[:, -action.shape[1] :] = action
        return action, state


def _block(given: PolicyInput, rows: slice) -> PolicyInput:
    return _mapped(given, lambda array: array[rows])


def _stacked(given: PolicyInput, num_blocks: int) -> PolicyInput:
    return _mapped(given, lambda array: array.reshape(num_blocks, -1, *array.shape[1:]))


def _mapped(given: PolicyInput, change: Callable[[NDArray[Any]], NDArray[Any]]) -> PolicyInput:
    return PolicyInput(
        reset=change(given.reset),
        observation=change(given.observation),
        reward=change(given.reward),
        state=change(given.state),
        noise=change(given.noise),
        started=None if given.started is None else change(given.started),
    )


def _side_by_side(actors: Sequence[Policy]) -> Policy | Members:
    plain = [actor.members for actor in actors if isinstance(actor, MemberPolicy)]
    return Members.stack(plain) if plain else actors[0]


def _places(names: Sequence[str], seats: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows in which one of ``names`` sits, and for each of these which one."""
    rows = [row for row, seat in enumerate(seats) if seat in names]
    return np.array(rows, np.int64), np.array([names.index(seats[row]) for row in rows], np.int64)


def _uniform(noise: Float32Array) -> Float32Array:
    """Map standard normal numbers to uniform ones on [−1, 1] through their distribution function."""
    erf = np.fromiter((math.erf(z / math.sqrt(2)) for z in noise.ravel().tolist()), np.float32, noise.size)
    return erf.reshape(noise.shape)


class MemberPolicy:
    """Encoder and tanh-Gaussian actor of one member, for any number E of environments."""

    def __init__(self, weights: Mapping[str, Float32Array], *, zero_encoder: bool = False) -> None:
        _check(weights)
        self.members = Members([weights], zero_encoder=zero_encoder)
        self.state_size = self.members.state_size

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions (E, A) in [−1, 1] and the next state (E, S)."""
        actions, states = self.members.act(given)
        state = states[0]
        state[:, -actions.shape[2] :] = actions[0]
        return actions[0], state

    def choose(self, visible: Float32Array, features: Float32Array, noise: Float32Array) -> Float32Array:
        """Return the actions (E, A) in [−1, 1] for encoded observations."""
        chosen: Float32Array = self.members.choose(visible[None], features[None], noise)[0]
        return chosen

    def encode(self, given: PolicyInput) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Return visible part (E, V), features (E, D) and encoder state (E, S − A) for the given observation."""
        visible, features, states = self.members.encode(given)
        return visible[0], features[0], states[0]


class Members:
    """M members of the same sizes, side by side."""

    def __init__(self, weights: Sequence[Mapping[str, Float32Array]], *, zero_encoder: bool = False) -> None:
        self._weights, self._zero_encoder = weights, zero_encoder
        seen = [name for name in weights[0] if name.startswith(("enc.", "norm."))]
        first = weights[0]
        # The team's members share one encoder; independent ones have their own.
        shared = all(np.array_equal(first[name], other[name]) for other in weights[1:] for name in seen)
        of_encoder = {name: np.stack([w[name] for w in (weights[:1] if shared else weights)]) for name in seen}
        self._encoder = acting_encoder(
            {n.removeprefix("enc."): v for n, v in of_encoder.items() if n.startswith("enc.")}
        )
        self._mean, self._factor, self._reward_factor = (
            of_encoder[f"norm.{name}"][:, None] for name in ("mean", "factor", "reward_factor")
        )
        self._projection = (
            (of_encoder["enc.proj_w"], of_encoder["enc.proj_b"][:, None]) if "enc.proj_w" in first else None
        )
        actor = {name: np.stack([w[f"actor.{name}"] for w in weights]) for name in ("w1", "b1", "w2", "b2", "w3", "b3")}
        self._layers = [(actor[f"w{i}"], actor[f"b{i}"][:, None]) for i in (1, 2, 3)]
        self._actions = first["actor.b3"].shape[0] // 2
        ones, zeros = np.ones(self._actions, np.float32), np.zeros(self._actions, np.float32)
        self._gain = np.stack([w.get("adapter.gain", ones) for w in weights])[:, None]
        self._bias = np.stack([w.get("adapter.bias", zeros) for w in weights])[:, None]
        self.state_size = self._encoder.state_size + self._actions

    @classmethod
    def stack(cls, members: Sequence[Members]) -> Members:
        """Return the given members, of the same `shapes`, as one stack."""
        return cls([w for each in members for w in each._weights], zero_encoder=members[0]._zero_encoder)

    @property
    def shapes(self) -> tuple[object, ...]:
        """What members that are stacked must have in common."""
        return (self._zero_encoder, *((name, value.shape) for name, value in sorted(self._weights[0].items())))

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions (M, E, A) in [−1, 1] and the next states (M, E, S), the action's place in these left empty.

        Where members share an encoder, there is one state for all, (1, E, S).
        """
        visible, features, states = self.encode(given)
        action = self.choose(visible, features, given.noise)
        state = np.empty((*states.shape[:2], self.state_size), np.float32)
        state[..., : states.shape[2]] = states
        return action, state

    def choose(self, visible: Float32Array, features: Float32Array, noise: Float32Array) -> Float32Array:
        """Return the actions (M, E, A) for encoded observations (1 or M, E, …)."""
        (w1, b1), (w2, b2), (w3, b3) = self._layers
        if self._zero_encoder:
            features = np.zeros_like(features)
        hidden = np.concatenate([visible, features], axis=2) @ w1
        hidden += b1
        np.maximum(hidden, 0, out=hidden)
        hidden = hidden @ w2
        hidden += b2
        np.maximum(hidden, 0, out=hidden)
        out = hidden @ w3
        out += b3
        std = np.maximum(out[..., self._actions :], LOG_STD_MIN)
        np.minimum(std, LOG_STD_MAX, out=std)
        np.exp(std, out=std)
        std *= noise
        action: Float32Array = out[..., : self._actions] * self._gain
        action += self._bias
        action += std
        return np.tanh(action, out=action)

    def encode(self, given: PolicyInput) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Return visible parts (·, E, V), features (·, E, D) and encoder states (·, E, S − A), · = 1 or M."""
        split = self._encoder.state_size
        keep = ~given.reset[..., None]
        visible = _clip((given.observation - self._mean) * self._factor)
        if self._projection is not None:
            visible = visible @ self._projection[0] + self._projection[1]
        num_visible = visible.shape[2]
        inputs = np.empty((*visible.shape[:2], num_visible + self._actions + 1), np.float32)
        inputs[..., :num_visible] = visible
        inputs[..., num_visible:-1] = np.where(keep, given.state[..., split:], np.float32(0))
        inputs[..., -1:] = np.where(keep, _clip(given.reward[..., None] * self._reward_factor), np.float32(0))
        return visible, *self._encoder.step(inputs, keep, given.state[..., :split])


def _clip(values: Float32Array) -> Float32Array:
    np.maximum(values, -OBSERVATION_CLIP, out=values)
    return np.minimum(values, OBSERVATION_CLIP, out=values)


def _check(w: Mapping[str, Float32Array]) -> None:
    """Raise ``ConfigError`` for arrays that are missing or do not fit one another."""
    encoder = {name.removeprefix("enc."): value for name, value in w.items() if name.startswith("enc.")}
    required = (*(f"enc.{name}" for name in required_arrays(encoder)), *REQUIRED)
    missing = [name for name in required if name not in w]
    if missing:
        raise ConfigError(f"acting weights lack {missing[0]!r}; expected {', '.join(required)}")
    actions = w["actor.b3"].shape[0] // 2
    visible = w["enc.proj_b" if "enc.proj_w" in w else "norm.mean"].shape[0]
    rows = {f"enc.{name}": number for name, number in expected_rows(encoder, visible + actions + 1).items()}
    rows |= {"actor.w1": visible + w["enc.output_b"].shape[0]}
    rows |= {name: actions for name in ("adapter.gain", "adapter.bias") if name in w}
    for name, expected in rows.items():
        found = w[name].shape[0]
        if found != expected:
            raise ConfigError(f"acting weight {name!r} has {found} rows, expected {expected}: arrays of other sizes?")
