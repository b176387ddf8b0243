"""Acting with a world model beside the actor, which can adapt to the last transitions at every step. No torch.

Letters in this file: E environments (always `BLOCK_SIZE`), O observation, A action, S policy state, X inputs of a
dynamics head (features, visible part, action), Y its outputs (O + 1), C context, H hidden units, W transitions kept,
N candidates, M member's own policy state.

A member that comes with a world model looks one step ahead: of the actor's action and that action moved along each axis
it takes the one with the best predicted reward plus the critics' value of the predicted successor. The dynamics head is
either adapted beforehand or, online, at each step and in each environment from the last W transitions: the inner loop
of `agents.learning.inner_loop` written in NumPy. Until W / 2 transitions are known, the head stays as it was trained.

State of an environment: the member's own (M), then, online: how many transitions it has seen, 1 where the row before
belongs to the same episode, that row's observation (O) and head inputs (X), and W rows of (X + Y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from agents.acting_kernel import Float32Array
from agents.dynamics_heads import Heads, Lookahead, adapt_heads
from agents.rollout_policy import MemberPolicy, SeatedPolicy
from swarm.errors import ConfigError
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE, Policy, PolicyInput

CLIP: Final = 10.0
NORM_EPSILON: Final = 1e-5
HEAD: Final = ("c0", "w1", "b1", "w2", "b2")
CRITIC: Final = ("w1", "b1", "w2", "b2", "w3", "b3")
REQUIRED: Final = (
    *(f"world.{name}" for name in (*HEAD, "mean", "factor")),
    *(f"critic.{name}" for name in CRITIC),
)


def build_policy(weights: Arrays, options: Mapping[str, Json]) -> SeatedPolicy:
    """Build the policy of a block.

    Args:
        weights: as for `agents.rollout_policy.build_policy`, ``<member>/<array>``; members with ``world.*`` and
            ``critic.*`` look ahead, the others act by their actors alone.
        options: ``seats``: member name per environment; ``lookahead``: the fields of `Lookahead`.

    Raises:
        ConfigError: unknown options, a seat without weights, missing or misshapen arrays.
    """
    unknown = sorted(set(options) - {"seats", "lookahead"})
    if unknown:
        raise ConfigError(f"unknown policy option {unknown[0]!r}; known options: lookahead, seats")
    how = _read_lookahead(cast(Mapping[str, Json], options.get("lookahead") or {}))
    seats = tuple(cast(Sequence[str], options.get("seats") or ()))
    if len(seats) != BLOCK_SIZE:
        raise ConfigError(f"got {len(seats)} seats, expected {BLOCK_SIZE}: one name per environment of the block")
    actors: dict[str, Policy] = {}
    for name in sorted(set(seats)):
        own = {
            key.removeprefix(f"{name}/"): np.asarray(value, np.float32)
            for key, value in weights.items()
            if key.startswith(f"{name}/")
        }
        if not own:
            raise ConfigError(f"no weights for seated member {name!r}")
        member = MemberPolicy(own)
        actors[name] = LookaheadPolicy(member, own, how) if "world.w1" in own else member
    size = max(actor.state_size for actor in actors.values())
    return SeatedPolicy({name: _Padded(actor, size) for name, actor in actors.items()}, seats, random=False)


def _read_lookahead(values: Mapping[str, Json]) -> Lookahead:
    known = {f.name: f for f in fields(Lookahead)}
    for name, value in values.items():
        if name not in known or isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(
                f"policy option lookahead.{name} is {value!r}; expected a number for one of: {', '.join(known)}"
            )
    try:
        how = Lookahead(**values)  # type: ignore[arg-type]  # names and types checked above
    except TypeError as error:
        raise ConfigError(f"policy option lookahead: {error}") from None
    if not 0 <= how.window <= 1_000 or not 0 <= how.steps <= 100:
        raise ConfigError(
            f"policy option lookahead: got window {how.window} and steps {how.steps}, at most 1000 and 100"
        )
    return how


class _Padded:
    """A policy whose state has as many numbers as the widest of its block."""

    def __init__(self, actor: Policy, size: int) -> None:
        self._actor = actor
        self.state_size = size

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions (E, A) and the padded next state (E, S)."""
        own = self._actor.state_size
        if own == self.state_size:
            return self._actor.act(given)
        narrow = PolicyInput(
            reset=given.reset,
            observation=given.observation,
            reward=given.reward,
            state=given.state[:, :own],
            noise=given.noise,
            started=given.started,
        )
        action, state = self._actor.act(narrow)
        return action, np.concatenate([state, np.zeros((len(state), self.state_size - own), np.float32)], axis=1)


