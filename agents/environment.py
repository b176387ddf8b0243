"""Environment: owns the bridge, the task distribution and the experience store; collects and evaluates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from safetensors.numpy import save

from agents.pinned import ENVIRONMENT_FILE
from agents.plan import NOMINAL
from agents.rollouts import (
    TASK_SIZE,
    chosen_tasks,
    collection_requests,
    episode_summary,
    evaluation_request,
    experience_columns,
    mark_cut_episodes,
    mean_rewards,
)
from agents.specialist import COMMON_SKILLS, Specialist, Work
from agents.trials import Played, episodes_played
from swarm.agent import AgentContext
from swarm.environment import Bridge, RolloutRequest, RolloutResult
from swarm.experience import ExperienceWriter, StreamSpec
from swarm.messages import Award, Evaluation, Json, RowsWritten
from swarm.policy import BLOCK_SIZE


class EnvironmentAgent(Specialist):
    """Collector, evaluator, and the only writer of experience."""

    role: ClassVar[str] = "environment"
    skills: ClassVar[frozenset[str]] = COMMON_SKILLS | {"initialise", "collect", "evaluate"}

    def own_work(self) -> Mapping[str, Work]:
        """Initialise a run, collect experience, evaluate members."""
        return {"initialise": self._initialise, "collect": self._collect, "evaluate": self._evaluate}

    async def _initialise(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Stage fresh members and world models, sized for the environment that the bridge describes."""
        from agents.pinned import fresh_files

        spec = await cast(Bridge, context.service("bridge")).describe(self.team.env_id)
        files: dict[str, Json] = {}
        for name, data in (await context.compute(fresh_files, self.team, spec)).items():
            files[name] = await context.compute(self.stage, context, 0, name, data)
        return {"files": files, "environment": asdict(spec)}

    def _stream_spec(self, stream: str, sizes: tuple[int, int]) -> StreamSpec:
        """Sizes of a stream that could hold the whole budget."""
        return StreamSpec(
            name=stream,
            observation_size=sizes[0],
            action_size=sizes[1],
            task_size=TASK_SIZE,
            capacity_steps=self.team.budget_steps // BLOCK_SIZE + 1,
        )

    async def _collect(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Let the seated members act for a stretch; write the rows, stage where the environments stand now."""
        terms = award.terms
        stream, round_index = cast(str, terms["stream"]), cast(int, terms["round"])
        pinned = await context.compute(self.pinned, terms, context)
        bridge = cast(Bridge, context.service("bridge"))
        requests = await context.compute(collection_requests, pinned, terms)
        parts = [(request, await bridge.rollout(request)) for request in requests]
        results = [result for _, result in parts]
        seats = cast(Sequence[str], terms["seats"])
        first_row = pinned.rows[stream]
        spec = self._stream_spec(stream, pinned.sizes)
        await context.compute(self._write, context.run_dir, spec, first_row, parts, seats)
        episodes = tuple(episode_summary(episode, seats) for result in results for episode in result.episodes)
        context.publish(
            RowsWritten(
                round_index=round_index,
                stream=stream,
                first_row=first_row,
                num_rows=sum(len(result.columns["reward"]) for result in results),
                seats=tuple(seats),
                episodes=episodes,
            )
        )
        files: dict[str, Json] = {}
        if stream == "nominal":
            data = save(dict(results[-1].snapshot))
            files[ENVIRONMENT_FILE] = await context.compute(self.stage, context, round_index, ENVIRONMENT_FILE, data)
        by_progress = stream == NOMINAL and self.team.train_tasks and self.team.trials.curriculum == "progress"
        return {
            "files": files,
            "steps": sum(result.num_steps for result in results),
            "episodes": episodes,
            "mean_rewards": mean_rewards(results, seats),
            **({"curriculum": chosen_tasks(self.team, requests)} if by_progress else {}),
        }

    def _write(
        self,
        run_dir: Path,
        spec: StreamSpec,
        first_row: int,
        parts: Sequence[tuple[RolloutRequest, RolloutResult]],
        seats: Sequence[str],
    ) -> None:
        columns = experience_columns(parts, [self.team.members.index(name) for name in seats])
        if spec.name == NOMINAL and self.team.train_tasks:
            mark_cut_episodes(columns, first_row, self.team.trials.steps)
        with ExperienceWriter(run_dir / "experience", spec) as writer:
            writer.write(first_row, columns)
            writer.flush()

    async def _evaluate(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Run deterministic episodes of the named members, at most one block of 8 at a time; publish the returns.

        In a run on several tasks these are trials: what counts of each is the mean over its episodes.
        """
        terms = award.terms
        members = cast(Sequence[str], terms["members"])
        pinned = await context.compute(self.pinned, terms, context)
        trials = bool(self.team.train_tasks)
        played: dict[str, list[Played]] = {name: [] for name in members}
        tasks: list[Json] = []
        steps = 0
        for block in range(cast(int, terms["blocks"])):
            seats = tuple(members[(block * BLOCK_SIZE + seat) % len(members)] for seat in range(BLOCK_SIZE))
            request = await context.compute(evaluation_request, pinned, terms, seats, block)
            result = await cast(Bridge, context.service("bridge")).rollout(request)
            steps += result.num_steps
            for row in episodes_played(result.episodes, self.team.trials.episodes if trials else 1):
                played[seats[row.environment]].append(row)
                if seats[row.environment] == members[0]:
                    tasks.append(asdict(request.tasks[row.environment]))
        first = played[members[0]]
        context.publish(
            Evaluation(
                judge=self.name,
                round_index=cast(int, terms["base"]),
                kind=f"return-{terms['purpose']}",
                scores={name: float(np.mean([row.mean_return for row in rows])) for name, rows in played.items()},
                details={
                    "distances": {
                        name: float(np.mean([row.mean_distance_m for row in rows])) for name, rows in played.items()
                    },
                    "resets": {name: pinned.member(name).scalars.resets for name in members},
                    "returns": [row.mean_return for row in first],
                    "episode_distances": [row.mean_distance_m for row in first],
                    "lengths": [row.mean_length for row in first],
                    "all_returns": {name: [row.mean_return for row in rows] for name, rows in played.items()},
                    **({"curves": [list(row.returns) for row in first], "tasks": tasks} if trials else {}),
                },
            )
        )
        return {"steps": steps}
