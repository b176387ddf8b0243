"""State modelling: owns the shared SSM encoder and dynamics model; applies the team's gradients, publishes versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from agents.pinned import world_file
from agents.specialist import COMMON_SKILLS, Specialist, Work
from agents.world_work import NextWorld, apply_to_world
from swarm.agent import AgentContext
from swarm.messages import Arrays, Award, Gradient, Json, Message, ParameterVersion
from swarm.topics import Topic


class StateModelingAgent(Specialist):
    """Keeper of the world models."""

    role: ClassVar[str] = "state"
    skills: ClassVar[frozenset[str]] = COMMON_SKILLS | {"model"}

    def own_work(self) -> Mapping[str, Work]:
        """Apply aggregated gradients."""
        return {"model": self._model}

    async def _model(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Wait for the aggregate of each group, apply it, stage the new world model and measure it."""
        terms = award.terms
        round_index = cast(int, terms["round"])
        groups = cast(Mapping[str, Sequence[str]], terms["groups"])
        found = await context.gather(
            Topic.GRADIENTS,
            aggregate_key,
            [(group, round_index) for group in groups],
            self.team.rounds.patience_s,
        )
        files: dict[str, Json] = {}
        measured: Mapping[str, Json] = {}
        troubles: list[str] = []
        for group in groups:
            aggregate = cast(Gradient, found[group, round_index])
            made = await context.compute(self._apply, terms, context, group, aggregate.arrays)
            digests = {
                name: await context.compute(self.stage, context, round_index, name, data)
                for name, data in made.files.items()
            }
            digest = digests[world_file(group)]
            context.publish(
                ParameterVersion(owner=f"world-{group}", version=round_index, digest=digest, arrays=made.weights)
            )
            files |= digests
            measured = measured or made.quality
            troubles.extend(made.troubles)
        return {"files": files, "world": {**measured, **({"troubles": troubles} if troubles else {})}}

    def _apply(self, terms: Mapping[str, Json], context: AgentContext, group: str, gradients: Arrays) -> NextWorld:
        return apply_to_world(self.pinned(terms, context), group, gradients, cast(int, terms["round"]))


def aggregate_key(message: Message) -> tuple[str, int] | None:
    """Key of an aggregated gradient: its group of members and its round."""
    if not isinstance(message, Gradient) or message.kind != "aggregate":
        return None
    return message.owner, message.version
