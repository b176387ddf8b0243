"""A control encoder in the whole swarm: the world model learns on it, all members act by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.learning.world_state import encoder_parameters, init_world
from agents.pinned import Pinned
from agents.plan import SHARED
from agents.randomness import stream_key
from tests.integration.training_runs import smoke, train


def test_a_team_trains_and_acts_on_an_lstm(tmp_path: Path) -> None:
    overrides = ["member.encoder=lstm", "budget_steps=800"]
    run = train(tmp_path / "run", overrides)
    assert run.outcome.status == "done", run.outcome.reason
    team = smoke(*overrides).team
    world = Pinned(run.path, team, run.outcome.round_index).world(SHARED)
    fresh = init_world(team.world, team.member, 17, 6, seed=stream_key(team.seed, 0, "world"))
    before, after = encoder_parameters(fresh), encoder_parameters(world)
    assert set(after) == {"recurrent_w", "recurrent_b", "output_w", "output_b"}
    for name, value in after.items():
        assert value.isfinite().all()
        assert not np.array_equal(value, before[name]), name
