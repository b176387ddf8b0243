"""Acting as a `swarm.policy.Policy`: encoder and actor of one or more members, compiled. Imports no torch.

Letters in this file: M members, N encoders, E environments, R rows of seats, O observation, V visible part of it, D
features, A action, S policy state.

State of an environment: that of the encoder, then the previous action. Each member acts on the rows of its seats, in
all blocks at once; what results for a row does not depend on the others (`agents.acting_kernel`). Members of the same
sizes act in one call, and where they share an encoder, that makes its step for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from agents.acting_encoders import acting_encoder, expected_shapes, required_arrays
from agents.acting_kernel import Actor, Float32Array, Indices, Seats, Seen, choose
from agents.learning.tiles import aligned_copy
from swarm.errors import ConfigError
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE, Policy, PolicyInput

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
        self._block = len(seats)
        alike: dict[object, list[str]] = {}
        self._others: list[tuple[Policy, Indices]] = []
        for name, actor in actors.items():
            if isinstance(actor, MemberPolicy):
                alike.setdefault(actor.members.shapes, []).append(name)
            else:
                self._others.append((actor, np.flatnonzero(np.array(seats) == name)))
        self._groups = [
            (Members.stack([cast(MemberPolicy, actors[name]).members for name in names]), _places(names, seats))
            for names in alike.values()
        ]
        self._seats: dict[int, list[Seats]] = {}

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions in [−1, 1] and the next state, of one block (E, …) or of several, (B · E, …).

        Raises:
            ConfigError: what is given has not the sizes that these members know.
        """
        action, state = _room(given.noise), _room(given.state)
        for (members, _), seats in zip(self._groups, self._in_blocks(len(given.reset)), strict=True):
            members.act(given, seats, action, state)
        for actor, rows in self._others:
            for first in range(0, len(given.reset), self._block):
                block = slice(first, first + self._block)
                its_action, its_state = actor.act(given.rows(block))
                action[block][rows], state[block][rows] = its_action[rows], its_state[rows]
        if self._random:
            action = _uniform(given.noise)
        state[:, -action.shape[1] :] = action
        return action, state

    def _in_blocks(self, num_rows: int) -> list[Seats]:
        """Return the seats of each group, in as many blocks as have ``num_rows`` rows."""
        if num_rows not in self._seats:
            if not num_rows or num_rows % self._block:
                raise ConfigError(f"got {num_rows} environments, expected blocks of {self._block}")
            starts = range(0, num_rows, self._block)
            self._seats[num_rows] = [
                _seats([np.concatenate([rows + start for start in starts]) for rows in places])
                for _, places in self._groups
            ]
        return self._seats[num_rows]


def _places(names: Sequence[str], seats: Sequence[str]) -> list[Indices]:
    """Return the seats of each of ``names``."""
    return [np.flatnonzero(np.array(seats) == name) for name in names]


