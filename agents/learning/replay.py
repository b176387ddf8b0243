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


def build_replay(columns: Columns, stream: Stream, *, feature_scale: float = 1.0, reward_scale: float = 1.0) -> Replay:
    """Pack rows. Row index is step · E + environment.

    Args:
        feature_scale: factor on the encoder's output; acting must use the same.
        reward_scale: factor on the rewards, and so on all values that are learned from them.
    """
    features, features_next = stream.features * feature_scale, stream.features_next * feature_scale
    parts = (
        *(stream.visible, features, columns.action),
        *(stream.visible_next, features_next, torch.zeros_like(columns.action)),
        columns.reward[..., None] * reward_scale,
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
