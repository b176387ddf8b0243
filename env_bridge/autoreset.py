"""A vector environment that starts new episodes by itself, in each of Gymnasium's autoreset modes.

Letters: E environments, O observation.

What an environment tells besides its observation comes in columns: one array (E, …) per key, zero where an environment
did not tell it. `assemble` makes of them the infos that Gymnasium's ``SyncVectorEnv`` would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from env_bridge.infos import Columns, Told
from env_bridge.vector_env import VectorEnv

Mask = NDArray[np.bool_]


class Batch(NamedTuple):
    """What one step of all environments gave.

    Attributes:
        observation: (E, …) after the step; of environments that were reset, the first of the new episode.
        reward: (E,) float64.
        terminated: (E,).
        truncated: (E,); true as well where the simulation diverged.
        ended: (E,); either.
        diverged: (E,): the simulation broke down; nothing else of that row means anything.
        columns: infos of steps and resets, by key.
        told: infos of environments that step through their own class, as (index, info), in order.
        lost: (E,) rows whose worker was lost; ``None``: none.
        final_observation: (E, …) the last ones of the episodes that ended in this step; ``SAME_STEP`` only.
        final_columns: infos of these last steps; ``SAME_STEP`` only, where episodes ended.
    """

    observation: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: Mask
    truncated: Mask
    ended: Mask
    diverged: Mask
    columns: Columns
    told: Told = ()
    lost: Mask | None = None
    final_observation: NDArray[Any] | None = None
    final_columns: Columns | None = None


class AutoresetEnv:
    """N environments and, in ``NEXT_STEP`` mode, which of them the next step will reset."""

    def __init__(self, env: VectorEnv, mode: AutoresetMode) -> None:
        self.env = env
        self._mode = mode
        self.pending = np.zeros(env.num_envs, dtype=np.bool_)
        self._resets: Mask | None = None
        self._reset_rows = np.empty(0, dtype=np.intp)

    def reset(self, rows: Mask, options: Mapping[str, Any] | None = None) -> tuple[NDArray[Any], Columns, Told]:
        """Start new episodes in ``rows``, with ``options`` for environments of their own class.

        Returns:
            All observations (E, …), the infos of the resets in columns, and those of environments of their own class.
        """
        observation = self.env.reset(np.flatnonzero(rows).tolist(), options)
        self.pending = self.pending & ~rows
        return observation, masked(self.env.reset_info(), rows), self.env.told(rows)

    def send(self, action: NDArray[Any]) -> None:
        """Begin a step with checked actions (E, …); resets are made while others are stepped."""
        some = self._mode is AutoresetMode.NEXT_STEP and np.count_nonzero(self.pending) > 0
        self._resets = self.pending if some else None
        if self._resets is None:
            self.env.send(action)
        else:
            self.env.send(action, ~self._resets)
            self._reset_rows = np.flatnonzero(self._resets)
            self.env.restart(self._reset_rows.tolist())

    def wait(self) -> Batch:
        """Finish the step that was begun. Raises ``PeerLost`` where workers are lost again and again."""
        step = self.env.wait()
        reward, terminated, truncated = step.reward, step.terminated, step.truncated | step.diverged
        if step.lost is not None:
            reward, terminated = np.where(step.lost, 0.0, reward), terminated & ~step.lost
            truncated = truncated | step.lost
        columns, told, resets = step.info, step.told, self._resets
        if resets is not None:
            for array in (reward, terminated, truncated):
                array[self._reset_rows] = 0
            columns = merged(columns, self.env.reset_info(), self._reset_rows)
            if not columns:
                told = tuple(sorted((*told, *self.env.told(resets)), key=lambda item: item[0]))
        ended = terminated | truncated
        observation, diverged, lost = step.observation, step.diverged, step.lost
        batch = Batch(observation, reward, terminated, truncated, ended, diverged, columns, told, lost)
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            return self._reset_ended(batch, ended)
        if self._mode is AutoresetMode.NEXT_STEP:
            self.pending = ended
        return batch

    def _reset_ended(self, batch: Batch, ended: Mask) -> Batch:
        """``SAME_STEP``: keep the last observations and infos aside, and reset."""
        observation, reset_columns, reset_told = self.reset(ended)
        final_columns = masked(batch.columns, ended)
        columns = merged(batch.columns, reset_columns, np.flatnonzero(ended))
        final = {index: info for index, info in batch.told if ended[index]}
        is_number = isinstance(self.env.simulation.observation_space, Discrete)
        told: list[tuple[int, dict[str, Any]]] = []
        for index, info in (*((i, t) for i, t in batch.told if not ended[i]), *reset_told):
            if index in final:
                seen = batch.observation[index]  # where it is a number, Gymnasium's classes tell Python's
                info = {"final_obs": int(seen) if is_number else seen, "final_info": final[index], **info}
            told.append((index, info))
        return batch._replace(
            observation=observation,
            columns=columns,
            final_observation=batch.observation,
            final_columns=final_columns,
            told=tuple(sorted(told, key=lambda item: item[0])),
        )


def masked(columns: Mapping[str, NDArray[Any]], rows: Mask) -> Columns:
    """New columns with zeros outside ``rows``."""
    result = {}
    for name, column in columns.items():
        result[name] = np.zeros_like(column)
        result[name][rows] = column[rows]
    return result


def merged(stepped: Columns, reset: Columns, rows: NDArray[np.intp]) -> Columns:
    """Columns of steps that the caller gives away, with what resets told in ``rows``; zeros where nothing was told."""
    result = dict(stepped)
    for name, column in reset.items():
        if name not in result:
            result[name] = np.zeros_like(column)
        result[name][rows] = column[rows]
    for name in stepped.keys() - reset.keys():
        stepped[name][rows] = 0
    return result


def assemble(columns: Columns, step_keys: Sequence[str], reset_keys: Sequence[str], reset: Mask) -> dict[str, Any]:
    """Return Gymnasium's infos of columns that the caller gives away: each key beside its mask ``_key``.

    Args:
        step_keys: keys that stepped environments told.
        reset_keys: keys that the environments of the mask ``reset`` told.
    """
    stepped, infos = ~reset, dict[str, Any]()
    if not np.count_nonzero(reset):
        for key in step_keys:
            infos[key], infos[f"_{key}"] = columns[key], stepped.copy()
        return infos
    has_stepped = np.count_nonzero(stepped) > 0
    for key, column in columns.items():
        in_step, in_reset = has_stepped and key in step_keys, key in reset_keys
        if in_step or in_reset:
            infos[key], infos[f"_{key}"] = column, (stepped if in_step else reset).copy()
            if in_step and in_reset:
                infos[f"_{key}"][...] = True
    return infos
