"""How well the shared world model does: prediction, inner loop, calibrated uncertainty, imagination.

Letters: T rows, E environments, N heads, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from agents.config import TeamConfig
from agents.learning.imagination import Imagined, imagine
from agents.learning.maml import adapted_loss
from agents.learning.uncertainty import (
    NORMAL_WIDTHS,
    Calibration,
    calibration_error,
    coverage,
    fit_calibration,
    reliability,
)
from agents.learning.windows import Windows, cut_windows, sample_windows, split_windows, window_starts
from agents.learning.world_model import head_predictions, prediction_error, prepare
from agents.learning.world_state import WorldState, encoder_parameters
from agents.pinned import Pinned, View
from agents.plan import NOMINAL, SHIFTED
from agents.randomness import generator
from swarm.messages import Json
from swarm.policy import BLOCK_SIZE

QUALITY_WINDOWS: Final = 64
FITTED: Final = BLOCK_SIZE // 2
"""Environments whose newest rows calibrate the uncertainty; those of the others test it."""


def world_quality(pinned: Pinned, group: str, round_index: int) -> dict[str, Json]:
    """Return how the pinned world model does.

    On nominal rows, ``error`` of prediction, ``persistence`` of repeating the last value, and their ``ratio``; under
    shifted dynamics, the loss ``meta_before`` and ``meta_after`` the inner loop; and what `trust` says.
    """
    config, scales, world = pinned.team.world, pinned.scales(group), pinned.world(group)
    rng = generator(pinned.team.seed, round_index, "quality", group)
    quality: dict[str, Json] = {}
    windows = nominal_windows(pinned, group, rng, QUALITY_WINDOWS)
    if windows is not None:
        found = prediction_error(world, windows, scales)
        quality |= {"error": found["mse"], "persistence": found["persistence_mse"], "ratio": found["ratio"]}
    if num_stretches(pinned):
        support, query = task_windows(pinned, pinned.view(group, SHIFTED), rng, QUALITY_WINDOWS)
        before, after = adapted_loss(world, support, query, scales, config)
        quality |= {"meta_before": before, "meta_after": after}
    return _finite(quality | dict(trust(pinned, group)))


def _finite(quality: Mapping[str, Json]) -> dict[str, Json]:
    """Leave out what a broken model makes NaN or infinite of, as if it had not been measured."""
    return {name: value for name, value in quality.items() if np.isfinite(np.array(value, np.float64)).all()}


@torch.no_grad()
def trust(pinned: Pinned, group: str) -> Mapping[str, Json]:
    """Return how far the heads' disagreement can be trusted, on the newest round's rows, which no version has seen.

    ``calibration_error`` and ``coverage`` of intervals of 50, 80 and 95 %, ``raw_calibration_error`` where the bare
    disagreement is taken for the standard deviation, ``reliability`` as pairs (predicted standard deviation, error),
    ``imagined_error`` and ``imagined_persistence`` at the last valid step of imagined rollouts with the real actions,
    ``imagined_steps`` that were valid on average.
    """
    newest = pinned.newest_rows
    world, scales = pinned.world(group), pinned.scales(group)
    if newest < 2 or world.sizes.heads < 2:
        return {}
    view = pinned.view(group)
    first = view.columns.num_steps - newest
    starts = np.array([[first, e] for e in range(BLOCK_SIZE)])
    windows = cut_windows(view.columns, view.stream.states, starts, newest)
    prepared = prepare(world.sizes, encoder_parameters(world), windows, scales)
    kept = prepared.mask > 0
    predictions = head_predictions(world, prepared.known)
    if not torch.isfinite(predictions).all() or not kept.any():
        return {}
    fitted, tested = slice(None, FITTED), slice(FITTED, None)
    calibration = fit_calibration(
        predictions[:, :, fitted].flatten(1, 2), prepared.target[:, fitted].flatten(0, 1), prepared.mask
    )
    rows = predictions[:, :, tested].flatten(1, 2)
    error = (rows.mean(0) - prepared.target[:, tested].flatten(0, 1))[:, kept]
    std, raw = calibration.std(rows)[:, kept], rows.std(0, unbiased=False).clamp_min(1e-6)[:, kept]
    covered = coverage(error, std, calibration.widths)
    return {
        "coverage": list(covered),
        "calibration_error": calibration_error(covered),
        "raw_calibration_error": calibration_error(coverage(error, raw, NORMAL_WIDTHS)),
        "reliability": [list(pair) for pair in reliability(error, std)],
        **_imagination(pinned, world, windows.select(tested), calibration, group),
    }


def _imagination(
    pinned: Pinned, world: WorldState, windows: Windows, calibration: Calibration, group: str
) -> Mapping[str, Json]:
    """Imagine what really followed, with the real actions, from every row that leaves room for the whole horizon."""
    config, scales = pinned.team.world, pinned.scales(group)
    horizon = min(config.imagine_horizon, windows.num_steps)
    starts = windows.num_steps - horizon + 1
    rolled = windows.unrolled(starts, horizon)
    dreamt = imagine(
        world,
        rolled,
        scales,
        calibration,
        lambda step, seen: rolled.action[step],
        horizon=horizon,
        cut=config.imagine_cut,
    )
    return dream_quality(dreamt, rolled, torch.from_numpy(scales.observation_factor))


def dream_quality(dreamt: Imagined, real: Windows, factor_O: torch.Tensor) -> Mapping[str, Json]:
    """Compare imagined rollouts with real ones, in units of the observations' variance, until cut or a real reset."""
    same_episode = torch.cat([torch.ones_like(real.keep[:1]), real.keep[1:]]).cumprod(0).bool()
    counted = dreamt.valid & same_episode
    horizon = counted.sum(0)
    found: dict[str, Json] = {"imagined_steps": float(horizon.double().mean())}
    some = torch.nonzero(horizon).flatten()
    if len(some):
        last = horizon[some] - 1
        truth = real.next_observation[last, some]
        number = len(some) * (factor_O > 0).sum().clamp_min(1)
        found["imagined_error"] = float(
            ((dreamt.next_observation[last, some] - truth) * factor_O).square().sum() / number
        )
        still = (real.observation[0, some] - truth) * factor_O
        found["imagined_persistence"] = float(still.square().sum() / number)
    return found


