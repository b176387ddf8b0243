"""A control task whose best return is known: a double integrator with quadratic cost, as a Gymnasium environment.

Letters in this file: x state (position in m, velocity in m/s), u action (acceleration in m/s²), P Riccati matrix.

x' = A x + B u, reward −(x'Q x + u'R u). The best policy is linear, u = −K x, and its discounted cost from x is x'P x.

Source: Bertsekas 2012, Dynamic Programming and Optimal Control, vol. II, section 4.1 (discounted linear-quadratic
problems); the discount enters as √γ on A and B.
"""

from __future__ import annotations

from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

ENV_ID: Final = "LinearQuadratic-v0"
EPISODE_STEPS: Final = 20
"""Short, so that most of what is seen is far from rest: a critic is too pessimistic where it saw little."""
TIMESTEP_S: Final = 0.1
MAX_ACCELERATION: Final = 4.0
A: Final = np.array([[1.0, TIMESTEP_S], [0.0, 1.0]])
B: Final = np.array([[0.0], [TIMESTEP_S]])
Q: Final = np.diag([1.0, 0.1])
R: Final = np.array([[0.1]])
START: Final = np.array([1.0, 0.5])
"""Episodes start uniformly within ± this; the best action then stays within the limits."""

Floats = NDArray[np.float64]


class LinearQuadraticEnv(gymnasium.Env[Floats, NDArray[np.float32]]):
    """The task as one environment; it never terminates and is truncated after `EPISODE_STEPS` steps."""

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(-MAX_ACCELERATION, MAX_ACCELERATION, (1,), np.float32)
        self._state = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start at a random position and velocity."""
        super().reset(seed=seed, options=options)
        self._state = self.np_random.uniform(-START, START)
        return self._state.copy(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Accelerate for one time step."""
        u = np.clip(np.asarray(action, np.float64), -MAX_ACCELERATION, MAX_ACCELERATION)
        reward = -float(self._state @ Q @ self._state + u @ R @ u)
        self._state = A @ self._state + B @ u
        return self._state.copy(), reward, False, False, {"x_position": float(self._state[0])}

    def get_state(self) -> Floats:
        """Everything that the future depends on, (2,)."""
        return self._state.copy()

    def set_state(self, state: Floats) -> None:
        """Return to an earlier ``get_state``."""
        self._state = np.array(state, np.float64)


def riccati(discount: float, iterations: int = 10_000) -> Floats:
    """Return P (2, 2) of the discounted problem by value iteration, to float64's precision."""
    a, b = np.sqrt(discount) * A, np.sqrt(discount) * B
    p = Q
    for _ in range(iterations):
        gain = np.linalg.solve(R + b.T @ p @ b, b.T @ p @ a)
        following = Q + a.T @ p @ (a - b @ gain)
        if np.allclose(following, p, rtol=1e-14, atol=0.0):
            break
        p = following
    return p


def best_gain(discount: float) -> Floats:
    """Return K (1, 2): the best action is −K x."""
    p = riccati(discount)
    gain: Floats = np.linalg.solve(R + discount * B.T @ p @ B, discount * B.T @ p @ A)
    return gain


def best_cost(starts: Floats, discount: float) -> Floats:
    """Return the least discounted cost (n,) from each start (n, 2), over an endless episode."""
    cost: Floats = np.einsum("ni,ij,nj->n", starts, riccati(discount), starts)
    return cost


def register() -> None:
    """Make the task known to Gymnasium as `ENV_ID`."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID, entry_point=f"{__name__}:{LinearQuadraticEnv.__name__}", max_episode_steps=EPISODE_STEPS
        )
