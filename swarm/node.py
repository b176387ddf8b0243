"""A node: a process that hosts agents. ``python -m swarm.node --spec FILE``.

Exit codes: 0 the managing agent's run ended; 2 the user must act (``ConfigError``); 3 the managing agent failed for
good; 143 asked to stop; 1 anything else, which a restart may mend.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from swarm.ablation import Ablation
from swarm.agent import Agent
from swarm.agent_factory import build_agent
from swarm.context import NodeResources, compute_thread
from swarm.errors import BusClosed, ConfigError, PeerLost, SwarmError, traceback_of
from swarm.host import AgentHost
from swarm.journal import Journal
from swarm.lifeline import die_with_parent, watch_standard_input
from swarm.node_spec import NodeSpec, read_spec
from swarm.services import connect_all
from swarm.zmq_bus import ZmqBus

FINISHED: Final = 0
RESTARTABLE: Final = 1
USER_MUST_ACT: Final = 2
RUN_FAILED: Final = 3
STOPPED: Final = 143
log = structlog.get_logger(__name__)


async def run_node(spec: NodeSpec) -> None:
    """Host the agents of ``spec`` until the managing one's run has ended, or until cancelled.

    Raises:
        ConfigError: an agent or service is not what the specification says.
        Exception: what the managing agent's run, or any agent's own run, raised.
    """
    agents = [_build(spec, index) for index in range(len(spec.agents))]
    async with contextlib.AsyncExitStack() as stack:
        compute = compute_thread()
        stack.callback(compute.shutdown, wait=False, cancel_futures=True)
        journal = None
        if spec.journal is not None and any(agent.manages for agent in agents):
            journal = stack.enter_context(Journal.open(spec.journal))
        node = NodeResources(
            run_dir=spec.run_dir,
            compute=compute,
            services=await connect_all(spec.services, stack),
            ablation=Ablation(spec.faults),
            journal=journal,
        )
        hosts = [
            AgentHost(
                agent,
                ZmqBus(agent.name, spec.publish_endpoint, spec.subscribe_endpoint, incarnation=spec.incarnation),
                node,
            )
            for agent in agents
        ]
        await _serve_all(hosts)


def _build(spec: NodeSpec, index: int) -> Agent:
    wanted = spec.agents[index]
    agent = build_agent(wanted.factory, wanted.name, wanted.options, allow_import=spec.allow_import)
    if wanted.state:
        agent.load(wanted.state)
    return agent


async def _serve_all(hosts: Sequence[AgentHost]) -> None:
    """Serve until the first host ends; an error in one ends all, since the process is the unit of restart."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(host.serve(), name=f"{host.agent.name}:serve") for host in hosts]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _run_until_stopped(spec: NodeSpec) -> int:
    """Run the node; SIGTERM, SIGINT or the end of standard input stop it. Returns the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    if spec.parent_pid is not None:
        watch_standard_input(loop, stop)
    work = asyncio.create_task(run_node(spec), name="node")
    stopper = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({work, stopper}, return_when=asyncio.FIRST_COMPLETED)
    stopper.cancel()
    if not work.done():
        work.cancel()
    try:
        await work
    except asyncio.CancelledError:
        return STOPPED
    except Exception as error:
        return _report(spec, error)
    return FINISHED


def _report(spec: NodeSpec, error: Exception) -> int:
    """Leave one clear line, for people and for the supervisor; the traceback only of what nobody foresaw."""
    if not isinstance(error, SwarmError):
        log.error("node_failed", stack=traceback_of(error))
    line = f"{type(error).__name__}: {error}"
    sys.stderr.write(f"swarm.node {spec.name}: {line}\n")
    if spec.status_path is not None:
        spec.status_path.write_text(line)
    if isinstance(error, ConfigError):
        return USER_MUST_ACT
    hosts_manager = spec.journal is not None
    return RUN_FAILED if hosts_manager and not isinstance(error, PeerLost | BusClosed) else RESTARTABLE


def configure_logging(node: str) -> None:
    """Log one JSON object a line to standard error; a node is an application, so that this is its own business."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(default=str)],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(node=node)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processor=structlog.processors.JSONRenderer(default=str)
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one node; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m swarm.node", description="Host agents of a swarm in this process.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file that says what to host (swarm.node_spec)")
    try:
        spec = read_spec(parser.parse_args(arguments).spec)
    except ConfigError as error:
        sys.stderr.write(f"swarm.node: {error}\n")
        return USER_MUST_ACT
    if spec.parent_pid is not None:
        die_with_parent(spec.parent_pid)
    configure_logging(spec.name)
    return asyncio.run(_run_until_stopped(spec))


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # the interpreter's own exit would wait for a computation that nobody needs any more
