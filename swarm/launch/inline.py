"""All agents in this process, on this loop, over a memory bus; extra processes are supervised children all the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from swarm.ablation import Ablation
from swarm.agent import Agent
from swarm.context import NodeResources, compute_thread
from swarm.errors import traceback_of
from swarm.host import AgentHost, runs_by_itself
from swarm.journal import Journal
from swarm.launch.sockets import socket_directory
from swarm.launch.team import LAUNCHER, Running, Team, extra_spec, filled_services
from swarm.memory_bus import MemoryBus, MemoryHub
from swarm.messages import PeerDown
from swarm.services import connect_all
from swarm.supervisor import RestartPolicy, Supervisor

log = structlog.get_logger(__name__)


class InlineLauncher:
    """Default when embedded: no process is started for agents, nothing global is touched.

    Args:
        policy: for the extra processes.
        start_patience_s: how long entering may take.
    """

    def __init__(self, *, policy: RestartPolicy | None = None, start_patience_s: float = 30.0) -> None:
        self._policy = policy
        self._start_patience_s = start_patience_s

    @contextlib.asynccontextmanager
    async def launch(self, team: Team) -> AsyncIterator[Running]:
        """Launch ``team``; see `Launcher.launch`."""
        hub = MemoryHub()
        async with contextlib.AsyncExitStack() as stack:
            sockets = stack.enter_context(socket_directory())
            compute = compute_thread()
            stack.callback(compute.shutdown, wait=False, cancel_futures=True)
            journal = stack.enter_context(Journal.open(team.journal)) if team.journal is not None else None
            running = Running(await stack.enter_async_context(MemoryBus(LAUNCHER, hub)), team)
            supervisor = await stack.enter_async_context(
                Supervisor(policy=self._policy, publish=running.mourn, on_event=running.note)
            )
            for process in team.processes:
                await supervisor.start(extra_spec(process, team, sockets))
            node = NodeResources(
                run_dir=team.run_dir,
                compute=compute,
                services=await connect_all(filled_services(team, sockets), stack),
                ablation=Ablation(team.faults),
                journal=journal,
            )
            tasks: list[asyncio.Task[None]] = []
            stack.push_async_callback(_cancel_all, tasks)
            agents = (team.coordinator, *team.agents)
            for agent in agents:
                if team.state_of is not None and (state := team.state_of(agent.name)):
                    agent.load(state)
                host = AgentHost(agent, MemoryBus(agent.name, hub), node)
                tasks.append(asyncio.create_task(_serve(host, running), name=f"{agent.name}:serve"))
            await running.wait_up({agent.name for agent in agents}, self._start_patience_s)
            yield running


async def _serve(host: AgentHost, running: Running) -> None:
    """Serve one agent; its end is the swarm's business, never the embedder's task group's."""
    agent: Agent = host.agent
    try:
        await host.serve()
    except Exception as error:
        log.error("agent_failed", agent=agent.name, stack=traceback_of(error))
        running.mourn(PeerDown(agent=agent.name, reason=f"{type(error).__name__}: {error}", restarting=False))
        running.finish(error)
    else:
        if agent.manages and runs_by_itself(agent):
            running.finish()


async def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
