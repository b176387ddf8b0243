"""Two swarms inside one ASGI app: ``uvicorn scenarios.examples.embed_fastapi:app`` (needs fastapi and uvicorn).

::

    curl -X POST localhost:8000/numbers/mean -H 'content-type: application/json' -d '{"values": [1, 2, 6]}'
    {"result": 3.0, "performed_by": "numbers-1"}
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import fmean
from typing import ClassVar, cast

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from swarm import Agent, AgentContext, Announcement, Proposal, Swarm, TaskFailed
from swarm.messages import Award, Json


class Statistician(Agent):
    """Computes on the swarm's compute thread; whoever has performed less bids more."""

    role: ClassVar[str] = "statistician"
    skills: ClassVar[frozenset[str]] = frozenset({"mean", "largest"})

    def __init__(self, name: str | None = None, options: Mapping[str, Json] | None = None) -> None:
        super().__init__(name, options)
        self.performed = 0

    async def propose(self, announcement: Announcement, context: AgentContext) -> Proposal:
        """Bid the less, the more was done already."""
        value = 1.0 / (1 + self.performed)
        return Proposal(
            task_id=announcement.task_id, epoch=announcement.epoch, agent=self.name, values=(value,), cost=0.0
        )

    async def perform(self, award: Award, context: AgentContext) -> Mapping[str, Json]:
        """Compute what was asked for."""
        self.performed += 1
        values = cast(list[float], award.terms["values"])
        return {"result": await context.compute(fmean if award.kind == "mean" else max, values)}


class Request(BaseModel):
    """Body of a request."""

    values: list[float] = Field(min_length=1, max_length=10_000)


class Answer(BaseModel):
    """Body of an answer."""

    result: float
    performed_by: str


SWARMS: dict[str, Swarm] = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Both swarms live as long as the app, in its event loop."""
    async with AsyncExitStack() as stack:
        for name in ("numbers", "others"):
            team = [Statistician(f"{name}-{index}") for index in (1, 2)]
            SWARMS[name] = await stack.enter_async_context(Swarm(team))
        yield
    SWARMS.clear()


app = FastAPI(lifespan=lifespan)


@app.post("/{swarm_name}/{kind}")
async def perform(swarm_name: str, kind: str, request: Request) -> Answer:
    """Have the named swarm auction the task, and answer with the winner's result."""
    if swarm_name not in SWARMS or kind not in Statistician.skills:
        raise HTTPException(404, f"no swarm {swarm_name!r} that can do {kind!r}")
    try:
        ended = await SWARMS[swarm_name].submit(kind, {"values": request.values})
    except TaskFailed as error:
        raise HTTPException(503, str(error)) from error
    ((agent, result),) = ended.results.items()
    return Answer(result=cast(float, result["result"]), performed_by=agent)
