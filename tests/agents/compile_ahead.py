"""Compiles what takes longest, while tests run that do not need it: ``python -m tests.agents.compile_ahead``.

Each function is compiled by a process of its own, one after the other. Where a machine has compiled it before, it is
read from the cache, and this is over at once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from agents.config import MemberConfig, SacConfig
from agents.learning.replay import Replay
from agents.learning.sac import learn
from agents.member import init_member
from agents.rollout_policy import build_policy
from tests.agents.test_acting_kernel import given_to, weights_of

SIZES = MemberConfig(encoder_width=3, encoder_states=2, actor_hidden=(8, 8), critic_hidden=(8, 8))


def update(dtype: torch.dtype) -> None:
    """Make one update in numbers of this type."""
    start = init_member(SIZES, 4, 2, seed=0)
    vectors = {name: getattr(start, name).to(dtype) for name in ("theta", "m", "v", "targets", "anchor")}
    replay = Replay(packed=torch.ones(16, 20, dtype=dtype), inputs=7, actions=2)
    own, rng = np.arange(0), np.random.default_rng(0)
    learn(replace(start, **vectors), None, replay, own, 1, rng, SacConfig(batch_size=8))


def act() -> None:
    """Act once with each encoder."""
    for kind in ("ssm", "mlp", "lstm"):
        policy = build_policy(weights_of(kind, 0), {})
        policy.act(given_to(policy.state_size))


if __name__ == "__main__":
    update(torch.float64)
    update(torch.float32)
    act()