def nominal_windows(
    pinned: Pinned, group: str, rng: np.random.Generator, number: int, *, with_states: bool = True
) -> Windows | None:
    """Draw windows of the group's own nominal rows; ``None`` where there are too few rows in a row.

    Args:
        with_states: whether they start from what the pinned encoder remembers, or without memory, for other encoders.
    """
    length = pinned.team.world.window
    if number == 0 or pinned.rows[NOMINAL] < length:
        return None
    allowed = pinned.usable(group)
    if len(window_starts(allowed, length)) == 0:
        return None
    view = pinned.view(group)
    return sample_windows(view.columns, view.stream.states if with_states else None, rng, number, length, allowed)


def task_windows(pinned: Pinned, view: View, rng: np.random.Generator, num_tasks: int) -> tuple[Windows, Windows]:
    """Draw support and query windows of ``window / 2`` steps, side by side within one stretch under one task."""
    half, steps = pinned.team.world.window // 2, stretch_steps(pinned.team)
    stretch = rng.integers(0, num_stretches(pinned), size=num_tasks)
    offset = rng.integers(0, steps - 2 * half + 1, size=num_tasks)
    environment = rng.integers(0, BLOCK_SIZE, size=num_tasks)
    starts = np.stack([stretch * steps + offset, environment], axis=1)
    return split_windows(cut_windows(view.columns, view.stream.states, starts, 2 * half), half)


def stretch_steps(team: TeamConfig) -> int:
    """Return the rows of one stretch under shifted dynamics."""
    return team.rounds.shifted_steps // BLOCK_SIZE


def num_stretches(pinned: Pinned) -> int:
    """Return the whole stretches under shifted dynamics that are long enough for support and query."""
    if stretch_steps(pinned.team) < pinned.team.world.window:
        return 0
    return pinned.rows[SHIFTED] // stretch_steps(pinned.team)
