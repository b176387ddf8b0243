"""Encoders as functions of named parameters: what actor, critics and world model know of the past.

Letters in this file: T time steps, E sequences, O observation, A action, V visible part of the state (observation or
its projection), I encoder input, S numbers of an encoder's state, D features.

Feature h[t] summarises the past up to and including observation t: its inputs are (observation t, action t−1,
reward t−1). The state-space layer is the encoder of the team; a memoryless and an LSTM layer of the same size on the
same inputs are its controls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.learning import lstm_encoder, mlp_encoder, ssm
from agents.learning.normalizer import Scales
from agents.learning.parameters import ParameterLayout, Shapes, uniform_

Parameters = Mapping[str, Tensor]


class Kind(NamedTuple):
    """What an encoder layer consists of; see `agents.learning.ssm` for the meaning of each.

    Attributes:
        own: an array that only layers of this kind have.
        layer: (parameters, inputs (T, E, I), keep (T, E), state (E, S)) → features (T, E, D), states (T, E, S).
        step: (parameters, inputs (E, I), keep (E,), state (E, S)) → features (E, D), state (E, S): one step of it in
            plain PyTorch, for any device and for tracing.
    """

    own: str
    shapes: Callable[[int, int, int], Shapes]
    init: Callable[[Parameters, torch.Generator], None]
    layer: Callable[[Parameters, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    step: Callable[[Parameters, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    state_size: Callable[[int, int, int], int]


KINDS: Final[Mapping[str, Kind]] = {
    "ssm": Kind("nu", ssm.shapes, ssm.init, ssm.layer, ssm.step, ssm.state_size),
    "mlp": Kind(
        "hidden_w",
        mlp_encoder.shapes,
        mlp_encoder.init,
        mlp_encoder.layer,
        mlp_encoder.step,
        mlp_encoder.state_size,
    ),
    "lstm": Kind(
        "recurrent_w",
        lstm_encoder.shapes,
        lstm_encoder.init,
        lstm_encoder.layer,
        lstm_encoder.step,
        lstm_encoder.state_size,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSizes:
    """Kind and sizes of an encoder.

    Attributes:
        kind: one of `KINDS`.
        projection: width of the linear layer in front of everything; 0: none.
        features: D.
        states: N, complex states of the state-space layer; the others have as many parameters as that would have.
    """

    observation: int
    action: int
    projection: int
    features: int
    states: int
    kind: str = "ssm"

    @property
    def visible(self) -> int:
        """V, width of the instantaneous part that actor and critics see beside the features."""
        return self.projection or self.observation

    @property
    def inputs(self) -> int:
        """I."""
        return self.visible + self.action + 1

    @property
    def state(self) -> int:
        """S."""
        return KINDS[self.kind].state_size(self.inputs, self.states, self.features)

    @property
    def layout(self) -> ParameterLayout:
        """Arrays of the encoder: a projection, if any, then the layer's."""
        projection: Shapes = (
            (("proj_w", (self.observation, self.projection)), ("proj_b", (self.projection,))) if self.projection else ()
        )
        layer = KINDS[self.kind].shapes(self.inputs, self.states, self.features)
        return ParameterLayout(shapes=(*projection, *layer))


def init_encoder(sizes: EncoderSizes, flat: Tensor, generator: torch.Generator) -> None:
    """Fill ``flat`` (encoder part) in place, on its own device, which must be the generator's."""
    w = sizes.layout.views(flat)
    if sizes.projection:
        uniform_(w["proj_w"], sizes.observation, generator, scale=3**0.5)
        w["proj_b"].zero_()
    KINDS[sizes.kind].init(w, generator)


def layer(w: Parameters, inputs_TEI: Tensor, keep_TE: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (T, E, D) and states (T, E, S) of the layer whose parameters these are."""
    return _kind_of(w).layer(w, inputs_TEI, keep_TE, state_ES)


def step(w: Parameters, inputs_EI: Tensor, keep_E: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (E, D) and states (E, S) after one step of `layer`, by plain PyTorch operations only."""
    return _kind_of(w).step(w, inputs_EI, keep_E, state_ES)


def _kind_of(w: Parameters) -> Kind:
    (kind,) = (kind for kind in KINDS.values() if kind.own in w)
    return kind


def normalize(observation: Tensor, scales: Scales, clip: float) -> Tensor:
    """Return (observation − mean) · factor, clipped to ± ``clip``."""
    mean = torch.from_numpy(scales.observation_mean).to(observation)
    factor = torch.from_numpy(scales.observation_factor).to(observation)
    return ((observation - mean) * factor).clamp_(-clip, clip)


def normalize_reward(reward: Tensor, scales: Scales, clip: float) -> Tensor:
    """Return reward · factor, clipped; not centred, so that 'no reward yet' is 0."""
    return (reward * float(scales.reward_factor[0])).clamp_(-clip, clip)


def visible_part(w: Parameters, normalized: Tensor) -> Tensor:
    """Return what actor and critics see beside the features: the observation or its projection."""
    return normalized @ w["proj_w"] + w["proj_b"] if "proj_w" in w else normalized


def encode(
    w: Parameters, normalized_TEO: Tensor, action_TEA: Tensor, reward_TE: Tensor, keep_TE: Tensor, state_ES: Tensor
) -> Tensor:
    """Return features (T, E, D), differentiable with respect to ``w``.

    Args:
        action_TEA: action *before* each observation (zero where an episode starts).
        reward_TE: normalised reward before each observation (zero where an episode starts).
        keep_TE: bool; false where an episode starts.
        state_ES: state before the first step.
    """
    inputs = torch.cat([visible_part(w, normalized_TEO), action_TEA, reward_TE[..., None]], dim=-1)
    return layer(w, inputs, keep_TE, state_ES)[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """All committed rows as one encoder version sees them.

    Attributes:
        visible: (T, E, V) for ``observation``; ``visible_next`` for ``next_observation``.
        features: (T, E, D) for ``observation``; ``features_next`` for ``next_observation``.
        states: (T, E, S), after each row's observation.
        last_action: (E, A), of the last row.
    """

    visible: Tensor
    features: Tensor
    visible_next: Tensor
    features_next: Tensor
    states: Tensor
    last_action: Tensor

    @property
    def policy_state(self) -> NDArray[np.float32]:
        """(E, S + A): what a rollout policy continues from after the last row."""
        return torch.cat([self.states[-1], self.last_action], dim=-1).cpu().numpy()


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
    num_steps, num_sequences = keep_TE.shape
    features, states = layer(w, inputs, keep_TE, inputs.new_zeros(num_sequences, sizes.state))
    visible_next = visible_part(w, normalize(columns.next_observation, scales, clip))
    inputs_next = torch.cat([visible_next, columns.action, reward[..., None]], dim=-1)
    # One step on from each row: a row is a sequence of its own.
    each_row = torch.ones_like(keep_TE).view(1, -1)
    features_next, _ = layer(w, inputs_next.view(1, -1, sizes.inputs), each_row, states.flatten(0, 1))
    return Stream(
        visible=visible,
        features=features,
        visible_next=visible_next,
        features_next=features_next.view(num_steps, num_sequences, -1),
        states=states,
        last_action=columns.action[-1],
    )
