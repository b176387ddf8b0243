"""The state-space encoder: a diagonal linear recurrent unit with a gated output, as functions of named parameters.

Letters in this file: T time steps, E sequences, O observation, A action, V visible part of the state (observation or
its projection), I encoder input, N complex states, D features.

Feature h[t] summarises the past up to and including observation t: its inputs are (observation t, action t−1,
reward t−1). Source: Orvieto et al. 2023, arXiv:2303.06349, eqs. 3-7. Differs from the paper: states are stored as
interleaved real and imaginary parts, and the block ends in tanh(y) · sigmoid(gate), so that features are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.learning.normalizer import Scales
from agents.learning.parameters import ParameterLayout, uniform_
from agents.learning.scan import scan, scan_chunked

MIN_RADIUS = 0.5
MAX_RADIUS = 0.99
MAX_PHASE = math.pi / 10
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSizes:
    """Sizes of an encoder.

    Attributes:
        projection: width of the linear layer in front of everything; 0: none.
        features: D.
        states: N.
    """

    observation: int
    action: int
    projection: int
    features: int
    states: int

    @property
    def visible(self) -> int:
        """V, width of the instantaneous part that actor and critics see beside the features."""
        return self.projection or self.observation

    @property
    def layout(self) -> ParameterLayout:
        """Arrays of the encoder, ``nu`` and ``theta`` being log(−log|λ|) and log phase."""
        inputs, states, features = self.visible + self.action + 1, self.states, self.features
        projection: tuple[tuple[str, tuple[int, ...]], ...] = (
            (("proj_w", (self.observation, self.projection)), ("proj_b", (self.projection,))) if self.projection else ()
        )
        return ParameterLayout(
            shapes=(
                *projection,
                ("nu", (states,)),
                ("theta", (states,)),
                ("input_w", (inputs, 2 * states)),
                ("output_w", (2 * states, features)),
                ("skip_w", (inputs, features)),
                ("output_b", (features,)),
                ("gate_w", (2 * states, features)),
                ("gate_b", (features,)),
            )
        )


def init_encoder(sizes: EncoderSizes, flat: Tensor, generator: torch.Generator) -> None:
    """Fill ``flat`` (encoder part) in place: |λ| with uniform area in [0.5, 0.99], phase in (0, π/10)."""
    w = sizes.layout.views(flat)
    inputs, states = sizes.visible + sizes.action + 1, sizes.states
    if sizes.projection:
        uniform_(w["proj_w"], sizes.observation, generator, scale=math.sqrt(3))
        w["proj_b"].zero_()
    u = torch.rand(states, generator=generator, dtype=flat.dtype)
    w["nu"].copy_(torch.log(-0.5 * torch.log(u * (MAX_RADIUS**2 - MIN_RADIUS**2) + MIN_RADIUS**2)))
    w["theta"].copy_(torch.log(MAX_PHASE * torch.rand(states, generator=generator, dtype=flat.dtype) + 1e-4))
    uniform_(w["input_w"], inputs, generator, scale=math.sqrt(1.5))
    uniform_(w["output_w"], 2 * states, generator, scale=math.sqrt(3))
    uniform_(w["skip_w"], inputs, generator, scale=math.sqrt(3))
    uniform_(w["gate_w"], 2 * states, generator)
    w["output_b"].zero_()
    w["gate_b"].zero_()


def decay(w: Parameters) -> Tensor:
    """Return λ (N,), complex."""
    return torch.polar(torch.exp(-torch.exp(w["nu"])), torch.exp(w["theta"]))


def drive(w: Parameters, inputs: Tensor) -> Tensor:
    """Return γ ⊙ B u, complex (…, N); γ = √(1 − |λ|²) keeps the state's variance near that of the input."""
    gamma = torch.sqrt(1 - torch.exp(-2 * torch.exp(w["nu"])))
    projected = inputs @ (w["input_w"] * gamma.repeat_interleave(2))
    return torch.view_as_complex(projected.view(*projected.shape[:-1], -1, 2))


def readout(w: Parameters, states: Tensor, inputs: Tensor) -> Tensor:
    """Return features (…, D) from states (…, N) and the inputs (…, I) of the same step."""
    real = torch.view_as_real(states).flatten(-2)
    output = real @ w["output_w"] + inputs @ w["skip_w"] + w["output_b"]
    return torch.tanh(output) * torch.sigmoid(real @ w["gate_w"] + w["gate_b"])


