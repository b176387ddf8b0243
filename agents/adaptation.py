"""Test-time adaptation: live some episodes under a shift, and deploy what came of it only if it re-evaluates better.

Letters in this file: K episodes before the re-evaluation, E environments (one block of 8), S policy state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from agents.config import AdaptConfig, TeamConfig
from agents.deployment import Deployment, block_request
from agents.learning.test_time import (
    Decision,
    ProbeAccount,
    accept_if_better,
    choose_arm,
    move_center,
    plan_life,
    propose_candidates,
    seat_arms,
)
from agents.randomness import generator, stream_key
from agents.rollouts import mean_returns, shifted_tasks
from agents.specialist import COMMON_SKILLS, Specialist, Work
from swarm.agent import AgentContext
from swarm.environment import Bridge, RolloutResult, TaskParameters
from swarm.messages import Arrays, Award, Evaluation, Json
from swarm.policy import BLOCK_SIZE

if TYPE_CHECKING:
    from agents.adaptable import AdaptableTeam

MAX_ADAPTED_ACTIONS = 8
Compute = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdaptationResult:
    """What a test-time adaptation came to.

    Attributes:
        before: returns of the unadapted policy on the re-evaluation episodes, (n,).
        after: returns of the adapted policy on as many episodes from the same starts, (n,).
        curve: returns (K, E) of the episodes that led there, as they were lived, probes included.
        deployment: what is deployed: the adapted policy where accepted, else the incumbent as it was.
        candidate: the adapted policy.
        account: episodes and environment steps used, re-evaluation included.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    curve: NDArray[np.float64]
    decision: Decision
    deployment: Deployment
    candidate: Deployment
    account: ProbeAccount


