"""A recurrent control for the state-space layer: an LSTM on the same inputs, with about as many parameters.

Letters in this file: T time steps, E sequences, I inputs, H cells, D features, S = 2 H (outputs, then cells).

Source: Hochreiter & Schmidhuber 1997, with forget gates (Gers et al. 2000), order input, forget, cell, output as in
``torch.nn.LSTM``, one bias. Differs from it: states are zeroed where an episode starts, all states are returned, and
features are tanh of a linear map of the output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from agents.learning import ssm
from agents.learning.parameters import ParameterLayout, Shapes, uniform_

Parameters = Mapping[str, Tensor]


def shapes(inputs: int, states: int, features: int) -> Shapes:
    """Return the arrays of the layer."""
    return _shapes(inputs, cells(inputs, states, features), features)


def _shapes(inputs: int, hidden: int, features: int) -> Shapes:
    return (
        ("recurrent_w", (inputs + hidden, 4 * hidden)),
        ("recurrent_b", (4 * hidden,)),
        ("output_w", (hidden, features)),
        ("output_b", (features,)),
    )


@lru_cache(maxsize=64)
def cells(inputs: int, states: int, features: int) -> int:
    """Return H for which the number of parameters comes closest to that of the state-space layer of N states."""
    wanted = ParameterLayout(shapes=ssm.shapes(inputs, states, features)).size

    def distance(hidden: int) -> int:
        return abs(ParameterLayout(shapes=_shapes(inputs, hidden, features)).size - wanted)

    return min(range(1, 4 * states + 2), key=distance)


def init(w: Parameters, generator: torch.Generator) -> None:
    """Fill ``w`` in place, on its own device, which must be the generator's; cells begin by remembering."""
    hidden = w["output_w"].shape[0]
    uniform_(w["recurrent_w"], hidden, generator)
    w["recurrent_b"].zero_()
    w["recurrent_b"][hidden : 2 * hidden] = 1
    uniform_(w["output_w"], hidden, generator, scale=math.sqrt(3))
    w["output_b"].zero_()


def layer(w: Parameters, inputs_TEI: Tensor, keep_TE: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (T, E, D) and states (T, E, S), one step after the other; differentiable."""
    num_inputs, hidden = inputs_TEI.shape[-1], w["output_w"].shape[0]
    recurrent = w["recurrent_w"][num_inputs:]
    driven = inputs_TEI @ w["recurrent_w"][:num_inputs] + w["recurrent_b"]
    states = []
    for keep_E1, driven_EG in zip(keep_TE[..., None].unbind(), driven.unbind(), strict=True):
        output, cell = torch.where(keep_E1, state_ES, 0).chunk(2, dim=-1)
        gates = torch.addmm(driven_EG, output, recurrent)
        # One sigmoid for all; that of the cell's own column block is not used.
        squashed = torch.sigmoid(gates)
        fresh = torch.tanh(gates[:, 2 * hidden : 3 * hidden])
        cell = squashed[:, hidden : 2 * hidden] * cell + squashed[:, :hidden] * fresh
        state_ES = torch.cat([squashed[:, 3 * hidden :] * torch.tanh(cell), cell], dim=-1)
        states.append(state_ES)
    states_TES = torch.stack(states)
    return torch.tanh(states_TES[..., :hidden] @ w["output_w"] + w["output_b"]), states_TES


def step(w: Parameters, inputs_EI: Tensor, keep_E: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (E, D) and the next state (E, S): `layer` for one step."""
    features, states = layer(w, inputs_EI[None], keep_E[None], state_ES)
    return features[0], states[0]


def state_size(inputs: int, states: int, features: int) -> int:
    """Return S."""
    return 2 * cells(inputs, states, features)
