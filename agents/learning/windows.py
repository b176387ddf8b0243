"""Windows of consecutive steps, cut from streams of experience for learning the world model.

Letters in this file: T window length, W windows, O observation, A action, S numbers of the encoder's state,
E environments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.learning.encoder import Columns
from swarm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """W windows of T consecutive rows, time first.

    Attributes:
        observation: (T, W, O) raw; ``next_observation`` the true successor.
        action: (T, W, A) taken at each row.
        previous_action: (T, W, A) of the row before; zero where an episode starts.
        previous_reward: (T, W), likewise.
        reward: (T, W).
        keep: (T, W) bool; false where an episode starts.
        states: (T, W, S), the encoder's state before each row, written by the encoder version in use; S = 0: unknown,
            the window starts from zero.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    previous_action: Tensor
    previous_reward: Tensor
    keep: Tensor
    states: Tensor

    @property
    def num_windows(self) -> int:
        """W."""
        return self.observation.shape[1]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.observation.shape[0]

    def select(self, windows: slice) -> Windows:
        """Return some of the windows."""
        return Windows(**{f.name: getattr(self, f.name)[:, windows] for f in fields(self)})

    def unrolled(self, num_starts: int, length: int) -> Windows:
        """Return windows of ``length`` steps from each of the first ``num_starts`` steps of each window."""
        device = self.observation.device
        steps = torch.arange(length, device=device)[:, None] + torch.arange(num_starts, device=device)
        return Windows(**{f.name: getattr(self, f.name)[steps].flatten(1, 2) for f in fields(self)})


def cut_windows(columns: Columns, states: Tensor | None, starts: NDArray[np.int64], length: int) -> Windows:
    """Cut windows that start at ``starts`` (W, 2), pairs of (step, environment).

    Args:
        states: (T, E, S), `Stream.states` of the same columns; ``None``: windows start from a zero state with
            one unknown (zero) previous action and reward.
    """
    device = columns.observation.device
    first, environment = torch.from_numpy(starts).to(device).unbind(1)
    steps = first[None] + torch.arange(length, device=device)[:, None]
    environments = environment[None].expand_as(steps)
    before = (steps - 1).clamp_min(0)
    keep = ~columns.reset[steps, environments] & (steps > 0)
    if states is None:
        keep[0] = False
        known = torch.zeros(length, len(starts), 0, device=device)
    else:
        known = states[before, environments]
    return Windows(
        observation=columns.observation[steps, environments],
        action=columns.action[steps, environments],
        reward=columns.reward[steps, environments],
        next_observation=columns.next_observation[steps, environments],
        previous_action=columns.action[before, environments] * keep[..., None],
        previous_reward=columns.reward[before, environments] * keep,
        keep=keep,
        states=known,
    )


def window_starts(allowed_TE: NDArray[np.bool_], length: int) -> NDArray[np.int64]:
    """Return (W, 2) pairs of (step, environment) of all windows of ``length`` rows that are all allowed."""
    if length > len(allowed_TE):
        return np.zeros((0, 2), np.int64)
    counts = np.concatenate([np.zeros((1, allowed_TE.shape[1]), np.int64), np.cumsum(allowed_TE, axis=0)])
    return np.argwhere(counts[length:] - counts[:-length] == length)


def sample_windows(
    columns: Columns,
    states: Tensor | None,
    rng: np.random.Generator,
    num_windows: int,
    length: int,
    allowed_TE: NDArray[np.bool_] | None = None,
) -> Windows:
    """Draw windows uniformly over steps and environments.

    Args:
        allowed_TE: rows that may be part of a window; ``None``: all.

    Raises:
        ConfigError: not enough rows for one window.
    """
    everything = np.ones(columns.reset.shape, np.bool_)
    starts = window_starts(everything if allowed_TE is None else allowed_TE, length)
    if len(starts) == 0:
        raise ConfigError(
            f"got {columns.num_steps} steps of experience, none of {length} in a row may be used as a window: collect "
            "more first"
        )
    return cut_windows(columns, states, starts[rng.integers(0, len(starts), size=num_windows)], length)


def split_windows(windows: Windows, at: int) -> tuple[Windows, Windows]:
    """Return the first ``at`` steps and the rest of each window, as windows of their own."""
    first = Windows(**{f.name: getattr(windows, f.name)[:at] for f in fields(Windows)})
    rest = {f.name: getattr(windows, f.name)[at:] for f in fields(Windows)}
    if windows.states.shape[-1] == 0:
        rest["keep"] = rest["keep"].clone()
        rest["keep"][0] = False
    return first, Windows(**rest)
