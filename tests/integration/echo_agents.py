"""Small real agents for tests that cross processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import ClassVar, cast

from swarm.agent import Agent, AgentContext
from swarm.errors import ConfigError
from swarm.messages import Announcement, Award, Json, Proposal, Refusal, Submission


class EchoAgent(Agent):
    """Bids the value in its options and says who it is and what it was told.

    Kinds of work: ``echo`` at once; ``hang_once`` never ends where no file ``hung`` exists yet; ``fail`` raises.
    """

    role: ClassVar[str] = "echo"
    skills: ClassVar[frozenset[str]] = frozenset({"echo", "hang_once", "fail"})

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        value = cast(float, self.options.get("value", 1.0))
        return Proposal(
            task_id=announcement.task_id,
            epoch=announcement.epoch,
            agent=self.name,
            values=(value,) * min(announcement.units, self.capacity),
        )

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        if award.kind == "fail":
            raise ValueError("this work always fails")
        if award.kind == "hang_once":
            marker = context.run_dir / "hung"
            if not marker.exists():
                marker.write_text(f"{self.name} {os.getpid()}")
                await asyncio.Event().wait()
        text = await context.compute(str.upper, cast(str, award.terms.get("text", "")))
        return {"text": text, "agent": self.name, "process_id": os.getpid()}


class RoundsAgent(Agent):
    """A coordinator with a run of its own: it has a few echoes made and writes down what came back."""

    role: ClassVar[str] = "coordinator"
    manages: ClassVar[bool] = True

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        return Refusal(task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, reason="it manages")

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        raise AssertionError("it never bids")

    async def run(self, context: AgentContext) -> None:
        if self.options.get("complaint"):
            raise ConfigError(cast(str, self.options["complaint"]))
        lines = []
        for index in range(3):
            task = Submission(
                task_id=f"r{index}.echo", kind="echo", submitter=self.name, terms={"text": f"round {index}"}
            )
            ended = await context.submit(task)
            lines.extend(cast(str, result["text"]) for result in ended.results.values())
        await context.compute((context.run_dir / "rounds.txt").write_text, "\n".join(lines))


class Outsider:
    """Importable, but not an agent."""
