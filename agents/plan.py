"""What a round consists of: pure decisions of the coordinator, without clock, torch or waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agents.auctions import even_lots, rotating_seats
from agents.config import TeamConfig
from swarm.policy import BLOCK_SIZE

NOMINAL = "nominal"
SHIFTED = "shifted"
SHARED = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """The contracts of one round.

    Attributes:
        index: round number, from 1.
        base: the committed round that it reads, ``index − 1``.
        random: true while actions are uniformly random and nobody trains a policy.
        steps: environment steps to collect per stream (a multiple of the block size).
        lots: lots of updates to distribute.
        groups: members by shared world model, in reduction order.
        evaluate: whether all members are evaluated (at version ``base``).
        adapt: whether the adaptation agent runs a test-time trial.
        exchange: whether members exchange votes, rows and gradients.
    """

    index: int
    base: int
    random: bool
    steps: Mapping[str, int]
    lots: int
    groups: Mapping[str, tuple[str, ...]]
    evaluate: bool
    adapt: bool
    exchange: bool

    @property
    def num_steps(self) -> int:
        """Environment steps of the round, over all streams."""
        return sum(self.steps.values())


def groups_of(team: TeamConfig) -> dict[str, tuple[str, ...]]:
    """Return the members by the world model that they share: one group, or one each where nothing is exchanged."""
    if team.mode == "independent":
        return {name: (name,) for name in team.members}
    return {SHARED: team.members}


def group_of(team: TeamConfig, member: str) -> str:
    """Return the name of the world model that ``member`` uses."""
    return member if team.mode == "independent" else SHARED


def plan_round(team: TeamConfig, index: int, env_steps: int) -> RoundPlan:
    """Return the plan of round ``index``, given the environment steps committed before it."""
    rounds = team.rounds
    due = {
        "shifted": rounds.shifted_every > 0 and index % rounds.shifted_every == 0,
        "evaluate": rounds.evaluate_every > 0 and index % rounds.evaluate_every == 0,
        "adapt": rounds.adapt_every > 0 and index % rounds.adapt_every == 0,
    }
    random = env_steps < rounds.random_steps or index == 1  # nobody can vote or train before there are rows
    budget = team.budget_steps - env_steps
    steps = {NOMINAL: min(rounds.steps, _whole_blocks(budget))}
    left = _whole_blocks(budget - steps[NOMINAL])
    if due["shifted"] and left >= BLOCK_SIZE:
        steps[SHIFTED] = min(rounds.shifted_steps, left)
    return RoundPlan(
        index=index,
        base=index - 1,
        random=random,
        steps=steps,
        lots=0 if random else round(sum(steps.values()) * rounds.updates_per_step / rounds.lot),
        groups=groups_of(team),
        evaluate=due["evaluate"] and not random,
        adapt=due["adapt"] and not random and "adaptation" in team.agents,
        exchange=team.mode != "independent" and len(team.members) > 1,
    )


def fixed_seats(team: TeamConfig, first_step: int) -> tuple[str, ...]:
    """Return who acts where nobody bids; members change seats once an episode length."""
    return rotating_seats(team.members, BLOCK_SIZE, first_step // team.rounds.seat_steps)


def fixed_lots(team: TeamConfig, plan: RoundPlan) -> dict[str, int]:
    """Return lots where nobody bids: the same for all."""
    return even_lots(team.members, plan.lots, plan.index)


def training_homes(lots: Mapping[str, int], processes: Mapping[str, int]) -> dict[str, str]:
    """Return which agent should train each member, so that processes carry about equal loads.

    Longest processing time first (Graham 1969): the largest contract goes to the least loaded process, to the member's
    owner where it lives there. Who trains never changes the result, only how long the round takes.

    Args:
        lots: lots per member.
        processes: process of each agent that can train.
    """
    load = dict.fromkeys(processes.values(), 0)
    homes = {}
    for member in sorted(lots, key=lambda name: (-lots[name], name)):
        process = min(sorted(load), key=lambda p: (load[p], p != processes.get(member)))
        load[process] += lots[member]
        hosts = sorted(name for name in processes if processes[name] == process)
        homes[member] = member if member in hosts else hosts[0]
    return homes


def finished(team: TeamConfig, env_steps: int) -> bool:
    """Return whether the budget is spent (to less than one step of the whole block)."""
    return team.budget_steps - env_steps < BLOCK_SIZE


def _whole_blocks(steps: int) -> int:
    return max(0, steps // BLOCK_SIZE * BLOCK_SIZE)
