"""A trained policy outside the swarm: `load_policy` reads what `agents.export` wrote. Imports no torch.

::

    policy = load_policy("policy.safetensors")
    state = policy.initial_state(num_envs)
    action, state = policy.step(observation, state, reward=reward, reset=reset)

Letters: E environments (any number), O observation, A action, S policy state.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from agents.rollout_policy import build_policy
from swarm.errors import CheckpointError, ConfigError
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE, PolicyInput

if TYPE_CHECKING:
    from agents.torch_policy import TorchPolicy

Float32Array = NDArray[np.float32]
ScalarT = TypeVar("ScalarT", np.float32, np.bool_)
FORMAT: Final = "ssm-swarm policy"
FORMAT_VERSION: Final = 1
SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyCard:
    """What must be known of a policy to use it; `content` is the whole card as it was written.

    Attributes:
        env_id: the Gymnasium id that it was trained on.
        suite: tasks that it was trained on, which reward otherwise than the id does; empty: none.
        observation_size: O.
        action_low: lower limit of each action, (A,).
        action_high: upper limit of each action, (A,).
        state_size: S.
        encoder: kind of its encoder.
        sha256: of the weights file.
    """

    env_id: str
    suite: str
    observation_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    state_size: int
    encoder: str
    sha256: str
    content: Mapping[str, Any]

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.action_low)

    @classmethod
    def from_json(cls, content: Mapping[str, Json]) -> PolicyCard:
        """Validate a card.

        Raises:
            CheckpointError: a key is missing or its value is none that `agents.export` writes.
        """
        if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
            found = f"{content.get('format')!r}, version {content.get('format_version')!r}"
            raise CheckpointError(f"format is {found}; expected {FORMAT!r}, version {FORMAT_VERSION}")
        environment, policy, weights = (_table(content, key) for key in ("environment", "policy", "weights"))
        card = cls(
            env_id=_text(environment, "id"),
            suite=_text(environment, "suite") if environment.get("suite") else "",
            observation_size=_count(environment, "observation_size"),
            action_low=_limits(environment, "action_low"),
            action_high=_limits(environment, "action_high"),
            state_size=_count(policy, "state_size"),
            encoder=_text(policy, "encoder"),
            sha256=_text(weights, "sha256"),
            content=content,
        )
        if len(card.action_low) != len(card.action_high) or not all(
            low < high for low, high in zip(card.action_low, card.action_high, strict=True)
        ):
            raise CheckpointError("environment.action_low and action_high are no limits of the same actions")
        return card


class ExportedPolicy:
    """A deterministic policy: the same arithmetic that acted in the run, with actions in the environment's own range.

    Attributes:
        card: what is known of it.
        weights: its arrays by name, read-only for all but this object.
    """

    def __init__(self, weights: Arrays, card: PolicyCard) -> None:
        """Build from acting weights. Raises ``ConfigError`` where weights and card are not of one policy."""
        self.card = card
        self.weights = weights
        self._policy = build_policy(weights, {})
        mean, bias = weights["norm.mean"], weights["actor.b3"]
        for what, said, found in (
            ("observation_size", card.observation_size, len(mean)),
            ("number of actions", card.action_size, len(bias) // 2),
            ("state_size", card.state_size, self._policy.state_size),
        ):
            if said != found:
                raise ConfigError(f"the card says {what} {said}, the weights have {found}: a card of another policy?")
        self._low = np.array(card.action_low, np.float64)
        self._high = np.array(card.action_high, np.float64)
        self._is_unit = bool((self._low == -1.0).all() and (self._high == 1.0).all())

    def initial_state(self, num_envs: int = 1) -> Float32Array:
        """Return the state (E, S) before the first observation of an episode."""
        if num_envs < 1:
            raise ConfigError(f"got {num_envs} environments, expected at least one")
        return np.zeros((num_envs, self.card.state_size), np.float32)

    def step(
        self, observation: ArrayLike, state: Float32Array, *, reward: ArrayLike, reset: ArrayLike = False
    ) -> tuple[Float32Array, Float32Array]:
        """Return actions (E, A) within the environment's limits and the next state (E, S).

        Args:
            observation: (E, O), raw; or (O,) where there is one environment, whose action is then (A,).
            state: what `initial_state` or the previous step returned.
            reward: (E,) or a number: what the previous action was rewarded with; 0 at the first step.
            reset: (E,) or one bool: where an episode starts with this observation, state and reward do not count.

        Raises:
            ConfigError: what is no numbers (``reset``: no bools), does not fit this policy in its shape, or is not
                finite where it counts.
        """
        seen, memory = _numbers("observations", observation), _numbers("a state", state)
        rows = np.atleast_2d(seen)
        self._check(rows, memory)
        num_envs = len(rows)
        starts = _for_each("reset", _bools("reset", reset), num_envs)
        paid = _for_each("rewards", _numbers("rewards", reward), num_envs)
        if not all(np.isfinite(values).all() for values in (rows, paid[~starts], memory[~starts])):
            raise ConfigError(
                "got an observation, reward or state that is not finite; reset that environment, and say so in reset"
            )
        padded = -(-num_envs // BLOCK_SIZE) * BLOCK_SIZE
        given = PolicyInput(
            reset=_padded(starts, padded),
            observation=_padded(rows, padded),
            reward=_padded(paid, padded),
            state=_padded(memory, padded),
            noise=np.zeros((padded, self.card.action_size), np.float32),
        )
        action, following = self._policy.act(given)
        scaled = self._scaled(action[:num_envs])
        return (scaled[0] if seen.ndim == 1 else scaled), following[:num_envs]

    def as_torch(self) -> TorchPolicy:
        """Return the same step as a ``torch.nn.Module``. Raises ``ConfigError`` for an encoder that has none."""
        from agents.torch_policy import TorchPolicy

        return TorchPolicy(self)

    def export_onnx(self, path: str | Path) -> float:
        """Write the step as an ONNX model; see `agents.torch_policy.export_onnx`."""
        from agents.torch_policy import export_onnx

        return export_onnx(self, Path(path))

    def export_pt2(self, path: str | Path) -> float:
        """Write the step as a ``torch.export`` program; see `agents.torch_policy.export_pt2`."""
        from agents.torch_policy import export_pt2

        return export_pt2(self, Path(path))

    def _scaled(self, action: Float32Array) -> Float32Array:
        """Map [−1, 1] to the environment's limits as the bridge does; where they are the same, not a bit changes."""
        if self._is_unit:
            return action
        scaled = self._low + (action.astype(np.float64) + 1.0) * 0.5 * (self._high - self._low)
        return scaled.astype(np.float32)

    def _check(self, rows: Float32Array, state: Float32Array) -> None:
        card = self.card
        if rows.ndim != 2 or rows.shape[1] != card.observation_size:
            raise ConfigError(
                f"got observations of shape {rows.shape}, expected (E, {card.observation_size}): this policy was "
                f"trained on {card.env_id}"
            )
        expected = (len(rows), card.state_size)
        if state.shape != expected:
            raise ConfigError(
                f"got a state of shape {state.shape} for {len(rows)} observations, expected {expected}: "
                f"start with initial_state({len(rows)}) and pass on what step returned"
            )


