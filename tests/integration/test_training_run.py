"""The whole swarm on real physics: reproducible, crash-proof, and every topic matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from agents.learning.encoder import columns_from_arrays, encode_stream
from agents.learning.maml import adapted_loss
from agents.learning.windows import cut_windows, split_windows
from agents.learning.world_state import WorldState, encoder_parameters, init_world
from agents.member import encoder_sizes
from agents.pinned import Pinned
from agents.plan import SHARED
from agents.rollouts import evaluation_blocks
from env_bridge.rollout import run_rollout
from swarm.environment import RolloutRequest, TaskParameters
from tests.integration.training_runs import FinishedRun, smoke, train, train_side_by_side

pytestmark = pytest.mark.timeout(300)
TOPICS = ("proposals", "gradients", "evaluations")


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The run that others are compared with: two worker processes, one stepping worker."""
    run = train(tmp_path_factory.mktemp("reference") / "run", ["processes=2", "workers=1"])
    assert run.outcome.status == "done", run.outcome.reason
    return run


def metrics(run: FinishedRun) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_spends_its_budget_and_leaves_its_files(reference_run: FinishedRun) -> None:
    rows = metrics(reference_run)
    assert rows[-1]["env_steps"] == rows[-1]["budget_steps"]
    assert [row["round_index"] for row in rows] == list(range(len(rows)))
    for name in ("scenario.toml", "environment.json", "journal.sqlite", "evaluation.json"):
        assert (reference_run.path / name).is_file()
    evaluation = json.loads((reference_run.path / "evaluation.json").read_text())
    assert len(evaluation["before"]["returns"]) == len(evaluation["after"]["returns"]) == 2


def test_every_topic_carried_messages_and_none_that_promises_delivery_lost_any(reference_run: FinishedRun) -> None:
    promised = {"tasks", "proposals", "results", "experience", "parameters", "gradients", "evaluations"}
    assert promised | {"presence"} <= set(reference_run.heard.messages)
    assert reference_run.heard.statistics is not None
    lost = {topic.value: row.lost for topic, row in reference_run.heard.statistics.topics.items()}
    assert {topic: lost[topic] for topic in promised} == dict.fromkeys(promised, 0)


def test_auctions_decide_seats_and_lots(reference_run: FinishedRun) -> None:
    auctioned = [row for row in metrics(reference_run) if row.get("bids")]
    assert auctioned
    assert any(len(set(row["lots"].values())) > 1 for row in auctioned)
    assert all(sum(row["seats"].values()) == 8 for row in auctioned)


def test_the_world_model_beats_repeating_the_last_value(reference_run: FinishedRun) -> None:
    ratios = [row["world"]["ratio"] for row in metrics(reference_run) if row.get("world", {}).get("ratio")]
    assert ratios[-1] <= 0.7


def held_out_losses(run: FinishedRun, world: WorldState, gravity: float) -> tuple[float, float]:
    """Dynamics loss on query windows before and after the inner loop, on fresh rollouts under ``gravity``."""
    team = smoke().team
    pinned = Pinned(run.path, team, run.outcome.round_index)
    request = RolloutRequest(
        env_id=team.env_id,
        tasks=(TaskParameters(gravity=gravity),) * 8,
        seed=99,
        num_steps=160,
        policy="random",
        noise_seed=5,
    )
    columns = columns_from_arrays(run_rollout(request).columns, request.num_steps or 0)
    scales, half = pinned.scales(SHARED), team.world.window // 2
    stream = encode_stream(encoder_sizes(team.member, *pinned.sizes), encoder_parameters(world), columns, scales)
    starts = np.array([[step, e] for step in range(0, 160 - 2 * half, 2 * half) for e in range(8)])
    support, query = split_windows(cut_windows(columns, stream.states, starts, 2 * half), half)
    return adapted_loss(world, support, query, scales, team.world)


@pytest.mark.parametrize("gravity", [0.2, 5.0])
def test_the_inner_loop_lowers_held_out_loss_under_unseen_gravity_and_more_than_from_scratch(
    reference_run: FinishedRun, gravity: float
) -> None:
    team = smoke().team
    pinned = Pinned(reference_run.path, team, reference_run.outcome.round_index)
    fresh = init_world(team.world, team.member, *pinned.sizes, seed=123)
    before, after = held_out_losses(reference_run, pinned.world(SHARED), gravity)
    fresh_before, fresh_after = held_out_losses(reference_run, fresh, gravity)
    assert after < before
    assert before - after > fresh_before - fresh_after
    assert (before - after) / before > (fresh_before - fresh_after) / fresh_before