def _seats(rows: Sequence[Indices]) -> Seats:
    """Return the rows of each member as the kernels take them."""
    return Seats(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


@lru_cache(maxsize=16)
def _all_rows(number: int) -> Seats:
    return _seats([np.arange(number)])


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
        action, state = _room(given.noise), _room(given.state)
        self.members.act(given, _all_rows(len(action)), action, state)
        state[:, -action.shape[1] :] = action
        return action, state

    def choose(self, visible: Float32Array, features: Float32Array, noise: Float32Array) -> Float32Array:
        """Return the actions (E, A) in [−1, 1] for encoded observations."""
        action = _room(noise)
        self.members.choose(np.concatenate([visible, features], axis=1), noise, _all_rows(len(noise)), action)
        return action

    def encode(self, given: PolicyInput) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Return visible part (E, V), features (E, D) and encoder state (E, S − A) for the given observation."""
        state = _room(given.state)
        seen = self.members.encode(given, _all_rows(len(state)), state)
        num_visible = self.members.num_visible
        return seen[:, :num_visible], seen[:, num_visible:], state[:, : -given.noise.shape[1]]


class Members:
    """M members of the same sizes, side by side."""

    def __init__(self, weights: Sequence[Mapping[str, Float32Array]], *, zero_encoder: bool = False) -> None:
        self._weights, self._zero_encoder = weights, zero_encoder
        first = weights[0]
        seen = [name for name in first if name.startswith(("enc.", "norm."))]
        # The team's members share one encoder; independent ones have their own.
        shared = all(np.array_equal(first[name], other[name]) for other in weights[1:] for name in seen)
        of_encoder = {name: np.stack([w[name] for w in (weights[:1] if shared else weights)]) for name in seen}
        self._encoder = acting_encoder(_under("enc.", of_encoder), _under("norm.", of_encoder))
        self.num_visible, num_features = self._encoder.widths
        self._width = self.num_visible + num_features
        self._actor = _stacked_actor(weights, self.num_visible if zero_encoder else self._width)
        num_actions = self._actor.gain.shape[1]
        self.state_size = self._encoder.state_size + num_actions
        self._sizes = ((first["norm.mean"].size,), (self.state_size,), (num_actions,))
        self._load()

    def _load(self) -> None:
        """Have the kernels compiled, or read from the cache, before anybody waits for an action."""
        (num_observed,), (num_state,), (num_actions,) = self._sizes
        nobody = PolicyInput(
            reset=np.zeros(0, np.bool_),
            observation=np.zeros((0, num_observed), np.float32),
            reward=np.zeros(0, np.float32),
            state=np.zeros((0, num_state), np.float32),
            noise=np.zeros((0, num_actions), np.float32),
        )
        seats = _seats([np.zeros(0, np.int64)] * len(self._weights))
        seen = self.encode(nobody, seats, nobody.state)
        self.choose(seen, nobody.noise, seats, nobody.noise)

    @classmethod
    def stack(cls, members: Sequence[Members]) -> Members:
        """Return the given members, of the same `shapes`, as one stack."""
        if len(members) == 1:
            return members[0]
        return cls([w for each in members for w in each._weights], zero_encoder=members[0]._zero_encoder)

    @property
    def shapes(self) -> tuple[object, ...]:
        """What members that are stacked must have in common."""
        return (self._zero_encoder, *((name, value.shape) for name, value in sorted(self._weights[0].items())))

    def act(self, given: PolicyInput, seats: Seats, action: Float32Array, state: Float32Array) -> None:
        """Write actions and next states to the seats' rows of ``action`` (E, A) and ``state`` (E, S).

        The action's place in ``state`` is left.
        """
        self.choose(self.encode(given, seats, state), given.noise, seats, action)

    def choose(self, seen: Float32Array, noise: Float32Array, seats: Seats, action: Float32Array) -> None:
        """Write the actions for encoded observations (R, V + D) to the seats' rows of ``action`` (E, A).

        Args:
            noise: (E, A).
        """
        assert seen.shape == (len(seats.rows), self._width), "the kernel trusts these shapes"
        choose(self._actor, seen, _plain(noise), seats, action)

    def encode(self, given: PolicyInput, seats: Seats, state: Float32Array) -> Float32Array:
        """Return visible parts and features (R, V + D); write encoder states to the seats' rows of ``state`` (E, S).

        Raises:
            ConfigError: what is given has not the sizes that these members know.
        """
        found, rows = (given.observation.shape, given.state.shape, given.noise.shape), given.reset.shape
        if found != tuple(rows + size for size in self._sizes) or given.reward.shape != rows:
            raise ConfigError(
                f"got observations, policy states and noise of shapes {', '.join(map(str, found))}, expected "
                f"{', '.join(map(str, self._sizes))} for each of {rows[0]}: weights of another environment?"
            )
        encoder = self._encoder
        seen = Seen(_plain(given.reset, np.bool_), _plain(given.observation), _plain(given.reward), _plain(given.state))
        out = np.empty((len(seats.rows), self._width), np.float32)
        encoder.step(encoder.matrices, encoder.scaling, seen, seats, out, state)
        return out


def _room(like: NDArray[Any]) -> Float32Array:
    return np.empty_like(like, np.float32, order="C")


def _plain(array: NDArray[Any], dtype: type[np.generic] = np.float32) -> NDArray[Any]:
    """Return the array, or a copy where it is none that the kernels were compiled for."""
    return array if array.dtype == dtype and array.flags.carray else np.array(array, dtype)


def _under(prefix: str, arrays: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _stacked_actor(weights: Sequence[Mapping[str, Float32Array]], num_inputs: int) -> Actor:
    """Return the members' actors, of which only the first inputs count."""
    arrays = {name: np.stack([w[f"actor.{name}"] for w in weights]) for name in Actor._fields[:6]}
    arrays["w1"][:, num_inputs:] = 0
    num_actions = arrays["b3"].shape[1] // 2
    for name, default in (("gain", np.ones), ("bias", np.zeros)):
        arrays[name] = np.stack([w.get(f"adapter.{name}", default(num_actions, np.float32)) for w in weights])
    return Actor(**{name: aligned_copy(value) for name, value in arrays.items()})


def _check(w: Mapping[str, Float32Array]) -> None:
    """Raise ``ConfigError`` for arrays that are missing or do not fit one another: the kernels trust their shapes."""
    encoder = _under("enc.", w)
    projection = ("enc.proj_w", "enc.proj_b") if "enc.proj_w" in w else ()
    required = (*(f"enc.{name}" for name in required_arrays(encoder)), *projection, *REQUIRED)
    missing = [name for name in required if name not in w]
    if missing:
        raise ConfigError(f"acting weights lack {missing[0]!r}; expected {', '.join(required)}")
    observed, (first, second), actions = (
        w["norm.mean"].size,
        (w["actor.b1"].size, w["actor.b2"].size),
        w["actor.b3"].size // 2,
    )
    visible = w["enc.proj_b"].size if projection else observed
    shapes = {f"enc.{name}": shape for name, shape in expected_shapes(encoder, visible + actions + 1).items()}
    shapes |= {"enc.proj_w": (observed, visible), "enc.proj_b": (visible,)} if projection else {}
    shapes |= {"norm.mean": (observed,), "norm.factor": (observed,), "norm.reward_factor": (1,)}
    shapes |= {"actor.w1": (visible + w["enc.output_b"].size, first), "actor.b1": (first,)}
    shapes |= {"actor.w2": (first, second), "actor.b2": (second,)}
    shapes |= {"actor.w3": (second, 2 * actions), "actor.b3": (2 * actions,)}
    shapes |= {name: (actions,) for name in ("adapter.gain", "adapter.bias") if name in w}
    for name, expected in shapes.items():
        if w[name].shape != expected or not w[name].size:
            raise ConfigError(
                f"acting weight {name!r} has shape {w[name].shape}, expected {expected}: arrays of other sizes?"
            )
