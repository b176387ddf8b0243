"""The step of an exported policy in PyTorch, and from there as a ``torch.export`` program or an ONNX model.

All three take (observation, reward, reset, state) and give (action, next state); real numbers only, any batch size.

Letters: E environments, O observation, A action, S policy state (the encoder's, then the previous action).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.acting_kernel import OBSERVATION_CLIP
from agents.exported import ExportedPolicy
from agents.learning.encoder import step as encoder_step
from agents.learning.encoder import visible_part
from swarm.checkpoint import write_durably
from swarm.errors import ConfigError

INPUTS: Final = ("observation", "reward", "reset", "state")
OUTPUTS: Final = ("action", "next_state")
EXPORT_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
CHECK_STEPS: Final = 50
CHECK_BATCH: Final = 5
TOLERANCE: Final = 1e-5
Float32Array = NDArray[np.float32]
Step = Callable[[Float32Array, Float32Array, NDArray[np.bool_], Float32Array], tuple[Float32Array, Float32Array]]


class TorchPolicy(torch.nn.Module):
    """``forward`` is the step of an `ExportedPolicy`, equal to it within rounding; weights are buffers.

    The encoder is `agents.learning.encoder.step`.
    """

    def __init__(self, policy: ExportedPolicy) -> None:
        """Take over the weights."""
        super().__init__()
        card = policy.card
        for name, value in policy.weights.items():
            self.register_buffer(name.replace(".", "_"), torch.tensor(np.asarray(value, np.float32)))
        self.register_buffer("low", torch.tensor(card.action_low))
        self.register_buffer("half_range", 0.5 * (torch.tensor(card.action_high) - self.low))
        self._actions = card.action_size
        self._split = card.state_size - card.action_size
        self._encoder = [name.removeprefix("enc.") for name in policy.weights if name.startswith("enc.")]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - nn.Module keeps buffers and submodules in one table
        """Return a buffer."""
        return super().__getattr__(name)

    def forward(self, observation: Tensor, reward: Tensor, reset: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (E, A) within the environment's limits and the next state (E, S).

        Args:
            observation: (E, O) float32, raw.
            reward: (E,) float32, of the previous action.
            reset: (E,) bool, true where an episode starts with this observation.
            state: (E, S) float32, zeros at first.
        """
        keep = torch.logical_not(reset)[:, None]
        visible, features, states = self._encode(observation, reward, keep, state)
        hidden = torch.relu(torch.cat([visible, features], dim=1) @ self.actor_w1 + self.actor_b1)
        hidden = torch.relu(hidden @ self.actor_w2 + self.actor_b2)
        mean = (hidden @ self.actor_w3 + self.actor_b3)[:, : self._actions]
        action = torch.tanh(mean * self.adapter_gain + self.adapter_bias)
        return self.low + (action + 1) * self.half_range, torch.cat([states, action], dim=1)

    def _encode(
        self, observation: Tensor, reward: Tensor, keep: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return visible part (E, V), features (E, D) and the encoder's state (E, S − A)."""
        clip, split = OBSERVATION_CLIP, self._split
        w = {name: getattr(self, f"enc_{name}") for name in self._encoder}
        visible = visible_part(w, torch.clamp((observation - self.norm_mean) * self.norm_factor, -clip, clip))
        known = torch.where(keep, state, torch.zeros_like(state))
        paid = torch.clamp(reward[:, None] * self.norm_reward_factor, -clip, clip)
        inputs = torch.cat([visible, known[:, split:], torch.where(keep, paid, torch.zeros_like(paid))], dim=1)
        return visible, *encoder_step(w, inputs, keep[:, 0], known[:, :split])


def export_pt2(policy: ExportedPolicy, path: Path) -> float:
    """Write a ``torch.export`` program with a dynamic batch; return its largest difference from the policy.

    Raises:
        ConfigError: the written program is not equal to the policy.
        OSError: ``path`` cannot be written.
    """
    program = torch.export.export(policy.as_torch().eval(), _example(policy), dynamic_shapes=_dynamic_shapes())
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    difference = _checked(policy, torch_step(torch.export.load(buffer).module()), path)
    write_durably(path, buffer.getvalue())
    return difference


def export_onnx(policy: ExportedPolicy, path: Path) -> float:
    """Write an ONNX model with a dynamic batch; return its largest difference from the policy.

    Raises:
        ConfigError: a package of the extra ``export`` is missing, or the written model is not equal to the policy.
        OSError: ``path`` cannot be written.
    """
    require_export_packages()
    import onnxruntime

    module = policy.as_torch().eval()
    with _quietly():
        program = torch.onnx.export(
            module,
            _example(policy),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=_dynamic_shapes(),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ConfigError("torch.onnx.export gave no program; this version of torch is not supported")
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    difference = _checked(policy, onnx_step(session), path)
    write_durably(path, data)
    return difference


def require_export_packages() -> None:
    """Raise ``ConfigError`` naming the first package of the extra ``export`` that cannot be imported."""
    for name in EXPORT_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"writing ONNX needs the package {name!r} ({error}); pip install -e '.[export]'"
            ) from error


def torch_step(module: Callable[..., tuple[Tensor, Tensor]]) -> Step:
    """Return a module's step on arrays."""

    def step(
        observation: Float32Array, reward: Float32Array, reset: NDArray[np.bool_], state: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        with torch.no_grad():
            action, following = module(*(torch.from_numpy(each) for each in (observation, reward, reset, state)))
        return action.numpy(), following.numpy()

    return step


def onnx_step(session: Any) -> Step:  # noqa: ANN401 - onnxruntime has no type information
    """Return the step of an ``onnxruntime.InferenceSession`` on arrays."""

    def step(
        observation: Float32Array, reward: Float32Array, reset: NDArray[np.bool_], state: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        given = dict(zip(INPUTS, (observation, reward, reset, state), strict=True))
        action, following = session.run(list(OUTPUTS), given)
        return action, following

    return step


def largest_difference(policy: ExportedPolicy, step: Step, *, num_steps: int, num_envs: int, seed: int = 0) -> float:
    """Return how far ``step`` gets from the policy over a rollout, each going on from its own states, with resets.

    Observations are drawn as widely as those in training were; a tenth of the rows starts an episode. The difference
    is that of actions and states, actions as a share of half their range.
    """
    rng = np.random.default_rng(seed)
    weights, card = policy.weights, policy.card
    mean, factor = (np.asarray(weights[f"norm.{name}"], np.float64) for name in ("mean", "factor"))
    spread = np.where(factor > 0, 1.5 / np.where(factor > 0, factor, 1.0), 0.0)
    reward_spread = 1.5 / max(float(np.asarray(weights["norm.reward_factor"])[0]), 1e-6)
    half_range = 0.5 * (np.array(card.action_high) - np.array(card.action_low))
    one = other = policy.initial_state(num_envs)
    worst = 0.0
    for _ in range(num_steps):
        drawn = mean + spread * rng.standard_normal((num_envs, card.observation_size))
        observation = drawn.astype(np.float32)
        reward = (reward_spread * rng.standard_normal(num_envs)).astype(np.float32)
        reset = rng.random(num_envs) < 0.1
        action, one = policy.step(observation, one, reward=reward, reset=reset)
        found, other = step(observation, reward, reset, other)
        worst = max(worst, float((np.abs(found - action) / half_range).max()), float(np.abs(other - one).max()))
    return worst


def _checked(policy: ExportedPolicy, step: Step, path: Path) -> float:
    difference = largest_difference(policy, step, num_steps=CHECK_STEPS, num_envs=CHECK_BATCH)
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"{path} was not written: over {CHECK_STEPS} steps its actions differ from the policy's by "
            f"{difference:.1e}, expected at most {TOLERANCE:.0e}; this version of torch or onnx computes something else"
        )
    return difference


def _example(policy: ExportedPolicy) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs for tracing; sizes 0 and 1 would be taken as fixed."""
    num_envs = 3
    return (
        torch.zeros(num_envs, policy.card.observation_size),
        torch.zeros(num_envs),
        torch.ones(num_envs, dtype=torch.bool),
        torch.from_numpy(policy.initial_state(num_envs)),
    )


def _dynamic_shapes() -> dict[str, Any]:
    batch = torch.export.Dim("num_envs", min=1)
    return {name: {0: batch} for name in INPUTS}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's own deprecation notes and progress from the user: nothing in them is theirs to mend."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