def test_without_the_encoder_the_policy_acts_differently(reference_run: FinishedRun) -> None:
    pinned = Pinned(reference_run.path, smoke().team, reference_run.outcome.round_index)
    member = reference_run.heard.rounds[-1]["best"]["member"]  # type: ignore[index,call-overload]
    request = evaluation_blocks(pinned, member, 8, None)[0]
    blind = replace(request, policy_options={**request.policy_options, "zero_encoder": True})
    seeing, unseeing = run_rollout(request), run_rollout(blind)
    assert np.abs(seeing.columns["action"][0] - unseeing.columns["action"][0]).max() > 1e-3  # type: ignore[operator]


def test_adaptation_is_accepted_and_rejected_at_least_once(reference_run: FinishedRun) -> None:
    last = metrics(reference_run)[-1]["adaptation"]
    assert last["accepted"] >= 1
    assert last["rejected"] >= 1


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (4, 1)])
def test_the_layout_does_not_change_a_bit(
    reference_run: FinishedRun, tmp_path: Path, processes: int, workers: int
) -> None:
    run = train(tmp_path / "run", [f"processes={processes}", f"workers={workers}"])
    assert run.outcome.weights_digest == reference_run.outcome.weights_digest


def test_another_seed_changes_the_weights(reference_run: FinishedRun, tmp_path: Path) -> None:
    run = train(tmp_path / "run", ["seed=1"])
    assert run.outcome.weights_digest != reference_run.outcome.weights_digest


@pytest.fixture(scope="module")
def disturbed_runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], FinishedRun]:
    """A run for each fault of each topic. Where a topic is stopped, they wait and try again: all at the same time."""
    folder = tmp_path_factory.mktemp("disturbed")
    replaced = {folder / f"replace-{topic}": [f"faults.replace={topic}"] for topic in TOPICS}
    stopped = ({folder / f"stop-{topic}": [f"faults.stop={topic}", "rounds.patience_s=1"]} for topic in TOPICS)
    runs = train_side_by_side(replaced, *stopped)
    return {(fault, topic): runs[folder / f"{fault}-{topic}"] for fault in ("replace", "stop") for topic in TOPICS}


@pytest.mark.parametrize("topic", TOPICS)
def test_replacing_the_payloads_of_a_topic_changes_the_weights(
    reference_run: FinishedRun, disturbed_runs: Mapping[tuple[str, str], FinishedRun], topic: str
) -> None:
    outcome = disturbed_runs["replace", topic].outcome
    assert outcome.status == "done", outcome.reason
    assert outcome.weights_digest != reference_run.outcome.weights_digest


@pytest.mark.parametrize("topic", TOPICS)
def test_stopping_a_topic_is_noticed_and_named(
    disturbed_runs: Mapping[tuple[str, str], FinishedRun], topic: str
) -> None:
    outcome = disturbed_runs["stop", topic].outcome
    assert outcome.status == "failed"
    assert topic in outcome.reason


def children_by_name(parent: int) -> dict[str, psutil.Process]:
    """Worker nodes, coordinator, bridge and broker among the descendants of ``parent``."""
    found = {}
    for process in psutil.Process(parent).children(recursive=True):
        command = process.cmdline()
        if "swarm.node" in command:
            found[Path(command[-1]).stem] = process
        elif "env_bridge.server" in command:
            found["bridge"] = process
        elif "swarm.broker" in command:
            found["broker"] = process
    return found


@pytest.mark.parametrize("victim", ["node-1", "coordinator", "bridge", "broker"])
def test_killing_a_process_changes_nothing_but_is_reported(
    reference_run: FinishedRun, tmp_path: Path, victim: str
) -> None:
    killed: list[int] = []

    def kill(round_index: int) -> None:
        if round_index >= 3 and not killed:
            process = children_by_name(os.getpid())[victim]
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)

    run = train(tmp_path / "run", after_round=kill)
    assert killed
    assert run.outcome.status == "done", run.outcome.reason
    assert run.outcome.weights_digest == reference_run.outcome.weights_digest
    assert (victim, "restarted") in run.heard.processes


def test_a_run_that_lost_its_launcher_resumes_to_the_same_bits(reference_run: FinishedRun, tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-m", "scenarios", "run", "smoke", "--plain", "--out", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if any(int(kept.name[6:]) >= 1 for kept in (path / "checkpoints").glob("round-??????")):
                break
        orphans = list(children_by_name(process.pid).values())
        process.kill()
    assert orphans, "".join(seen)
    assert not psutil.wait_procs(orphans, timeout=3)[1]
    run = train(path, resume=True)
    assert run.outcome.status == "done", run.outcome.reason
    assert run.outcome.weights_digest == reference_run.outcome.weights_digest
