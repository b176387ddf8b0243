"""Where a scenario becomes a swarm: which agents, which processes, which services. The only place that wires."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final, cast

from env_bridge.client import connect
from scenarios.scenario import Scenario
from swarm import Swarm
from swarm.ablation import Faults
from swarm.agent import Agent
from swarm.agent_factory import build_agent
from swarm.environment import Bridge
from swarm.launch import SOCKETS, ExtraProcess, InlineLauncher, Launcher, ProcessesLauncher
from swarm.launch.sockets import socket_directory
from swarm.supervisor import ProcessEvent, ProcessSpec, Supervisor
from swarm.swarm import SwarmOptions
from swarm.topics import Topic

BRIDGE_SOCKET: Final = "bridge.sock"
BRIDGE_PATIENCE_S: Final = 60.0


def build_team(scenario: Scenario) -> list[Agent]:
    """Return the scenario's agents by their entry points, each with the whole team's configuration."""
    options = scenario.team.to_json()
    return [build_agent(name, name, options) for name in scenario.team.agents]


def training_swarm(
    scenario: Scenario,
    run_dir: Path,
    *,
    agents: Sequence[Agent] | None = None,
    inline: bool = False,
    on_process_event: Callable[[ProcessEvent], None] | None = None,
) -> Swarm:
    """Return the swarm that trains ``scenario`` in ``run_dir``; entering it starts or continues the training.

    Args:
        agents: instead of the scenario's own, for instance with one more.
        inline: all agents in this process; only the bridge is a child.
        on_process_event: called on the loop with each event of a supervised process.
    """
    launcher: Launcher = InlineLauncher() if inline else ProcessesLauncher(scenario.processes)
    faults = scenario.team.faults
    return Swarm(
        agents if agents is not None else build_team(scenario),
        launcher=launcher,
        run_dir=run_dir,
        options=SwarmOptions(
            services={"bridge": {"endpoint": f"ipc://{SOCKETS}/{BRIDGE_SOCKET}", "patience_s": BRIDGE_PATIENCE_S}},
            processes=(ExtraProcess(name="bridge", argv=bridge_command(SOCKETS, scenario.workers)),),
            faults=Faults(
                replace=frozenset({Topic(faults.replace)} if faults.replace else ()),
                stop=frozenset({Topic(faults.stop)} if faults.stop else ()),
            ),
            on_process_event=on_process_event,
        ),
    )


def bridge_command(sockets: str | Path, workers: int) -> tuple[str, ...]:
    """Return the command of a bridge process."""
    endpoint = f"ipc://{sockets}/{BRIDGE_SOCKET}"
    return (sys.executable, "-m", "env_bridge.server", "--endpoint", endpoint, "--workers", str(workers))


@contextlib.asynccontextmanager
async def bridge_alone(workers: int, log_path: Path) -> AsyncIterator[Bridge]:
    """Run a bridge process with ``workers`` without a swarm, to evaluate, adapt and film what a run trained."""
    async with contextlib.AsyncExitStack() as stack:
        sockets = stack.enter_context(socket_directory())
        supervisor = await stack.enter_async_context(Supervisor())
        command = bridge_command(sockets, workers)
        await supervisor.start(ProcessSpec(name="bridge", argv=command, log_path=log_path))
        client = await connect({"endpoint": f"ipc://{sockets}/{BRIDGE_SOCKET}", "patience_s": BRIDGE_PATIENCE_S})
        stack.push_async_callback(client.aclose)
        yield cast(Bridge, client)
