from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.pinned import Pinned
from agents.rollouts import collection_requests, evaluation_blocks
from swarm.environment import RolloutRequest
from tests.agents.made_runs import make_run


def collection(pinned: Pinned, round_index: int) -> RolloutRequest:
    seats = ["state"] * 8
    terms = {"round": round_index, "stream": "nominal", "seats": seats, "steps": 25, "random": False}
    (request,) = collection_requests(pinned, terms)
    return request


def test_environments_that_can_be_saved_go_on_where_they_stopped(tmp_path: Path) -> None:
    team = make_run(tmp_path / "run", snapshot={"physics": np.ones((8, 3))})
    request = collection(Pinned(tmp_path / "run", team, 1), 2)
    assert request.snapshot is not None
    np.testing.assert_array_equal(request.snapshot["physics"], np.ones((8, 3)))
    assert request.policy_state is not None


def test_environments_that_cannot_be_saved_start_other_episodes_with_each_stretch(tmp_path: Path) -> None:
    team = make_run(tmp_path / "run", snapshot={})
    pinned = Pinned(tmp_path / "run", team, 1)
    second, third = collection(pinned, 2), collection(pinned, 3)
    assert second.snapshot is None
    assert second.policy_state is None
    assert second.seed != third.seed
    assert collection(pinned, 2).seed == second.seed


def test_experience_is_the_newest_actors_and_evaluations_are_of_the_deployed_one(tmp_path: Path) -> None:
    pinned = Pinned(tmp_path / "run", make_run(tmp_path / "run", snapshot={}), 1)
    state = pinned.member("state")
    pinned._members["state"] = replace(state, average=state.actor / 2)
    evaluation = evaluation_blocks(pinned, "state", 1, None)[0].weights["state/actor.w2"]
    np.testing.assert_array_equal(2 * evaluation, collection(pinned, 2).weights["state/actor.w2"])
    np.testing.assert_array_equal(evaluation, pinned.deployed_weights("state")["actor.w2"])
