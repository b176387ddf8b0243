"""Play one episode with an exported policy in plain Gymnasium; nothing of the swarm runs, torch is not imported.

::

    python -m scenarios.examples.load_policy FILE [seed]
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium

import agents


def play(path: Path, seed: int) -> str:
    """Return what came out: environment, undiscounted return and length of the episode."""
    policy = agents.load_policy(path)
    if policy.card.suite:
        raise SystemExit(
            f"{path} was trained on the tasks of {policy.card.suite}, whose rewards Gymnasium does not pay"
        )
    env = gymnasium.make(policy.card.env_id)
    observation, _ = env.reset(seed=seed)
    state, reward, total, length, ended = policy.initial_state(), 0.0, 0.0, 0, False
    while not ended:
        action, state = policy.step(observation, state, reward=reward)
        observation, paid, terminated, truncated, _ = env.step(action)
        reward, ended = float(paid), terminated or truncated
        total, length = total + reward, length + 1
    env.close()
    return f"{policy.card.env_id}: return {total:.1f} in {length} steps"


if __name__ == "__main__":
    print(play(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0))
