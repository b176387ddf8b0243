"""The coordinator's rounds: auctions, contracts, commit. Waiting shell around `agents.plan` and `agents.ledger`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import structlog

from agents.auctions import seat_list
from agents.config import TeamConfig
from agents.ledger import Ledger
from agents.outcome import RoundResult, settle, summary_of
from agents.plan import (
    NOMINAL,
    SHIFTED,
    RoundPlan,
    finished,
    fixed_lots,
    fixed_seats,
    plan_round,
    training_homes,
)
from agents.records import RunRecords
from swarm.agent import AgentContext
from swarm.errors import PeerLost, SwarmError, TaskFailed, TaskImpossible
from swarm.messages import Ended, Evaluation, Heartbeat, Hello, Json, Message, Proposal, RoundCommitted, Submission
from swarm.policy import BLOCK_SIZE
from swarm.topics import Topic

ATTEMPTS = 3
AUCTIONS_PER_PATIENCE = 4
LEASE_S = 30.0
ResultT = TypeVar("ResultT")
log = structlog.get_logger(__name__)


class TrainingRun:
    """Drive one run from its newest committed round to the end of its budget.

    Args:
        team: what is trained.
        context: the coordinator's context; its ``submit`` reaches the manager in the same process.
        records: the files of the run: checkpoints, metrics, final evaluation.
        lifetime: makes task ids of this life of the coordinator differ from those of earlier ones.
    """

    def __init__(self, team: TeamConfig, context: AgentContext, records: RunRecords, lifetime: int) -> None:
        self.team = team
        self.context = context
        self.records = records
        self.lifetime = lifetime
        self.ledger = Ledger(best=team.members[0])
        self.index = -1  # no round is committed yet
        self.rows: dict[str, int] = {NOMINAL: 0, SHIFTED: 0}
        self.attempt = 0
        self._started_s = time.monotonic()

    async def drive(self) -> None:
        """Train until the budget is spent, then evaluate. Raises ``SwarmError`` where a round fails for good."""
        committed = await self.context.compute(self.records.recover)
        if committed is None:
            await self._initialise()
        else:
            self.index, self.rows, self.ledger = committed.round_index, dict(committed.rows), committed.ledger
            if committed.skipped:
                self.ledger = replace(self.ledger, incidents=(*self.ledger.incidents, *committed.skipped))
            self.context.publish(
                RoundCommitted(round_index=self.index, rows=self.rows, summary={**committed.summary, "resumed": True})
            )
        while not finished(self.team, self.ledger.env_steps):
            await self._round()
        await self._report()

    # --- one round ----------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        plan = plan_round(self.team, self.index + 1, self.ledger.env_steps)
        result = await self._repeatedly(f"round {plan.index}", partial(self._perform, plan))
        await self._commit(plan, result)

    async def _repeatedly(self, what: str, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Return what ``work`` gives in the end; what a lost process or a failed task spoils is done again.

        Raises:
            TaskImpossible: the user must change something.
            SwarmError: it failed too often.
        """
        for self.attempt in range(ATTEMPTS):
            failures: list[BaseException] = []
            try:
                return await work()
            except* (TaskFailed, PeerLost) as group:
                failures = _leaves(group)
            reasons = "; ".join(str(error) for error in failures)
            if any(isinstance(error, TaskImpossible) for error in failures):
                raise TaskImpossible(f"{what} cannot be performed: {reasons}")
            log.warning("repeated", what=what, attempt=self.attempt, reason=reasons)
            incident = f"{what} was repeated: {reasons}"
            self.ledger = replace(self.ledger, incidents=(*self.ledger.incidents, incident))
        kept = f"round {self.index} is committed and the run can be resumed from it" if self.index >= 0 else "see logs/"
        raise SwarmError(f"{what} failed {ATTEMPTS} times: {reasons}; {kept}")

    async def _perform(self, plan: RoundPlan) -> RoundResult:
        result = RoundResult()
        terms: dict[str, Json] = {"round": plan.index, "base": plan.base, "rows": dict(self.rows)}
        if plan.lots == 0 or not plan.exchange:
            result.seats = fixed_seats(self.team, self.rows[NOMINAL])
            result.lots = fixed_lots(self.team, plan)
        else:
            await self._auction_rights(plan, result, terms)
        async with asyncio.TaskGroup() as group:
            for stream in plan.steps:
                group.create_task(self._collect(plan, stream, result, terms))
            homes = training_homes(result.lots, await self._processes())
            for member, home in homes.items():
                group.create_task(self._learn(plan, member, home, result, terms))
            if self.team.trains_world:
                group.create_task(self._model(plan, result, terms))
            if plan.evaluate:
                group.create_task(self._evaluate(plan, result))
            if plan.index == 1:
                group.create_task(self._evaluate_start(result))
            if plan.adapt:
                group.create_task(self._adapt(plan, result, terms))
        return result

    async def _auction_rights(self, plan: RoundPlan, result: RoundResult, terms: Mapping[str, Json]) -> None:
        """Auction the seats of the block and the lots of updates among the members."""
        facts: dict[str, Json] = {
            **terms,
            "voters": [name for name in self.team.members if name != "coordinator"],
            "members": list(self.team.members),
            "shares": self.ledger.shares(self.team.members),
        }
        act = {**facts, "calibration": self.ledger.calibration("act")}
        compute = {**facts, "calibration": self.ledger.calibration("compute")}
        async with asyncio.TaskGroup() as group:
            acting = group.create_task(self._auction("act", BLOCK_SIZE, act))
            computing = group.create_task(self._auction("compute", plan.lots, compute))
        seats, lots = acting.result(), computing.result()
        result.seats = seat_list(seats.units, BLOCK_SIZE)
        result.lots = {name: lots.units.get(name, 0) for name in self.team.members}
        result.bids = {"act": await self._bids(seats), "compute": await self._bids(lots)}
        ballots = await self._votes(plan.index, cast(list[str], facts["voters"]))
        result.votes = {
            name: sum(ballot.scores[name] for ballot in ballots) / len(ballots) for name in self.team.members
        }

    async def _auction(self, kind: str, units: int, terms: Mapping[str, Json]) -> Ended:
        task = self._task(kind, terms, units=units, awaited=self.team.members)
        try:
            async with asyncio.timeout(self.team.rounds.patience_s):
                return await self.context.submit(task)
        except TimeoutError:
            proposals = await self._proposals_so_far(task.task_id)
            raise PeerLost(
                f"auction {kind!r} of round {terms['round']} stands open after {self.team.rounds.patience_s:g} s: "
                f"proposals came from {', '.join(proposals) or 'nobody'}, "
                f"{', '.join(sorted(set(self.team.members) - set(proposals)))} did not answer on topic 'proposals'"
            ) from None

    async def _proposals_so_far(self, task_id: str) -> list[str]:
        found = []
        for name in self.team.members:
            try:
                await self.context.gather(Topic.PROPOSALS, _proposal_key, [(task_id, name)], 0.0)
            except PeerLost:
                continue
            found.append(name)
        return found

    async def _bids(self, ended: Ended) -> dict[str, float]:
        """Return the highest bid of each winner, as it came over the bus."""
        keys = [(ended.task_id, name) for name in ended.units]
        found = await self.context.gather(Topic.PROPOSALS, _proposal_key, keys, self.team.rounds.patience_s)
        return {name: cast(Proposal, found[ended.task_id, name]).values[0] for name in sorted(ended.units)}

    async def _votes(self, index: int, voters: Sequence[str]) -> list[Evaluation]:
        keys = [("vote", index, name) for name in voters]
        found = await self.context.gather(Topic.EVALUATIONS, evaluation_key, keys, self.team.rounds.patience_s)
        return [cast(Evaluation, found[key]) for key in keys]

    async def _collect(self, plan: RoundPlan, stream: str, result: RoundResult, terms: Mapping[str, Json]) -> None:
        ended = await self._contract(
            "collect",
            {
                **terms,
                "stream": stream,
                "steps": plan.steps[stream] // BLOCK_SIZE,
                "seats": list(result.seats),
                "random": plan.random,
            },
            label=f"collect-{stream}",
        )
        outcome = _only(ended)
        result.files.update(cast(Mapping[str, str], outcome["files"]))
        result.collected[stream] = outcome

    async def _processes(self) -> dict[str, int]:
        """Return the process of each training specialist, from its presence on the bus."""
        names = self.team.specialists
        found = await self.context.gather(Topic.PRESENCE, _agent_key, names, self.team.rounds.patience_s)
        return {name: cast(Hello | Heartbeat, found[name]).process_id for name in names}

    async def _learn(
        self, plan: RoundPlan, member: str, home: str, result: RoundResult, terms: Mapping[str, Json]
    ) -> None:
        lots = result.lots.get(member, 0)
        ended = await self._contract(
            "learn",
            {**terms, "member": member, "updates": lots * self.team.rounds.lot, "home": home},
            label=f"learn-{member}",
        )
        outcome = _only(ended)
        result.files.update(cast(Mapping[str, str], outcome["files"]))
        result.performers[member] = next(iter(ended.results))
        result.updates += cast(int, outcome["updates"])
        result.losses[member] = outcome["metrics"]

    async def _model(self, plan: RoundPlan, result: RoundResult, terms: Mapping[str, Json]) -> None:
        """Aggregate the members' gradients and apply them to the world models."""
        shared = {**terms, "groups": {name: list(members) for name, members in plan.groups.items()}}
        async with asyncio.TaskGroup() as group:
            aggregating = group.create_task(self._contract("aggregate", shared))
            modelling = group.create_task(self._contract("model", shared))
        modelled = _only(modelling.result())
        result.files.update(cast(Mapping[str, str], modelled["files"]))
        result.world = {**cast(Mapping[str, Json], modelled["world"]), **_only(aggregating.result())}

    async def _evaluate(self, plan: RoundPlan, result: RoundResult) -> None:
        found, steps = await self._evaluation(
            plan.base, self.team.members, "selection", self.team.rounds.evaluation_blocks
        )
        result.evaluation = found
        result.evaluation_steps += steps

    async def _evaluate_start(self, result: RoundResult) -> None:
        """Evaluate the untrained team's first member: the 'before' of the report."""
        found, steps = await self._evaluation(0, self.team.members[:1], "before", self._report_blocks())
        result.evaluation_steps += steps
        await self.context.compute(self.records.write_evaluation, "before", found, self.team.report_episodes, steps)

    async def _adapt(self, plan: RoundPlan, result: RoundResult, terms: Mapping[str, Json]) -> None:
        result.adaptation = _only(await self._contract("adapt", {**terms, "member": self.ledger.best}))

    async def _evaluation(
        self, version: int, members: Sequence[str], purpose: str, blocks: int
    ) -> tuple[Evaluation, int]:
        """Have ``members`` evaluated at ``version``; the judgement itself comes over topic ``evaluations``."""
        terms: dict[str, Json] = {
            "round": self.index + 1,
            "base": version,
            "members": list(members),
            "purpose": purpose,
            "blocks": blocks,
            "rows": dict(self.rows),
        }
        ended = await self._contract("evaluate", terms, label=f"evaluate-{purpose}")
        key = (f"return-{purpose}", version, next(iter(ended.results)))
        found = await self.context.gather(Topic.EVALUATIONS, evaluation_key, [key], self.team.rounds.patience_s)
        return cast(Evaluation, found[key]), cast(int, _only(ended)["steps"])

    async def _contract(self, kind: str, terms: Mapping[str, Json], *, label: str = "") -> Ended:
        task = self._task(kind, terms, label=label, deadline_s=self.team.rounds.patience_s / AUCTIONS_PER_PATIENCE)
        try:
            return await self.context.submit(task)
        except TaskFailed as error:
            raise type(error)(f"contract {label or kind!r} of round {terms['round']}: {error}") from error

    def _task(
        self,
        kind: str,
        terms: Mapping[str, Json],
        *,
        label: str = "",
        units: int = 1,
        awaited: tuple[str, ...] = (),
        deadline_s: float | None = None,
    ) -> Submission:
        return Submission(
            task_id=f"r{terms.get('round', 0)}.{self.lifetime}.{self.attempt}.{label or kind}",
            kind=kind,
            submitter="coordinator",
            terms=terms,
            units=units,
            awaited=awaited,
            lease_s=LEASE_S,
            deadline_s=deadline_s,
        )

    # --- before, between and after ------------------------------------------------------------------------------------

    async def _initialise(self) -> None:
        """Round 0: fresh members and world models."""
        if not self.team.trains_world:
            incident = "the encoder stays as it was born: training it takes the agents 'meta' and 'state'"
            self.ledger = replace(self.ledger, incidents=(*self.ledger.incidents, incident))
        ended = await self._repeatedly("the initial round", lambda: self._contract("initialise", {"round": 0}))
        outcome = _only(ended)
        files = cast(Mapping[str, str], outcome["files"])
        summary = summary_of(self.team, self.ledger, 0, None)
        await self.context.compute(
            self.records.commit, 0, files, self.rows, self.ledger, summary, outcome["environment"]
        )
        self.index = 0
        self.context.publish(RoundCommitted(round_index=0, rows=self.rows, summary=summary))

    async def _commit(self, plan: RoundPlan, result: RoundResult) -> None:
        self.rows = {
            stream: rows + plan.steps.get(stream, 0) // BLOCK_SIZE for stream, rows in sorted(self.rows.items())
        }
        self.ledger = settle(self.team, self.ledger, plan, result, time.monotonic() - self._started_s)
        self._started_s = time.monotonic()
        summary = summary_of(self.team, self.ledger, plan.index, result)
        await self.context.compute(self.records.commit, plan.index, result.files, self.rows, self.ledger, summary, None)
        self.index = plan.index
        self.context.publish(RoundCommitted(round_index=plan.index, rows=self.rows, summary=summary))

    async def _report(self) -> None:
        """Choose the member to deploy by selection episodes, then evaluate it on fresh ones.

        In a run on several tasks, all members meet the same whole blocks of them: what they get depends on the tasks.
        """
        number = len(self.team.members) if self.team.train_tasks else 1
        blocks = -(-max(2, self.team.rounds.evaluation_blocks) // number) * number
        selection, steps = await self._repeatedly(
            "the final selection", lambda: self._evaluation(self.index, self.team.members, "final", blocks)
        )
        best = max(sorted(selection.scores), key=lambda name: selection.scores[name])
        found, more_steps = await self._repeatedly(
            "the final evaluation", lambda: self._evaluation(self.index, [best], "after", self._report_blocks())
        )
        await self.context.compute(
            self.records.write_evaluation, "after", found, self.team.report_episodes, steps + more_steps
        )

    def _report_blocks(self) -> int:
        return -(-self.team.report_episodes // BLOCK_SIZE)


def evaluation_key(message: Message) -> tuple[str, int, str] | None:
    """Key of an evaluation: what kind, of which round, by whom."""
    if not isinstance(message, Evaluation):
        return None
    return message.kind, message.round_index, message.judge


def _proposal_key(message: Message) -> tuple[str, str] | None:
    return (message.task_id, message.agent) if isinstance(message, Proposal) else None


def _agent_key(message: Message) -> str | None:
    return message.agent if isinstance(message, Hello | Heartbeat) else None


def _only(ended: Ended) -> Mapping[str, Json]:
    return next(iter(ended.results.values()))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return leaves