class LookaheadPolicy:
    """One member with its critics and its dynamics head; see the top of the file."""

    def __init__(self, member: MemberPolicy, weights: Mapping[str, Float32Array], how: Lookahead) -> None:
        missing = [name for name in REQUIRED if name not in weights]
        if missing:
            raise ConfigError(
                f"weights of a member that looks ahead lack {missing[0]!r}; expected {', '.join(REQUIRED)}"
            )
        self._member, self._how = member, how
        self._critic = {name: weights[f"critic.{name}"] for name in CRITIC}
        self._mean, self._factor = weights["world.mean"], weights["world.factor"]
        self._mask = (self._factor > 0).astype(np.float32)
        context = weights["world.c0"].reshape(1, 1, -1)
        self._actions = weights["actor.b3"].shape[0] // 2
        self._inputs = weights["world.w1"].shape[0] - context.shape[-1]
        self._outputs = weights["world.b2"].shape[0]
        if self._outputs != len(weights["norm.mean"]) + 1 or len(self._factor) != self._outputs:
            raise ConfigError(
                f"the world model predicts {self._outputs} numbers, expected those of an observation and 1"
            )
        self._heads = Heads(
            w1=weights["world.w1"][: self._inputs],
            wc=weights["world.w1"][self._inputs :],
            b1=weights["world.b1"],
            w2=weights["world.w2"],
            b2=weights["world.b2"],
            c=context,
        )
        axes = np.float32(how.reach) * np.eye(self._actions, dtype=np.float32)
        self._moves = np.concatenate([np.zeros((1, self._actions), np.float32), axes, -axes])
        memory = 2 + self._outputs - 1 + self._inputs + how.window * (self._inputs + self._outputs)
        self.state_size = member.state_size + (memory if how.window else 0)

    def act(self, given: PolicyInput) -> tuple[Float32Array, Float32Array]:
        """Return actions (E, A) in [−1, 1] and the next state (E, S)."""
        own = self._member.state_size
        inner = PolicyInput(
            reset=given.reset,
            observation=given.observation,
            reward=given.reward,
            state=np.ascontiguousarray(given.state[:, :own]),
            noise=given.noise,
        )
        visible, features, _ = self._member.encode(inner)
        proposed, state = self._member.act(inner)
        seen = np.concatenate([features, visible], axis=1)
        memory = self._remember(given) if self._how.window else None
        heads = self._heads if memory is None else self._adapted(memory)
        candidates = np.clip(proposed[:, None] + self._moves, -1, 1)
        scores = self._score(heads, given.observation, seen, state[:, : -self._actions], candidates)
        best = np.argmax(scores, axis=1)
        action = candidates[np.arange(len(best)), best]
        state = np.concatenate([state[:, : -self._actions], action], axis=1)
        if memory is not None:
            known = np.concatenate([seen, action], axis=1)
            ones = np.ones((len(action), 1), np.float32)
            state = np.concatenate(
                [state, memory.count[:, None], ones, given.observation, known, memory.flat()], axis=1
            )
        return action, state.astype(np.float32)

    def _score(
        self,
        heads: Heads,
        observation: Float32Array,
        seen: Float32Array,
        memory: Float32Array,
        actions_ENA: Float32Array,
    ) -> NDArray[np.float32]:
        """Return predicted reward plus value of the predicted successor (E, N), in the critics' unit."""
        number = actions_ENA.shape[1]

        def each(rows: Float32Array) -> Float32Array:
            return np.repeat(rows, number, axis=0)

        flat = actions_ENA.reshape(-1, self._actions)
        known = np.concatenate([each(seen), flat], axis=1).reshape(len(seen), number, -1)
        predicted = np.clip(heads.predict(known), -CLIP, CLIP).reshape(-1, self._outputs)
        raw = np.where(self._mask > 0, predicted / np.where(self._mask > 0, self._factor, 1) + self._mean, 0)
        raw = raw.astype(np.float32)
        following = PolicyInput(
            reset=np.zeros(len(flat), np.bool_),
            observation=each(observation) + raw[:, :-1],
            reward=raw[:, -1],
            state=np.concatenate([each(memory), flat], axis=1),
            noise=np.zeros_like(flat),
        )
        visible, features, _ = self._member.encode(following)
        action = self._member.choose(visible, features, following.noise)
        value = self._value(np.concatenate([visible, features, action], axis=1))
        scores = np.float32(self._how.reward_scale) * raw[:, -1] + np.float32(self._how.discount) * value
        return np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32).reshape(-1, number)

    def _value(self, inputs: Float32Array) -> Float32Array:
        """Return the smaller of the two critics' values."""
        w = self._critic
        hidden = _normalized_relu(inputs @ w["w1"] + w["b1"][:, None])
        hidden = _normalized_relu(hidden @ w["w2"] + w["b2"][:, None])
        values: Float32Array = (hidden @ w["w3"] + w["b3"][:, None])[..., 0].min(axis=0)
        return values

    def _remember(self, given: PolicyInput) -> _Memory:
        """Return the transitions known before this step's action, the newest one entered."""
        how, own, num_obs = self._how, self._member.state_size, self._outputs - 1
        state = np.where(given.reset[:, None], 0, given.state[:, own:]).astype(np.float32)
        started = given.reset if given.started is None else given.started
        count, follows = state[:, 0].copy(), (state[:, 1] > 0) & ~started
        before, known = state[:, 2 : 2 + num_obs], state[:, 2 + num_obs : 2 + num_obs + self._inputs]
        raw = np.concatenate([given.observation - before, given.reward[:, None]], axis=1)
        target = np.clip((raw - self._mean) * self._factor, -CLIP, CLIP)
        kept = state[:, 2 + num_obs + self._inputs :].reshape(len(state), how.window, -1).copy()
        rows = np.flatnonzero(follows)
        kept[rows, count[rows].astype(np.int64) % how.window] = np.concatenate([known, target], axis=1)[rows]
        count[rows] += 1
        # Kept within exact float32 integers, with the place of the next row unchanged.
        count = np.where(count >= 4 * how.window, count - 2 * how.window, count)
        return _Memory(count=count.astype(np.float32), kept=kept, split=self._inputs)

    def _adapted(self, memory: _Memory) -> Heads:
        window = self._how.window
        enough = memory.count >= window // 2
        counts = (np.arange(window) < memory.count[:, None]) & enough[:, None]
        known, target = memory.kept[..., : memory.split], memory.kept[..., memory.split :]
        return adapt_heads(self._heads, known, target, counts.astype(np.float32), self._mask, self._how)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Memory:
    """Transitions of each environment: ``count`` (E,) seen, ``kept`` (E, W, X + Y), inputs before ``split``."""

    count: Float32Array
    kept: Float32Array
    split: int

    def flat(self) -> Float32Array:
        """The rows side by side, (E, W (X + Y))."""
        return self.kept.reshape(len(self.kept), -1)


def _normalized_relu(x: Float32Array) -> Float32Array:
    """Return ReLU(LayerNorm(x)) over the last axis, as the critics do."""
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled: Float32Array = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + NORM_EPSILON)
    return np.maximum(scaled, 0)