def load_policy(path: str | Path) -> ExportedPolicy:
    """Return the policy that ``swarm export`` wrote to ``path`` and to the card of the same name beside it.

    Raises:
        CheckpointError: a file is missing or damaged, or weights and card do not belong together.
    """
    weights_path = Path(path)
    if weights_path.suffix != SUFFIX:
        raise CheckpointError(f"{weights_path} is no {SUFFIX} file; the other formats are for other programs")
    data = _read(weights_path)
    card_path = weights_path.with_suffix(".json")
    try:
        content = json.loads(_read(card_path))
        card = PolicyCard.from_json(content if isinstance(content, dict) else {})
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{card_path} is damaged: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{card_path} is not the card of a policy: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != card.sha256:
        raise CheckpointError(
            f"{weights_path} has sha256 {found[:12]}…, its card {card_path.name} says {card.sha256[:12]}…: "
            "damaged, or the card of another file; export it again"
        )
    try:
        return ExportedPolicy(load(data), card)
    except (SafetensorError, ConfigError) as error:
        raise CheckpointError(f"{weights_path} cannot be used: {error}") from error


def _numbers(what: str, given: ArrayLike) -> Float32Array:
    """Return an array of real numbers; what float32 cannot hold becomes infinite."""
    try:
        found = np.asarray(given)
        if found.dtype.kind in "fiubO":
            with np.errstate(over="ignore"):
                return found.astype(np.float64).astype(np.float32)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"got {what} that cannot be taken for numbers: {error}") from error
    raise ConfigError(f"got {what} of type {found.dtype}, expected numbers")


def _bools(what: str, given: ArrayLike) -> NDArray[np.bool_]:
    try:
        found = np.asarray(given)
    except ValueError as error:
        raise ConfigError(f"got {what} that cannot be taken for an array: {error}") from error
    if found.dtype.kind not in "biu":
        raise ConfigError(f"got {what} of type {found.dtype}, expected bool")
    return found.astype(np.bool_)


def _for_each(what: str, values: NDArray[ScalarT], num_envs: int) -> NDArray[ScalarT]:
    if values.shape not in ((), (num_envs,)):
        raise ConfigError(f"got {what} of shape {values.shape}, expected ({num_envs},), or one value for all")
    return np.broadcast_to(values, num_envs)


def _padded(values: NDArray[ScalarT], length: int) -> NDArray[ScalarT]:
    result = np.zeros((length, *values.shape[1:]), values.dtype)
    result[: len(values)] = values
    return result


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; write it with: swarm export") from error


def _table(content: Mapping[str, Json], key: str) -> Mapping[str, Json]:
    found = content.get(key)
    if not isinstance(found, dict):
        raise CheckpointError(f"{key} is {found!r}, expected a table")
    return cast(Mapping[str, Json], found)


def _text(table: Mapping[str, Json], key: str) -> str:
    found = table.get(key)
    if not isinstance(found, str):
        raise CheckpointError(f"{key} is {found!r}, expected a text")
    return found


def _count(table: Mapping[str, Json], key: str) -> int:
    found = table.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(f"{key} is {found!r}, expected a number from 1")
    return found


def _limits(table: Mapping[str, Json], key: str) -> tuple[float, ...]:
    found = table.get(key)
    if not isinstance(found, list) or not found:
        raise CheckpointError(f"{key} is {found!r}, expected a list of numbers")
    numbers = tuple(float(item) for item in found if isinstance(item, int | float) and not isinstance(item, bool))
    if len(numbers) != len(found) or not all(math.isfinite(number) for number in numbers):
        raise CheckpointError(f"{key} holds something that is no finite number")
    return numbers
