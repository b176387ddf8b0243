"""Decisions of test-time adaptation: what each episode is for, who takes part, where to climb, whether to accept.

Letters: n candidates, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.learning.normalizer import Float32Array
from swarm.errors import ConfigError

MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Verdict on an adapted policy.

    Attributes:
        accepted: whether the candidate is deployed.
        gain: mean difference of returns, candidate minus incumbent.
        margin: what the gain had to exceed.
        reason: one line for logs and reports.
    """

    accepted: bool
    gain: float
    margin: float
    reason: str


def plan_life(level: str, episodes: int) -> tuple[str, ...]:
    """Return what each of the K episodes before the re-evaluation is for: ``live``, ``probe`` or ``climb``.

    Living collects context and transitions; a probe compares arms; a climb compares candidates around a centre.

    Raises:
        ConfigError: an unknown level, or too few episodes for it.
    """
    if level not in ("context", "inner", "probe", "climb"):
        raise ConfigError(f"unknown level {level!r} of adaptation; known: context, inner, probe, climb")
    least = 2 if level == "climb" else 1
    if episodes < least:
        raise ConfigError(f"level {level} takes at least {least} episodes, got {episodes}")
    if level in ("context", "inner"):
        return ("live",) * episodes
    return ("probe", *["climb" if level == "climb" else "live"] * (episodes - 1))


def seat_arms(num_arms: int, num_seats: int) -> tuple[int, ...]:
    """Return which arm is on each seat; they go round, so that the incumbent, arm 0, has a seat more if any has.

    Raises:
        ConfigError: more arms than seats.
    """
    if not 1 <= num_arms <= num_seats:
        raise ConfigError(f"got {num_arms} arms for {num_seats} seats; every arm needs one")
    return tuple(seat % num_arms for seat in range(num_seats))


def choose_arm(seats: Sequence[int], returns: NDArray[np.float64]) -> int:
    """Return the arm with the best mean return of its seats; the incumbent, arm 0, keeps ties, then the lower arm.

    Not-finite returns count as worst.
    """
    score = np.where(np.isfinite(returns), returns, -np.inf)
    means = [float(score[[s == arm for s in seats]].mean()) for arm in range(max(seats) + 1)]
    return int(np.argmax(means))


def propose_candidates(rng: np.random.Generator, center: Float32Array, sigma: float, num: int) -> Float32Array:
    """Return candidates (n, d): the center itself first, then antithetic pairs center ± sigma · ε.

    Raises:
        ConfigError: more than `MAX_DIMENSIONS` dimensions, or no candidate.
    """
    if len(center) > MAX_DIMENSIONS:
        raise ConfigError(
            f"got {len(center)} dimensions to adapt, at most {MAX_DIMENSIONS} can be climbed in few probes"
        )
    if num < 1:
        raise ConfigError(f"got {num} candidates, expected at least 1")
    directions = rng.standard_normal((num // 2, len(center)), dtype=np.float32) * np.float32(sigma)
    pairs = np.stack([directions, -directions], axis=1).reshape(-1, len(center))[: num - 1]
    return np.concatenate([center[None], center + pairs]).astype(np.float32)


def move_center(center: Float32Array, candidates: Float32Array, returns: NDArray[np.float64]) -> Float32Array:
    """Return the mean of the better half of the candidates, weighted by rank; not-finite returns count as worst.

    Source: recombination of CMA-ES, Hansen 2016, arXiv:1604.00772, eqs. 49-53, without covariance.
    """
    score = np.where(np.isfinite(returns), returns, -np.inf)
    num = max(1, len(candidates) // 2)
    best = np.argsort(-score, kind="stable")[:num]
    if not np.isfinite(score[best]).all():
        return center
    weights = np.log(num + 0.5) - np.log(np.arange(1, num + 1))
    moved: Float32Array = (candidates[best] * (weights / weights.sum())[:, None]).sum(axis=0).astype(np.float32)
    return moved


def accept_if_better(
    before: NDArray[np.float64], after: NDArray[np.float64], *, margin_in_errors: float = 1.0
) -> Decision:
    """Compare returns of incumbent (n,) and candidate (m,) on fresh re-evaluation episodes.

    The gain must exceed ``margin_in_errors`` standard errors of the difference: the best of several noisy probes looks
    better than it is.

    Raises:
        ConfigError: no episodes on one side.
    """
    if len(before) == 0 or len(after) == 0:
        raise ConfigError(f"got {len(before)} and {len(after)} re-evaluation episodes, expected at least 1 each")
    if not np.isfinite(before).all() or not np.isfinite(after).all():
        return Decision(accepted=False, gain=float("nan"), margin=0.0, reason="a return is not finite")
    gain = float(after.mean() - before.mean())
    error = float(np.sqrt(_variance_of_mean(before) + _variance_of_mean(after)))
    margin = margin_in_errors * error
    accepted = gain > margin
    verb = "exceeds" if accepted else "does not exceed"
    reason = f"gain {gain:+.1f} {verb} {margin:.1f} ({len(before)} against {len(after)} episodes)"
    return Decision(accepted=accepted, gain=gain, margin=margin, reason=reason)


def _variance_of_mean(returns: NDArray[np.float64]) -> float:
    return float(returns.var(ddof=1) / len(returns)) if len(returns) > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAccount:
    """Episodes and environment steps that an adaptation has used; probes are never free."""

    episodes: int = 0
    steps: int = 0

    def add(self, episodes: int, steps: int) -> ProbeAccount:
        """Return the account with more probes entered."""
        return ProbeAccount(episodes=self.episodes + episodes, steps=self.steps + steps)
