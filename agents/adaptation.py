"""Test-time adaptation: probe members under a shift, climb in a 16-dimensional adapter, accept only what is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from agents.config import TeamConfig
from agents.learning.test_time import Decision, ProbeAccount, accept_if_better, move_center, propose_candidates
from agents.randomness import generator, stream_key
from agents.rollouts import POLICY, mean_returns, prefixed, shifted_tasks
from agents.specialist import COMMON_SKILLS, Specialist, Work
from swarm.agent import AgentContext
from swarm.environment import Bridge, RolloutRequest, TaskParameters
from swarm.messages import Arrays, Award, Evaluation, Json, ParameterVersion
from swarm.policy import BLOCK_SIZE

GENERATIONS = 2
SIGMA = 0.15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdaptationResult:
    """What a test-time adaptation came to.

    Attributes:
        member: whose policy it started from after the probe.
        before: returns of the unadapted policy on the re-evaluation episodes, (n,).
        after: returns of the candidate on as many other fresh episodes, (n,).
        adapter: gain and bias of the deployed policy: the candidate's where accepted, else the identity.
        account: episodes and environment steps used, re-evaluation included.
    """

    member: str
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    decision: Decision
    adapter: Mapping[str, NDArray[np.float32]]
    account: ProbeAccount


class AdaptationAgent(Specialist):
    """Keeper of the guard: what does not re-evaluate better is not deployed."""

    role: ClassVar[str] = "adaptation"
    skills: ClassVar[frozenset[str]] = COMMON_SKILLS | {"adapt"}

    def own_work(self) -> Mapping[str, Work]:
        """Adapt under a shift."""
        return {"adapt": self._adapt}

    async def _adapt(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Try to adapt the best member to one shifted task of this round; publish the verdict."""
        terms = award.terms
        round_index = cast(int, terms["round"])
        task = shifted_tasks(self.team, stream_key(self.team.seed, "adapt", round_index))[0]
        pinned = await context.compute(self.pinned, terms, context)
        weights = {name: await context.compute(pinned.acting_weights, name) for name in self.team.members}
        result = await adapt_policy(
            cast(Bridge, context.service("bridge")),
            self.team,
            weights,
            incumbent=cast(str, terms["member"]),
            task=task,
            label=f"round-{round_index}",
        )
        accepted = result.decision.accepted
        context.publish(
            Evaluation(
                judge=self.name,
                round_index=round_index,
                kind="adaptation",
                scores={"before": float(result.before.mean()), "after": float(result.after.mean())},
                details={"accepted": accepted, "reason": result.decision.reason},
            )
        )
        if accepted:
            context.publish(
                ParameterVersion(owner="adapter", version=round_index, digest="", arrays=dict(result.adapter))
            )
        return {
            "accepted": accepted,
            "reason": result.decision.reason,
            "member": result.member,
            "before": float(result.before.mean()),
            "after": float(result.after.mean()),
            "probes": result.account.episodes,
            "steps": result.account.steps,
        }


async def adapt_policy(
    bridge: Bridge,
    team: TeamConfig,
    weights: Mapping[str, Arrays],
    *,
    incumbent: str,
    task: TaskParameters,
    label: str,
    generations: int = GENERATIONS,
) -> AdaptationResult:
    """Adapt at test time within (2 + generations) blocks of 8 probe episodes, all counted.

    First every member is probed and the best one taken over (the incumbent wins ties). Then an evolution strategy
    climbs in the adapter: gain and bias of the actions. Last, incumbent and candidate meet on fresh episodes.

    Args:
        weights: acting weights per member.
        incumbent: the member that is deployed without adaptation.
        label: names the random streams.
    """
    trial = _Trial(bridge, team, task, label)
    members = [incumbent, *sorted(set(weights) - {incumbent})]
    seats = [members[e % len(members)] for e in range(BLOCK_SIZE)]
    returns = await trial.episodes([weights[name] for name in seats])
    means = [float(returns[[e for e in range(BLOCK_SIZE) if seats[e] == name]].mean()) for name in members]
    chosen = members[int(np.argmax(means))]
    rng = generator(team.seed, label, "candidates")
    centre = np.zeros(adapter_size(weights[chosen]), np.float32)
    for _ in range(generations):
        candidates = propose_candidates(rng, centre, SIGMA, BLOCK_SIZE)
        returns = await trial.episodes([with_adapter(weights[chosen], row) for row in candidates])
        centre = move_center(centre, candidates, returns)
    candidate = with_adapter(weights[chosen], centre)
    half = BLOCK_SIZE // 2
    returns = await trial.episodes([*[weights[incumbent]] * half, *[candidate] * half])
    before, after = returns[:half], returns[half:]
    decision = accept_if_better(before, after)
    deployed = candidate if decision.accepted else weights[incumbent]
    return AdaptationResult(
        member=chosen if decision.accepted else incumbent,
        before=before,
        after=after,
        decision=decision,
        adapter={key: np.asarray(deployed[key], np.float32) for key in ("adapter.gain", "adapter.bias")},
        account=trial.account,
    )


def adapter_size(weights: Arrays) -> int:
    """Dimensions that adaptation may move: gain and bias of up to 8 actions."""
    return 2 * min(8, len(weights["adapter.gain"]))


def with_adapter(weights: Arrays, vector: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
    """Return the weights with gain 1 + vector[:n] and bias vector[n:] on the first n actions."""
    n = len(vector) // 2
    gain = np.array(weights["adapter.gain"], np.float32)
    bias = np.array(weights["adapter.bias"], np.float32)
    gain[:n] += vector[:n]
    bias[:n] += vector[n:]
    return {**weights, "adapter.gain": gain, "adapter.bias": bias}


class _Trial:
    """Counts episodes and steps of one adaptation; each call of ``episodes`` uses fresh seeds."""

    def __init__(self, bridge: Bridge, team: TeamConfig, task: TaskParameters, label: str) -> None:
        self._bridge, self._team, self._task, self._label = bridge, team, task, label
        self.account = ProbeAccount()

    async def episodes(self, policies: Sequence[Arrays]) -> NDArray[np.float64]:
        """Run one episode per policy, 8 at once, and return the returns (8,)."""
        names = [f"candidate-{e}" for e in range(len(policies))]
        joined: dict[str, NDArray[np.generic]] = {}
        for name, weights in zip(names, policies, strict=True):
            joined |= prefixed(weights, name)
        result = await self._bridge.rollout(
            RolloutRequest(
                env_id=self._team.env_id,
                tasks=(self._task,) * BLOCK_SIZE,
                seed=stream_key(self._team.seed, self._label, "probe", self.account.episodes),
                num_steps=None,
                policy=POLICY,
                policy_options={"seats": list(names), "random": False},
                weights=joined,
                max_episode_steps=self._team.rounds.adapt_steps,
            )
        )
        self.account = self.account.add(len(policies), result.num_steps)
        return mean_returns(result)
