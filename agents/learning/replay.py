"""Committed rows packed for updates: what a batch needs lies side by side, so that a batch is one gather.

Letters: R rows, X inputs of actor and critics, A actions, U updates, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.learning.encoder import Columns, Stream
from swarm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replay:
    """All rows as one encoder version sees them, packed.

    Attributes:
        packed: (R, 2 (X + A) + 2): state (X), action (A), next state (X), scratch for the next action (A), reward,
            continues (1 where the successor's value counts: everywhere but at true terminations).
        inputs: X.
        actions: A.
    """

    packed: Tensor
    inputs: int
    actions: int

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.packed)

    def select(self, rows: Tensor) -> Replay:
        """Return the rows with the given indices (int64), in that order."""
        return Replay(packed=self.packed.index_select(0, rows), inputs=self.inputs, actions=self.actions)


class Batch:
    """Buffers for one batch and views into them; `load` overwrites all of them with rows of a replay.

    Attributes:
        state_action: (B, X + A); ``state`` and ``action`` are its parts.
        next_state_action: (B, X + A); ``next_state`` and ``next_action`` are its parts.
        reward: (B,).
        continues: (B,).
    """

    def __init__(self, replay: Replay, batch_size: int) -> None:
        inputs, width = replay.inputs, replay.inputs + replay.actions
        self._packed = torch.empty(batch_size, replay.packed.shape[1], dtype=replay.packed.dtype)
        self.state_action = self._packed[:, :width]
        self.state, self.action = self.state_action[:, :inputs], self.state_action[:, inputs:]
        self.next_state_action = self._packed[:, width : 2 * width]
        self.next_state = self.next_state_action[:, :inputs]
        self.next_action = self.next_state_action[:, inputs:]
        self.reward, self.continues = self._packed[:, -2], self._packed[:, -1]

    def load(self, replay: Replay, rows: Tensor) -> None:
        """Copy the rows with indices (B,) of ``replay``."""
        torch.index_select(replay.packed, 0, rows, out=self._packed)


def build_replay(columns: Columns, stream: Stream, zero_features: bool = False) -> Replay:
    """Pack rows. Row index is step · E + environment.

    Args:
        zero_features: replace the encoder's output by zeros (an ablation; acting must then do the same).
    """
    features, features_next = stream.features, stream.features_next
    if zero_features:
        features, features_next = torch.zeros_like(features), torch.zeros_like(features_next)
    parts = (
        *(stream.visible, features, columns.action),
        *(stream.visible_next, features_next, torch.zeros_like(columns.action)),
        columns.reward[..., None],
        (~columns.terminated)[..., None].to(columns.reward.dtype),
    )
    return Replay(
        packed=torch.cat(parts, dim=-1).flatten(0, 1),
        inputs=stream.visible.shape[-1] + features.shape[-1],
        actions=columns.action.shape[-1],
    )


def draw_indices(
    rng: np.random.Generator,
    num_rows: int,
    own_rows: NDArray[np.int64],
    own_share: float,
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Return row indices (U, B): the first ``own_share`` of each batch from ``own_rows``, the rest from all rows.

    Raises:
        ConfigError: there are no rows.
    """
    if num_rows == 0:
        raise ConfigError("no experience yet: collect at least one round before learning")
    indices = rng.integers(0, num_rows, size=shape, dtype=np.int64)
    num_own = round(own_share * shape[1]) if len(own_rows) else 0
    if num_own:
        indices[:, :num_own] = own_rows[rng.integers(0, len(own_rows), size=(shape[0], num_own))]
    return indices
