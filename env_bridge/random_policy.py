"""The policy of entry point ``random``: uniform actions from the given noise, so that it is a pure function too."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from swarm.messages import Arrays, Json
from swarm.policy import Policy, PolicyInput


class RandomPolicy:
    """Uniform in [−1, 1]: the normal distribution function of the noise, stretched. Zero noise gives zero actions."""

    state_size = 0

    def act(self, given: PolicyInput) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return actions (E, A) and the (empty) state."""
        stretched = [math.erf(value) for value in (given.noise / math.sqrt(2.0)).ravel().tolist()]
        return np.array(stretched, dtype=np.float32).reshape(given.noise.shape), given.state


def build_policy(weights: Arrays, options: Mapping[str, Json]) -> Policy:
    """Build the random policy; it needs neither weights nor options."""
    return RandomPolicy()
