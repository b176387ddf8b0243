"""Meta-learning: combines all agents' gradients, prediction and MAML outer loop alike, behind guards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from agents.learning.aggregation import Aggregate
from agents.specialist import COMMON_SKILLS, Specialist, Work
from agents.world_work import combine_gradients
from swarm.agent import AgentContext
from swarm.messages import Award, Gradient, Json, Message
from swarm.topics import Topic


class MetaLearningAgent(Specialist):
    """Aggregator of the team's gradients."""

    role: ClassVar[str] = "meta"
    skills: ClassVar[frozenset[str]] = COMMON_SKILLS | {"aggregate"}

    def own_work(self) -> Mapping[str, Work]:
        """Aggregate gradients."""
        return {"aggregate": self._aggregate}

    async def _aggregate(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Wait for every member's gradient of this round, guard and combine them group by group, publish."""
        round_index = cast(int, award.terms["round"])
        groups = cast(Mapping[str, Sequence[str]], award.terms["groups"])
        keys = [(member, round_index) for members in groups.values() for member in members]
        found = await context.gather(Topic.GRADIENTS, member_key, keys, self.team.rounds.patience_s)
        skipped: list[str] = []
        for group, members in groups.items():
            gradients = [cast(Gradient, found[member, round_index]) for member in members]
            combined = await context.compute(self._combine, award.terms, context, group, gradients)
            skipped.extend(combined.skipped)
            context.publish(
                Gradient(
                    owner=group,
                    version=round_index,
                    kind="aggregate",
                    num_samples=combined.num_samples,
                    arrays=combined.arrays,
                )
            )
        return {"skipped": skipped}

    def _combine(
        self, terms: Mapping[str, Json], context: AgentContext, group: str, gradients: Sequence[Gradient]
    ) -> Aggregate:
        return combine_gradients(self.pinned(terms, context), group, gradients, cast(int, terms["round"]))


def member_key(message: Message) -> tuple[str, int] | None:
    """Key of a member's own gradient: the member and the round."""
    if not isinstance(message, Gradient) or message.kind != "member":
        return None
    return message.owner, message.version
