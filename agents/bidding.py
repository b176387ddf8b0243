"""What every member does when seats or lots are auctioned: hear all votes, then bid. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from agents.auctions import capacity_of, marginal_values, strengths
from agents.config import TeamConfig
from agents.training import evaluation_key
from swarm.agent import AgentContext
from swarm.messages import Announcement, Evaluation, Json, Proposal
from swarm.topics import Topic


async def bid_for_rights(name: str, announcement: Announcement, context: AgentContext, team: TeamConfig) -> Proposal:
    """Wait for the peers' votes of this round and bid for ``act`` or ``compute``.

    Raises:
        PeerLost: a vote did not arrive within the team's patience; the text names the missing judges.
    """
    terms = announcement.terms
    voters = cast(Sequence[str], terms["voters"])
    keys = [("vote", cast(int, terms["round"]), voter) for voter in voters]
    found = await context.gather(Topic.EVALUATIONS, evaluation_key, keys, team.rounds.patience_s)
    votes = {key[2]: cast(Evaluation, found[key]).scores for key in keys}
    strength = strengths(
        votes,
        cast(Mapping[str, float], terms["shares"]),
        cast(Mapping[str, float], terms["calibration"]),
        team.rounds.concentration,
        {member: team.discount_of(member) for member in team.members},
    )[name]
    members = cast(Sequence[Json], terms["members"])
    units = announcement.units
    if announcement.kind == "compute":
        units = capacity_of(units, team.rounds.max_share, len(members))
    return Proposal(
        task_id=announcement.task_id,
        epoch=announcement.epoch,
        agent=name,
        values=marginal_values(strength, units),
    )
