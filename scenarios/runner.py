"""Run a scenario and use what it trained: `run_scenario`, `evaluate_run`, `adapt_run`, `video_run`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import structlog

from agents.config import TeamConfig
from agents.records import deployed_member, newest_checkpoint
from scenarios.observer import AdaptationOutcome, EvaluationOutcome, Observer, ProcessEvent, RunOutcome
from scenarios.run_directory import RunDirectory
from scenarios.scenario import Scenario
from scenarios.wiring import bridge_alone, training_swarm
from swarm import Swarm, supervisor
from swarm.agent import Agent
from swarm.checkpoint import CheckpointStore, digest
from swarm.environment import Bridge, EpisodeStatistics, RolloutRequest, TaskParameters
from swarm.errors import SwarmError
from swarm.messages import RoundCommitted
from swarm.supervisor import Exited, GaveUp, Restarted

STATISTICS_S = 1.0
log = structlog.get_logger(__name__)


async def run_scenario(
    scenario: Scenario,
    run_dir: Path,
    *,
    observer: Observer,
    resume: bool = False,
    agents: Sequence[Agent] | None = None,
    inline: bool = False,
) -> RunOutcome:
    """Train ``scenario`` in ``run_dir`` from its newest committed round to the end of its budget.

    Args:
        agents: instead of the scenario's own, configured already; for instance with one more.
        inline: all agents in this process; only the bridge is a child.

    Raises:
        ConfigError: the scenario cannot be started.
        CheckpointError: ``resume`` is asked for and there is no valid checkpoint.
    """
    started_s = time.monotonic()
    if resume:
        newest_checkpoint(run_dir)
    observer.on_phase("starting the broker, the bridge and the agents")
    reason = ""
    swarm = training_swarm(
        scenario,
        run_dir,
        agents=agents,
        inline=inline,
        on_process_event=lambda event: observer.on_process(_note_of(event)),
    )
    async with swarm:
        observer.on_phase("training")
        listener = asyncio.create_task(_listen(swarm, observer), name="observe messages")
        ticker = asyncio.create_task(_tick(swarm, observer), name="observe statistics")
        try:
            await swarm.wait_finished()
        except SwarmError as error:
            reason = str(error)
        finally:
            ticker.cancel()
            listener.cancel()
            observer.on_statistics(swarm.statistics())
    outcome = _outcome(run_dir, reason, time.monotonic() - started_s)
    observer.on_end(outcome)
    return outcome


async def _listen(swarm: Swarm, observer: Observer) -> None:
    async for received in swarm.events():
        observer.on_message(received)
        if isinstance(received.message, RoundCommitted):
            observer.on_round(received.message.summary)


async def _tick(swarm: Swarm, observer: Observer) -> None:
    while True:
        await asyncio.sleep(STATISTICS_S)
        observer.on_statistics(swarm.statistics())


def _note_of(event: supervisor.ProcessEvent) -> ProcessEvent:
    if isinstance(event, Exited) and event.code == 0:
        return ProcessEvent(name=event.name, kind="ended")
    if isinstance(event, Exited):
        return ProcessEvent(name=event.name, kind="exited", detail=event.how)
    if isinstance(event, Restarted):
        return ProcessEvent(name=event.name, kind="restarted", detail=f"running again after {event.downtime_s:.1f} s")
    if isinstance(event, GaveUp):
        return ProcessEvent(name=event.name, kind="gave_up", detail=event.reason)
    return ProcessEvent(name=event.name, kind="started")


def _outcome(run_dir: Path, reason: str, wall_s: float) -> RunOutcome:
    manifest, _ = CheckpointStore(run_dir).latest()
    env_steps = 0
    if manifest is not None:
        ledger = cast(Mapping[str, int], CheckpointStore(run_dir).load_ledger(manifest)["ledger"])
        env_steps = ledger["env_steps"]
    return RunOutcome(
        run_dir=run_dir,
        status="failed" if reason else "done",
        round_index=manifest.round_index if manifest else 0,
        env_steps=env_steps,
        wall_s=wall_s,
        weights_digest=digest(manifest) if manifest else "",
        reason=reason,
    )


# --- what a finished run is used for ----------------------------------------------------------------------------------


async def evaluate_run(run_dir: Path, *, episodes: int = 10, seed: int | None = None) -> EvaluationOutcome:
    """Run deterministic episodes of the deployed member, in blocks of 8. Raises ``CheckpointError``."""
    from agents.pinned import Pinned
    from agents.rollouts import evaluation_blocks

    scenario, manifest = RunDirectory.open(run_dir).scenario(), newest_checkpoint(run_dir)
    member = deployed_member(run_dir, manifest)
    pinned = await asyncio.to_thread(Pinned, run_dir, scenario.team, manifest.round_index)
    requests = await asyncio.to_thread(evaluation_blocks, pinned, member, episodes, seed)
    async with bridge_alone(scenario, run_dir / "logs" / "evaluate.log") as bridge:
        rows = [row for request in requests for row in await _episodes(bridge, request)]
    return EvaluationOutcome(
        member=member,
        round_index=manifest.round_index,
        returns=tuple(row.total_reward for row in rows[:episodes]),
        distances=tuple(row.distance_m for row in rows[:episodes]),
        lengths=tuple(row.length for row in rows[:episodes]),
    )


async def _episodes(bridge: Bridge, request: RolloutRequest) -> list[EpisodeStatistics]:
    result = await bridge.rollout(request)
    return sorted(result.episodes, key=lambda row: row.environment)


async def adapt_run(run_dir: Path, shift: TaskParameters, *, seed: int | None = None) -> AdaptationOutcome:
    """Adapt the deployed member to ``shift`` at test time, accepting only what re-evaluates better."""
    from agents.adaptation import adapt_policy
    from agents.pinned import Pinned

    scenario, manifest = RunDirectory.open(run_dir).scenario(), newest_checkpoint(run_dir)
    team: TeamConfig = scenario.team
    member = deployed_member(run_dir, manifest)
    pinned = await asyncio.to_thread(Pinned, run_dir, team, manifest.round_index)
    weights = {name: await asyncio.to_thread(pinned.acting_weights, name) for name in team.members}
    label = f"adapt-{seed or 0}"
    task = _under(team.task, shift)
    async with bridge_alone(scenario, run_dir / "logs" / "adapt.log") as bridge:
        result = await adapt_policy(bridge, team, weights, incumbent=member, task=task, label=label)
    nominal = TaskParameters()
    factors = {key: getattr(shift, key) for key in TaskParameters.__dataclass_fields__}
    return AdaptationOutcome(
        member=result.member,
        shift={key: float(value) for key, value in factors.items() if value != getattr(nominal, key)},
        accepted=result.decision.accepted,
        before=float(result.before.mean()),
        after=float(result.after.mean()),
        steps=result.account.steps,
        details={
            "reason": result.decision.reason,
            "probes": result.account.episodes,
            "before_returns": result.before.tolist(),
            "after_returns": result.after.tolist(),
            "adapter": {key: value.tolist() for key, value in result.adapter.items()},
        },
    )


def _under(task: TaskParameters, shift: TaskParameters) -> TaskParameters:
    """Return ``task`` with everything that ``shift`` changes."""
    nominal = TaskParameters()
    changed = {
        f.name: getattr(shift, f.name) for f in fields(shift) if getattr(shift, f.name) != getattr(nominal, f.name)
    }
    return replace(task, **changed)


async def video_run(run_dir: Path, output: Path | None = None) -> Path:
    """Film one episode of the deployed member and return the MP4's path.

    Raises:
        CheckpointError: nothing is committed.
        ConfigError: rendering is not possible here; the text says which Debian package it needs.
    """
    from agents.pinned import Pinned
    from agents.rollouts import video_request
    from env_bridge.render import render_video

    scenario, manifest = RunDirectory.open(run_dir).scenario(), newest_checkpoint(run_dir)
    pinned = await asyncio.to_thread(Pinned, run_dir, scenario.team, manifest.round_index)
    request = await asyncio.to_thread(video_request, pinned, deployed_member(run_dir, manifest))
    async with bridge_alone(scenario, run_dir / "logs" / "video.log") as bridge:
        result = await bridge.rollout(request)
    length = min(row.length for row in result.episodes if row.environment == 0)
    target = output or RunDirectory(run_dir).video_file
    positions = np.asarray(result.columns["qpos"][:length, 0], np.float64)
    return await asyncio.to_thread(render_video, positions, scenario.team.env_id, target)
