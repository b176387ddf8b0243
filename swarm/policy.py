"""The policy protocol: what a stepping worker calls next to the physics. Arrays in, arrays out; no torch, no mujoco.

Letters: E environments in the block (always the same number), O observation, A action, S policy state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from swarm.messages import Arrays, Json

BLOCK_SIZE = 8
"""Environments that act together: kernel shapes never depend on the number of stepping workers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyInput:
    """What a policy sees at one step.

    Attributes:
        reset: (E,) bool; true where an episode starts (of a rollout that carries state, only the first one): state and
            previous reward do not count there.
        observation: (E, O) float32, raw (the policy normalises).
        reward: (E,) float32; reward of the previous step, 0 where ``reset``.
        state: (E, S) float32 as returned by the previous call (contains the previous action where it is needed).
        noise: (E, A) float32 standard normal; all zeros asks for the deterministic action.
        started: (E,) bool; true where an episode starts, also where the policy remembers the one before; ``None``:
            the same as ``reset``.
    """

    reset: NDArray[np.bool_]
    observation: NDArray[np.float32]
    reward: NDArray[np.float32]
    state: NDArray[np.float32]
    noise: NDArray[np.float32]
    started: NDArray[np.bool_] | None = None

    def rows(self, rows: slice) -> PolicyInput:
        """Views of some environments' rows."""
        return PolicyInput(
            reset=self.reset[rows],
            observation=self.observation[rows],
            reward=self.reward[rows],
            state=self.state[rows],
            noise=self.noise[rows],
            started=None if self.started is None else self.started[rows],
        )


class Policy(Protocol):
    """A pure function of weights and input; the same bits for the same block shape.

    A policy with a true attribute ``takes_blocks`` is given several blocks at once, (k · `BLOCK_SIZE`, …), and answers
    with the bits that it would give block by block.
    """

    state_size: int

    def act(self, given: PolicyInput) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return actions (E, A) in [-1, 1] and the next state (E, S)."""
        ...


class PolicyFactory(Protocol):
    """What an entry point of the group ``swarm.policies`` names."""

    def __call__(self, weights: Arrays, options: Mapping[str, Json]) -> Policy:
        """Build a policy from weights by name. Raises ``ConfigError`` where they do not fit."""
        ...