def normalize(observation: Tensor, scales: Scales, clip: float) -> Tensor:
    """Return (observation − mean) · factor, clipped to ± ``clip``."""
    mean = torch.from_numpy(scales.observation_mean).to(observation.dtype)
    factor = torch.from_numpy(scales.observation_factor).to(observation.dtype)
    return ((observation - mean) * factor).clamp_(-clip, clip)


def normalize_reward(reward: Tensor, scales: Scales, clip: float) -> Tensor:
    """Return reward · factor, clipped; not centred, so that 'no reward yet' is 0."""
    return (reward * float(scales.reward_factor[0])).clamp_(-clip, clip)


def visible_part(w: Parameters, normalized: Tensor) -> Tensor:
    """Return what actor and critics see beside the features: the observation or its projection."""
    return normalized @ w["proj_w"] + w["proj_b"] if "proj_w" in w else normalized


def encode(
    w: Parameters, normalized_TEO: Tensor, action_TEA: Tensor, reward_TE: Tensor, keep_TE: Tensor, state_EN: Tensor
) -> Tensor:
    """Return features (T, E, D), differentiable with respect to ``w``.

    Args:
        action_TEA: action *before* each observation (zero where an episode starts).
        reward_TE: normalised reward before each observation (zero where an episode starts).
        keep_TE: bool; false where an episode starts.
        state_EN: complex state before the first step.
    """
    inputs = torch.cat([visible_part(w, normalized_TEO), action_TEA, reward_TE[..., None]], dim=-1)
    return readout(w, scan(decay(w), keep_TE, drive(w, inputs), state_EN), inputs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """All committed rows as one encoder version sees them.

    Attributes:
        visible: (T, E, V) for ``observation``; ``visible_next`` for ``next_observation``.
        features: (T, E, D) for ``observation``; ``features_next`` for ``next_observation``.
        states: (T, E, N) complex, after each row's observation.
        policy_state: (E, 2 N + A) float32: what a rollout policy continues from after the last row.
    """

    visible: Tensor
    features: Tensor
    visible_next: Tensor
    features_next: Tensor
    states: Tensor
    policy_state: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Rows of one experience stream as tensors; time first, rows in a row of time belong to E environments.

    Attributes:
        observation: (T, E, O) float32, raw; ``next_observation`` is the true successor also where an episode ends.
        action: (T, E, A).
        reward: (T, E).
        terminated: (T, E) bool.
        reset: (T, E) bool; true where the row starts an episode.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    reset: Tensor

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.observation)


def columns_from_arrays(arrays: Mapping[str, NDArray[np.generic]], num_steps: int) -> Columns:
    """Return the first ``num_steps`` rows of named arrays (T, E, …) as tensors, copied out of any memory map.

    Torch aligns its own memory; on NumPy's, the last bit of a matrix product can depend on where an array lies.
    """
    names = ("observation", "action", "reward", "next_observation", "terminated", "reset")
    return Columns(**{name: torch.tensor(arrays[name][:num_steps]) for name in names})


@torch.no_grad()
def encode_stream(sizes: EncoderSizes, w: Parameters, columns: Columns, scales: Scales, clip: float = 10.0) -> Stream:
    """Run the encoder over all rows at once. The first row counts as the start of an episode."""
    normalized = normalize(columns.observation, scales, clip)
    keep_TE = ~columns.reset
    keep_TE[0] = False
    reward = normalize_reward(columns.reward, scales, clip)
    previous_action = torch.zeros_like(columns.action)
    previous_reward = torch.zeros_like(reward)
    previous_action[1:] = columns.action[:-1] * keep_TE[1:, :, None]
    previous_reward[1:] = torch.where(keep_TE[1:], reward[:-1], 0)
    visible = visible_part(w, normalized)
    inputs = torch.cat([visible, previous_action, previous_reward[..., None]], dim=-1)
    zero = torch.zeros(keep_TE.shape[1], sizes.states, dtype=decay(w).dtype)
    states = scan_chunked(decay(w), keep_TE, drive(w, inputs), zero)
    visible_next = visible_part(w, normalize(columns.next_observation, scales, clip))
    inputs_next = torch.cat([visible_next, columns.action, reward[..., None]], dim=-1)
    states_next = torch.addcmul(drive(w, inputs_next), states, decay(w))
    last = torch.view_as_real(states[-1]).flatten(-2)
    return Stream(
        visible=visible,
        features=readout(w, states, inputs),
        visible_next=visible_next,
        features_next=readout(w, states_next, inputs_next),
        states=states,
        policy_state=torch.cat([last, columns.action[-1]], dim=-1).numpy(),
    )
