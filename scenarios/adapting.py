"""Adapt what a run trained to other tasks, and use what came of it: `adapt_run`, `evaluate_adapted`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents.config import AdaptConfig, TeamConfig
from agents.deployment import (
    AdaptedPolicy,
    adapted_path,
    deployed_blocks,
    load_adapted,
    save_adapted,
)
from agents.records import deployed_member, newest_checkpoint
from agents.trials import episodes_played
from env_bridge.tasks import check_task_fits, combine, task_to_json
from scenarios.observer import AdaptationOutcome, EvaluationOutcome
from scenarios.run_directory import RunDirectory
from scenarios.wiring import bridge_alone
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import ConfigError


async def adapt_run(
    run_dir: Path,
    shifts: Sequence[TaskParameters],
    *,
    config: AdaptConfig | None = None,
    seed: int = 0,
    save_as: str | None = None,
) -> list[AdaptationOutcome]:
    """Adapt the deployed member to each of ``shifts``, from the same start, accepting only what re-evaluates better.

    Args:
        shifts: what changes against the task that the run trained on.
        config: how; ``None``: as the run's scenario says.
        seed: names the episodes and the random streams.
        save_as: name under which an accepted policy is saved; only with a single shift.

    Raises:
        ConfigError: a task that the robot cannot do, a bad name, or one name for several policies.
        CheckpointError: there is no valid checkpoint.
    """
    from agents.adaptable import AdaptableTeam
    from agents.adaptation import Adaptation
    from agents.pinned import Pinned

    scenario, manifest = RunDirectory.open(run_dir).scenario(), newest_checkpoint(run_dir)
    team: TeamConfig = scenario.team
    tasks = [check_task_fits(combine(team.task, shift), team.env_id) for shift in shifts]
    if save_as is not None:
        adapted_path(run_dir, save_as)
        if len(tasks) != 1:
            raise ConfigError(
                f"one name, {save_as!r}, cannot save the policies of {len(tasks)} tasks; adapt to one task"
            )
    settings = config or team.adapt
    member = deployed_member(run_dir, manifest)
    pinned = await asyncio.to_thread(Pinned, run_dir, team, manifest.round_index)
    source = AdaptableTeam(pinned)
    outcomes = []
    async with bridge_alone(scenario.workers, run_dir / "logs" / "adapt.log") as bridge:
        for shift, task in zip(shifts, tasks, strict=True):
            adaptation = Adaptation(bridge, team, source, settings, label=f"adapt-{seed}", compute=asyncio.to_thread)
            result = await adaptation.run(member, task)
            saved = None
            if save_as is not None and result.decision.accepted:
                policy = AdaptedPolicy(
                    deployment=result.deployment,
                    task=task,
                    env_id=team.env_id,
                    round_index=manifest.round_index,
                    level=settings.level,
                )
                saved = await asyncio.to_thread(save_adapted, run_dir, save_as, policy)
            outcomes.append(
                AdaptationOutcome(
                    member=result.candidate.member,
                    shift=task_to_json(shift),
                    level=settings.level,
                    online=settings.online,
                    accepted=result.decision.accepted,
                    reason=result.decision.reason,
                    before=tuple(result.before.tolist()),
                    after=tuple(result.after.tolist()),
                    curve=tuple(tuple(row) for row in result.curve.tolist()),
                    probes=result.account.episodes,
                    steps=result.account.steps,
                    saved=None if saved is None else str(saved),
                )
            )
    return outcomes


async def evaluate_adapted(run_dir: Path, name: str, *, episodes: int = 10, seed: int = 0) -> EvaluationOutcome:
    """Run deterministic episodes of an adapted policy under the task that it adapted to.

    Raises:
        ConfigError: the run has no adapted policy of that name, or it belongs to another environment.
        CheckpointError: its file is damaged.
    """
    adapted, requests = _requests(run_dir, name, episodes, seed)
    scenario = RunDirectory.open(run_dir).scenario()
    async with bridge_alone(scenario.workers, run_dir / "logs" / "evaluate.log") as bridge:
        results = [await bridge.rollout(request) for request in requests]
    rows = [row for result in results for row in episodes_played(result.episodes, 1)][:episodes]
    return EvaluationOutcome(
        member=adapted.deployment.member,
        round_index=adapted.round_index,
        returns=tuple(row.mean_return for row in rows),
        distances=tuple(row.mean_distance_m for row in rows),
        lengths=tuple(row.mean_length for row in rows),
    )


def adapted_request(run_dir: Path, name: str) -> RolloutRequest:
    """Return a block of episodes of an adapted policy with positions, for a film. Raises as `evaluate_adapted`."""
    return replace(_requests(run_dir, name, 1, 0)[1][0], record_qpos=True)


def _requests(run_dir: Path, name: str, episodes: int, seed: int) -> tuple[AdaptedPolicy, list[RolloutRequest]]:
    team = RunDirectory.open(run_dir).scenario().team
    adapted = load_adapted(run_dir, name)
    if adapted.env_id != team.env_id:
        raise ConfigError(f"adapted policy {name!r} is for {adapted.env_id}, the run for {team.env_id}")
    task = check_task_fits(adapted.task, team.env_id)
    limit = team.rounds.evaluation_steps
    return adapted, deployed_blocks(team, adapted.deployment, task, episodes, seed, max_steps=limit)
