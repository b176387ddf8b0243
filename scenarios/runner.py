"""Run a scenario and use what it trained: `run_scenario`, `evaluate_run`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import structlog

from agents.records import deployed_member, newest_checkpoint
from agents.trials import episodes_played
from scenarios.observer import EvaluationOutcome, Observer, ProcessEvent, RunOutcome
from scenarios.run_directory import RunDirectory
from scenarios.scenario import Scenario
from scenarios.wiring import bridge_alone, training_swarm
from swarm import Swarm, supervisor
from swarm.agent import Agent
from swarm.checkpoint import CheckpointStore, digest
from swarm.errors import ConfigError, SwarmError
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
        ConfigError: the scenario cannot be started, and there is no committed round that an outcome could tell of.
        CheckpointError: ``resume`` is asked for and there is no valid checkpoint, or none of these settings.
    """
    started_s = time.monotonic()
    if resume:
        await asyncio.to_thread(_check_checkpoint, scenario, run_dir)
    observer.on_phase("starting the broker, the bridge and the agents")
    failure: SwarmError | None = None
    is_up = False
    swarm = training_swarm(
        scenario,
        run_dir,
        agents=agents,
        inline=inline,
        on_process_event=lambda event: observer.on_process(_note_of(event)),
    )
    try:
        async with swarm:
            is_up = True
            observer.on_phase("training")
            async with _observed(swarm, observer):
                await swarm.wait_finished()
    except SwarmError as error:  # a coordinator that is up first may end the run before all others are
        if not is_up and CheckpointStore(run_dir).latest()[0] is None:
            raise
        failure = error
    outcome = _outcome(run_dir, failure, time.monotonic() - started_s)
    observer.on_end(outcome)
    return outcome


def _check_checkpoint(scenario: Scenario, run_dir: Path) -> None:
    """Read what is continued from here, so that what no agent could use is known before any is started."""
    from agents.pinned import check_round

    check_round(run_dir, scenario.team, newest_checkpoint(run_dir).round_index)


@contextlib.asynccontextmanager
async def _observed(swarm: Swarm, observer: Observer) -> AsyncIterator[None]:
    """Tell ``observer`` of messages and counts meanwhile; what it raises ends the body and is raised here."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = (
                group.create_task(_listen(swarm, observer), name="observe messages"),
                group.create_task(_tick(swarm, observer), name="observe statistics"),
            )
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                observer.on_statistics(swarm.statistics())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


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


def _outcome(run_dir: Path, failure: SwarmError | None, wall_s: float) -> RunOutcome:
    manifest, _ = CheckpointStore(run_dir).latest()
    env_steps = 0
    if manifest is not None:
        ledger = cast(Mapping[str, int], CheckpointStore(run_dir).load_ledger(manifest)["ledger"])
        env_steps = ledger["env_steps"]
    return RunOutcome(
        run_dir=run_dir,
        status="failed" if failure else "done",
        round_index=manifest.round_index if manifest else 0,
        env_steps=env_steps,
        wall_s=wall_s,
        weights_digest=digest(manifest) if manifest else "",
        reason=str(failure or ""),
        user_error=isinstance(failure, ConfigError),
    )


# --- what a finished run is used for ----------------------------------------------------------------------------------


async def evaluate_run(run_dir: Path, *, episodes: int = 10, seed: int | None = None) -> EvaluationOutcome:
    """Run deterministic episodes (or trials) of the deployed member, in blocks of 8. Raises ``CheckpointError``."""
    from agents.pinned import Pinned
    from agents.rollouts import evaluation_blocks

    scenario, manifest = RunDirectory.open(run_dir).scenario(), newest_checkpoint(run_dir)
    member = deployed_member(run_dir, manifest)
    pinned = await asyncio.to_thread(Pinned, run_dir, scenario.team, manifest.round_index)
    requests = await asyncio.to_thread(evaluation_blocks, pinned, member, episodes, seed)
    async with bridge_alone(scenario.workers, run_dir / "logs" / "evaluate.log") as bridge:
        results = [await bridge.rollout(request) for request in requests]
    trials = bool(scenario.team.train_tasks)
    number = scenario.team.trials.episodes if trials else 1
    rows = [row for result in results for row in episodes_played(result.episodes, number)][:episodes]
    return EvaluationOutcome(
        member=member,
        round_index=manifest.round_index,
        returns=tuple(row.mean_return for row in rows),
        distances=tuple(row.mean_distance_m for row in rows),
        lengths=tuple(row.mean_length for row in rows),
        curves=tuple(row.returns for row in rows) if trials else (),
    )
