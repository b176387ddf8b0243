"""The coordinator: budget ledger, auctions, commit. It decides only; its process imports no torch.

Its member is trained by whoever wins that contract, and bids with what the other members' critics say of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import ClassVar

from agents.bidding import bid_for_rights
from agents.config import TeamConfig
from agents.records import RunRecords
from agents.training import TrainingRun
from swarm.agent import Agent, AgentContext
from swarm.messages import Announcement, Award, Json, Proposal, Refusal
from swarm.topics import Topic


class CoordinatorAgent(Agent):
    """Manager of the contract net and of the training rounds."""

    role: ClassVar[str] = "coordinator"
    skills: ClassVar[frozenset[str]] = frozenset({"act", "compute"})
    listens: ClassVar[frozenset[Topic]] = frozenset({Topic.EVALUATIONS, Topic.PRESENCE, Topic.PROPOSALS})
    manages: ClassVar[bool] = True

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        """Bid for seats and lots of the coordinator's own member, if it learns."""
        team = TeamConfig.from_json(self.options)
        if self.name not in team.members:
            reason = "owns no member that learns"
            return Refusal(task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, reason=reason)
        return await bid_for_rights(self.name, announcement, context, team)

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Take note of seats or lots won; the work itself is contracted by the rounds."""
        return {"member": self.name, "units": award.units}

    async def run(self, context: AgentContext) -> None:
        """Drive the training from the newest committed round to the end."""
        team = TeamConfig.from_json(self.options)
        await TrainingRun(team, context, RunRecords(context.run_dir), lifetime=time.time_ns()).drive()
