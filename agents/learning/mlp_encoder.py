"""A memoryless control for the state-space layer: the same inputs, readout and number of parameters, no state.

Letters in this file: T time steps, E sequences, I inputs, H = 2 N hidden units, D features.

    x[t] = silu(W u[t] + b)        h[t] = tanh(C x[t] + K u[t] + c) · sigmoid(G x[t] + g)

The hidden units stand in the place of the N complex states; their biases in that of the N decays and phases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from agents.learning.parameters import Shapes, uniform_
from agents.learning.ssm import readout

Parameters = Mapping[str, Tensor]


def shapes(inputs: int, states: int, features: int) -> Shapes:
    """Return the arrays of the layer."""
    return (
        ("hidden_w", (inputs, 2 * states)),
        ("hidden_b", (2 * states,)),
        ("output_w", (2 * states, features)),
        ("skip_w", (inputs, features)),
        ("output_b", (features,)),
        ("gate_w", (2 * states, features)),
        ("gate_b", (features,)),
    )


def init(w: Parameters, generator: torch.Generator) -> None:
    """Fill ``w`` in place, on its own device, which must be the generator's."""
    inputs, hidden = w["hidden_w"].shape
    uniform_(w["hidden_w"], inputs, generator, scale=math.sqrt(3))
    uniform_(w["hidden_b"], inputs, generator)
    uniform_(w["output_w"], hidden, generator, scale=math.sqrt(3))
    uniform_(w["skip_w"], inputs, generator, scale=math.sqrt(3))
    uniform_(w["gate_w"], hidden, generator)
    w["output_b"].zero_()
    w["gate_b"].zero_()


def layer(w: Parameters, inputs_TEI: Tensor, keep_TE: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (T, E, D) and states (T, E, 0); ``keep_TE`` changes nothing."""
    hidden = torch.nn.functional.silu(inputs_TEI @ w["hidden_w"] + w["hidden_b"])
    return readout(w, hidden, inputs_TEI), state_ES.expand(*keep_TE.shape, 0)


def step(w: Parameters, inputs_EI: Tensor, keep_E: Tensor, state_ES: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (E, D) and the next state (E, S): `layer` for one step."""
    features, states = layer(w, inputs_EI[None], keep_E[None], state_ES)
    return features[0], states[0]


def state_size(inputs: int, states: int, features: int) -> int:
    """Return 0."""
    return 0
