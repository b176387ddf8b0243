"""One process for the coordinator, N for the other agents, one for the broker: all children of this one, over ipc."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from swarm import errors
from swarm.agent import Agent
from swarm.agent_factory import factory_of
from swarm.errors import ConfigError, SwarmError
from swarm.host import runs_by_itself
from swarm.launch.sockets import socket_directory
from swarm.launch.team import LAUNCHER, Running, Team, extra_spec, filled_services, state_for
from swarm.node import FINISHED, RUN_FAILED, USER_MUST_ACT
from swarm.node_spec import AgentSpec, NodeSpec, write_spec
from swarm.supervisor import Exited, ProcessEvent, ProcessSpec, RestartPolicy, Supervisor
from swarm.zmq_bus import ZmqBus

COORDINATOR_NODE: Final = "coordinator"


class ProcessesLauncher:
    """Spreads a team over processes of this machine.

    Args:
        num_processes: worker nodes; agents go to them in turn. The coordinator always has a process of its own.
        policy: how often a process may be restarted.
        start_patience_s: how long entering may take.
    """

    def __init__(
        self, num_processes: int = 2, *, policy: RestartPolicy | None = None, start_patience_s: float = 60.0
    ) -> None:
        if num_processes < 1:
            raise ConfigError(f"num_processes is {num_processes}; expected at least 1")
        self.num_processes = num_processes
        self._policy = policy
        self._start_patience_s = start_patience_s

    @contextlib.asynccontextmanager
    async def launch(self, team: Team) -> AsyncIterator[Running]:
        """Launch ``team``; see `Launcher.launch`."""
        async with contextlib.AsyncExitStack() as stack:
            sockets = stack.enter_context(socket_directory())
            frontend, backend = f"ipc://{sockets}/publish.sock", f"ipc://{sockets}/subscribe.sock"
            running = Running(ZmqBus(LAUNCHER, frontend, backend), team)
            nodes = [_node(team, sockets, name, agents) for name, agents in self._layout(team)]
            watch = _CoordinatorWatch(running, runs_by_itself(team.coordinator))
            supervisor = Supervisor(policy=self._policy, publish=running.mourn, on_event=watch.note)
            await stack.enter_async_context(supervisor)
            await supervisor.start(_broker(team, frontend, backend))
            for process in team.processes:
                await supervisor.start(extra_spec(process, team, sockets))
            for node in nodes:
                await supervisor.start(node)
            await stack.enter_async_context(running.bus)
            stack.push_async_callback(supervisor.stop)  # before the bus is closed: a dying child may be mourned
            await running.wait_up({agent.name for agent in (team.coordinator, *team.agents)}, self._start_patience_s)
            yield running

    def _layout(self, team: Team) -> list[tuple[str, tuple[Agent, ...]]]:
        """Return which node hosts whom."""
        nodes: list[tuple[str, tuple[Agent, ...]]] = [(COORDINATOR_NODE, (team.coordinator,))]
        for index in range(min(self.num_processes, len(team.agents))):
            nodes.append((f"node-{index + 1}", team.agents[index :: self.num_processes]))
        return nodes


class _CoordinatorWatch:
    """Turns the end of the coordinator's process into the end of the swarm."""

    def __init__(self, running: Running, has_run: bool) -> None:
        self._running = running
        self._has_run = has_run

    def note(self, event: ProcessEvent) -> None:
        if isinstance(event, Exited) and event.name == COORDINATOR_NODE and not event.restarting:
            if event.code == FINISHED and self._has_run:
                self._running.finish()
            elif event.last_word:
                self._running.finish(error_of(event.last_word))
        elif isinstance(event, Exited) and event.code == USER_MUST_ACT and event.last_word:
            self._running.finish(error_of(event.last_word))
        self._running.note(event)


def error_of(last_word: str) -> SwarmError:
    """Return the error that a node left as ``Type: text``, as the same type where it is one of ours."""
    name, _, text = last_word.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, SwarmError) and kind.__init__ is Exception.__init__:
        return kind(text)
    return SwarmError(last_word)


def _broker(team: Team, frontend: str, backend: str) -> ProcessSpec:
    return ProcessSpec(
        name="broker",
        argv=(
            *(sys.executable, "-m", "swarm.broker"),
            *("--frontend", frontend, "--backend", backend, "--parent-pid", str(os.getpid())),
        ),
        env=_environment(),
        log_path=team.run_dir / "logs" / "broker.log",
    )


def _node(team: Team, sockets: Path, name: str, agents: Sequence[Agent]) -> ProcessSpec:
    """Return what keeps one node alive; its specification is written anew, with committed states, for each life."""
    factories = [factory_of(agent) for agent in agents]
    manages = team.coordinator in agents
    spec_path, status_path = sockets / f"{name}.json", sockets / f"{name}.txt"

    def prepare(incarnation: int) -> None:
        """Write the specification of the next life."""
        spec = NodeSpec(
            name=name,
            publish_endpoint=f"ipc://{sockets}/publish.sock",
            subscribe_endpoint=f"ipc://{sockets}/subscribe.sock",
            run_dir=team.run_dir.absolute(),
            incarnation=incarnation,
            agents=tuple(
                AgentSpec(name=agent.name, factory=factory, options=agent.options, state=state_for(team, agent))
                for agent, factory in zip(agents, factories, strict=True)
            ),
            services=filled_services(team, sockets),
            journal=(team.journal or team.run_dir / "journal.sqlite").absolute() if manages else None,
            faults=team.faults,
            allow_import=True,
            parent_pid=os.getpid(),
            status_path=status_path,
        )
        write_spec(spec, spec_path)

    return ProcessSpec(
        name=name,
        argv=(sys.executable, "-m", "swarm.node", "--spec", str(spec_path)),
        env=_environment(),
        agents=tuple(agent.name for agent in agents),
        log_path=team.run_dir / "logs" / f"{name}.log",
        status_path=status_path,
        prepare=prepare,
        final_codes=frozenset({FINISHED, USER_MUST_ACT, RUN_FAILED} if manages else {USER_MUST_ACT}),
    )


def _environment() -> dict[str, str]:
    """Let children import what this process can, the directory of a script included."""
    return {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry or ".") for entry in sys.path)}
