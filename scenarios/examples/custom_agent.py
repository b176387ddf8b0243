"""A sixth agent that bids on work and wins it: ``python -m scenarios.examples.custom_agent``.

The coordinator trains nothing itself; whoever bids best trains its member. The specialists bid what they have left
over; this trainer has nothing else to do.
"""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar

os.environ["OMP_NUM_THREADS"] = "1"  # all agents compute in this process, and promise the same bits

from agents import AdaptationAgent, MetaLearningAgent, StateModelingAgent
from agents.specialist import Specialist
from scenarios import CollaborativeLearning, load_preset
from scenarios.run_directory import RunDirectory
from scenarios.run_records import read_history
from swarm import AgentContext, Announcement, Proposal, Refusal


class TrainerAgent(Specialist):
    """Trains the coordinator's member, cheaper than anybody else."""

    role: ClassVar[str] = "trainer"
    skills: ClassVar[frozenset[str]] = frozenset({"learn"})

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        """Bid on training the coordinator's member, leave the others to their owners."""
        task_id, epoch = announcement.task_id, announcement.epoch
        if announcement.terms["member"] != "coordinator":
            return Refusal(task_id=task_id, epoch=epoch, agent=self.name, reason="its owner trains it")
        return Proposal(task_id=task_id, epoch=epoch, agent=self.name, values=(1.0,), cost=0.1)


async def main() -> None:
    """Run the preset ``smoke`` with the five specialists and the trainer."""
    team = [MetaLearningAgent(), AdaptationAgent(), StateModelingAgent(), TrainerAgent()]
    result = await CollaborativeLearning(team).solve_task(scenario=load_preset("smoke"), steps=1_600)
    performed = read_history(RunDirectory(result.outcome.run_dir)).performed()
    print(f"the trainer won {performed.get('trainer', 0)} contracts; all: {performed}")


if __name__ == "__main__":
    asyncio.run(main())