class AdaptationAgent(Specialist):
    """Keeper of the guard: what does not re-evaluate better is not deployed."""

    role: ClassVar[str] = "adaptation"
    skills: ClassVar[frozenset[str]] = COMMON_SKILLS | {"adapt"}

    def own_work(self) -> Mapping[str, Work]:
        """Adapt under a shift."""
        return {"adapt": self._adapt}

    async def _adapt(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Try to adapt the best member to one shifted task of this round; publish the verdict.

        What training goes on with stays as it is: this tells how well the team of this round adapts.
        """
        from agents.adaptable import AdaptableTeam

        terms = award.terms
        round_index = cast(int, terms["round"])
        task = shifted_tasks(self.team, stream_key(self.team.seed, "adapt", round_index))[0]
        pinned = await context.compute(self.pinned, terms, context)
        adaptation = Adaptation(
            cast(Bridge, context.service("bridge")),
            self.team,
            AdaptableTeam(pinned),
            self.team.adapt,
            label=f"round-{round_index}",
            compute=context.compute,
        )
        result = await adaptation.run(cast(str, terms["member"]), task)
        accepted = result.decision.accepted
        before, after = float(result.before.mean()), float(result.after.mean())
        context.publish(
            Evaluation(
                judge=self.name,
                round_index=round_index,
                kind="adaptation",
                scores={"before": before, "after": after},
                details={"accepted": accepted, "reason": result.decision.reason},
            )
        )
        return {
            "accepted": accepted,
            "reason": result.decision.reason,
            "member": result.deployment.member,
            "level": self.team.adapt.level,
            "before": before,
            "after": after,
            "probes": result.account.episodes,
            "steps": result.account.steps,
        }


class Adaptation:
    """One adaptation: K blocks of episodes that are lived and learned from, then blocks of re-evaluation; all counted.

    Args:
        source: members of the round that is adapted (`agents.adaptable.AdaptableTeam`).
        label: names the random streams.
        compute: runs what blocks, as ``await compute(function, *arguments)``.
    """

    def __init__(
        self,
        bridge: Bridge,
        team: TeamConfig,
        source: AdaptableTeam,
        config: AdaptConfig,
        *,
        label: str,
        compute: Compute,
    ) -> None:
        self._bridge, self._team, self._source, self._config = bridge, team, source, config
        self._label, self._compute = label, compute
        self._account = ProbeAccount()
        self._memory: NDArray[np.float32] | None = None
        self._seated: Sequence[Deployment] = ()

    async def run(self, incumbent: str, task: TaskParameters) -> AdaptationResult:
        """Adapt from ``incumbent``, the member that is deployed without adaptation, to ``task``."""
        config = self._config
        chosen = await self._first_choice(incumbent)
        centre = np.zeros(adapter_size(chosen.weights), np.float32)
        rng = generator(self._team.seed, self._label, "candidates")
        lived = []
        for purpose in plan_life(config.level, config.episodes):
            if purpose == "probe":
                arms = await self._arms(incumbent)
                seats = seat_arms(len(arms), BLOCK_SIZE)
                returns, result = await self._live([arms[arm] for arm in seats], task)
                chosen = arms[choose_arm(seats, returns)]
            elif purpose == "climb":
                candidates = propose_candidates(rng, centre, config.sigma, BLOCK_SIZE)
                returns, result = await self._live([with_adapter(chosen, row) for row in candidates], task)
                centre = move_center(centre, candidates, returns)
            else:
                returns, result = await self._live([chosen] * BLOCK_SIZE, task)
            if chosen.lookahead is not None and not config.online:
                chosen = await self._compute(self._source.adapted, chosen, result, config)
            lived.append(returns)
        candidate = with_adapter(chosen, centre)
        if self._memory is not None and self._fits(candidate):
            candidate = replace(candidate, memory=self._memory)
        return await self._judge(incumbent, candidate, task, np.stack(lived))

    async def _first_choice(self, incumbent: str) -> Deployment:
        if self._config.level != "inner":
            return cast(Deployment, await self._compute(self._source.plain, incumbent))
        return await self._looking_ahead(incumbent)

    async def _looking_ahead(self, member: str) -> Deployment:
        def build() -> Deployment:
            return self._source.looking_ahead(member, self._config, online=self._config.online)

        return cast(Deployment, await self._compute(build))

    async def _arms(self, incumbent: str) -> list[Deployment]:
        """Return whom a probe compares: the members, the incumbent first, and the incumbent with an adapting head."""
        others = [name for name in self._source.members if name != incumbent]
        arms = [await self._compute(self._source.plain, name) for name in (incumbent, *others)]
        return [*arms, await self._looking_ahead(incumbent)]

    async def _live(
        self, seats: Sequence[Deployment], task: TaskParameters
    ) -> tuple[NDArray[np.float64], RolloutResult]:
        """Run one episode of each seat, with the memory of the seat's last one; return the returns (E,)."""
        memory = self._kept_memory(seats)
        result = await self._episodes(seats, task, self._account.episodes, memory, carry=True)
        self._memory, self._seated = result.policy_state, seats
        return mean_returns(result), result

    def _kept_memory(self, seats: Sequence[Deployment]) -> NDArray[np.float32] | None:
        """Return the memory that the seats start with: emptied where another encoder wrote it, if it fits at all."""
        if self._memory is None or _width(seats) != _width(self._seated):
            return None
        same = [new.encoder == old.encoder for new, old in zip(seats, self._seated, strict=True)]
        return np.where(np.array(same)[:, None], self._memory, np.float32(0))

    def _fits(self, candidate: Deployment) -> bool:
        """Whether the block's memory is one that the candidate's own encoder wrote, on every seat."""
        return _width([candidate]) == _width(self._seated) and all(
            seat.encoder == candidate.encoder for seat in self._seated
        )

    async def _judge(
        self, incumbent: str, candidate: Deployment, task: TaskParameters, curve: NDArray[np.float64]
    ) -> AdaptationResult:
        """Let the incumbent as it was and the candidate meet on the same fresh starts."""
        plain = replace(cast(Deployment, await self._compute(self._source.plain, incumbent)), carry=False)
        before: list[NDArray[np.float64]] = []
        after: list[NDArray[np.float64]] = []
        for block in range(self._config.evaluation_blocks):
            for deployment, returns in ((plain, before), (candidate, after)):
                result = await self._episodes(
                    [deployment] * BLOCK_SIZE, task, f"judge-{block}", deployment.memory, carry=deployment.carry
                )
                returns.append(mean_returns(result))
        decision = accept_if_better(np.concatenate(before), np.concatenate(after))
        return AdaptationResult(
            before=np.concatenate(before),
            after=np.concatenate(after),
            curve=curve,
            decision=decision,
            deployment=candidate if decision.accepted else plain,
            candidate=candidate,
            account=self._account,
        )

    async def _episodes(
        self,
        seats: Sequence[Deployment],
        task: TaskParameters,
        stream: int | str,
        memory: NDArray[np.float32] | None,
        *,
        carry: bool,
    ) -> RolloutResult:
        seed = stream_key(self._team.seed, self._label, "probe", stream)
        request = block_request(self._team, seats, task, seed, max_steps=self._team.rounds.adapt_steps)
        result = await self._bridge.rollout(replace(request, policy_state=memory, carry_state=carry))
        self._account = self._account.add(BLOCK_SIZE, result.num_steps)
        return result


def _width(seats: Sequence[Deployment]) -> int:
    """Return what the size of a block's policy state depends on: the transitions that it keeps."""
    return max((seat.lookahead.window for seat in seats if seat.lookahead is not None), default=0)


def adapter_size(weights: Arrays) -> int:
    """Dimensions that adaptation may move: gain and bias of up to 8 actions."""
    return 2 * min(MAX_ADAPTED_ACTIONS, len(weights["adapter.gain"]))


def with_adapter(deployment: Deployment, vector: NDArray[np.float32]) -> Deployment:
    """Return the deployment with gain 1 + vector[:n] and bias vector[n:] on the first n actions."""
    n = len(vector) // 2
    gain = np.array(deployment.weights["adapter.gain"], np.float32)
    bias = np.array(deployment.weights["adapter.bias"], np.float32)
    gain[:n] += vector[:n]
    bias[:n] += vector[n:]
    return replace(deployment, weights={**deployment.weights, "adapter.gain": gain, "adapter.bias": bias})
