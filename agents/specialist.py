"""What the four training specialists have in common: vote, bid, train a member on award.

Each specialist file adds the work that only it does, as a table from kind of work to method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, cast

from agents.bidding import bid_for_rights
from agents.config import TeamConfig
from agents.pinned import Pinned, pinned_round
from agents.trainer import Trainer
from agents.world_work import member_gradients
from swarm.agent import Agent, AgentContext
from swarm.checkpoint import CheckpointStore
from swarm.errors import PeerLost
from swarm.messages import Announcement, Award, Evaluation, Gradient, Json, ParameterVersion, Proposal, Refusal
from swarm.topics import Topic

Work = Callable[[Award, AgentContext], Awaitable[Mapping[str, Json]]]
COMMON_SKILLS = frozenset({"act", "compute", "learn"})


class Specialist(Agent):
    """An agent that owns a member, judges its peers and trains on award."""

    skills: ClassVar[frozenset[str]] = COMMON_SKILLS
    listens: ClassVar[frozenset[Topic]] = frozenset({Topic.EVALUATIONS, Topic.GRADIENTS})

    def __init__(self, name: str | None = None, options: Mapping[str, Json] | None = None) -> None:
        super().__init__(name, options)
        self.team = TeamConfig.from_json(self.options)

    def own_work(self) -> Mapping[str, Work]:
        """Return the kinds of work that only this specialist does."""
        return {}

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        """Bid: by votes for seats and lots, by ownership and load for training, outright for the own kinds of work."""
        if announcement.kind in ("act", "compute"):
            return await self._bid_for_rights(announcement, context)
        value = self._value_of_training(announcement.terms) if announcement.kind == "learn" else 1.0
        return Proposal(task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, values=(value,))

    async def _bid_for_rights(self, announcement: Announcement, context: AgentContext) -> Proposal | Refusal:
        """Vote, hear the others' votes, bid; refuse where this agent's member does not learn or a judge is missing."""
        try:
            if self.name not in self.team.members:
                reason = "owns no member that learns"
            else:
                if announcement.kind == "act":
                    await self._vote(announcement.terms, context)
                return await bid_for_rights(self.name, announcement, context, self.team)
        except PeerLost as error:
            reason = str(error)
        return Refusal(task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, reason=reason)

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Do what was awarded."""
        if award.kind in ("act", "compute"):
            return {"member": self.name, "units": award.units}
        if award.kind == "learn":
            return await self._learn(award, context)
        return await self.own_work()[award.kind](award, context)

    def pinned(self, terms: Mapping[str, Json], context: AgentContext) -> Pinned:
        """Return what is committed as of the terms' base round; blocking, for the compute thread."""
        return pinned_round(context.run_dir, self.team, cast(int, terms["base"]))

    def stage(self, context: AgentContext, round_index: int, name: str, data: bytes) -> str:
        """Write a file of round ``round_index`` for the coordinator to commit; return its sha256. Blocking."""
        return CheckpointStore(context.run_dir).stage(round_index, name, data)

    def _value_of_training(self, terms: Mapping[str, Json]) -> float:
        """Who the coordinator's balance of processes names is worth most, then the owner, then anybody."""
        if terms["home"] == self.name:
            return 1.0 if terms["member"] == self.name else 0.8
        return 0.6 if terms["member"] == self.name else 0.4

    async def _vote(self, terms: Mapping[str, Json], context: AgentContext) -> None:
        """Publish what this member's critics say of every member's actions on the newest observations."""
        round_index = cast(int, terms["round"])
        scores = await context.compute(self._judge, terms, context)
        context.publish(Evaluation(judge=self.name, round_index=round_index, kind="vote", scores=scores))

    def _judge(self, terms: Mapping[str, Json], context: AgentContext) -> dict[str, float]:
        return self.pinned(terms, context).votes(self.name, cast(Sequence[str], terms["members"]))

    async def _learn(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Publish the member's gradients of the world model, then train the member lot by lot."""
        terms = award.terms
        round_index, member = cast(int, terms["round"]), cast(str, terms["member"])
        pinned = await context.compute(self.pinned, terms, context)
        gradients = await context.compute(member_gradients, pinned, member, round_index)
        context.publish(
            Gradient(
                owner=member,
                version=round_index,
                kind="member",
                num_samples=gradients.num_samples,
                arrays=gradients.arrays,
            )
        )
        updates = cast(int, terms["updates"])
        trainer = await context.compute(Trainer, pinned, member, round_index)
        for _ in range(updates // self.team.rounds.lot):
            await context.compute(trainer.train, self.team.rounds.lot)
        if updates == 0:
            return {"files": {}, "updates": 0, "metrics": {}}
        name = f"member-{member}.safetensors"
        digest = await context.compute(self.stage, context, round_index, name, trainer.to_bytes())
        context.publish(
            ParameterVersion(
                owner=member, version=round_index, digest=digest, arrays=await context.compute(trainer.acting_weights)
            )
        )
        return {"files": {name: digest}, "updates": updates, "metrics": trainer.metrics()}
