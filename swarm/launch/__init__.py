"""Ways to bring a team to life: in this process, or spread over processes of this machine."""

from __future__ import annotations

from swarm.launch.inline import InlineLauncher
from swarm.launch.processes import ProcessesLauncher
from swarm.launch.team import LAUNCHER, SOCKETS, ExtraProcess, Launcher, Running, Team

__all__ = [
    "LAUNCHER",
    "SOCKETS",
    "ExtraProcess",
    "InlineLauncher",
    "Launcher",
    "ProcessesLauncher",
    "Running",
    "Team",
]
