"""What names may look like: of agents and files, of tasks, and of Unix sockets."""

from __future__ import annotations

import re
from typing import Final

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Agents, members, peers, kinds of work, runs, and files of a checkpoint; use ``fullmatch``."""

TASK_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""Ids of tasks, which are made of other names."""

MAX_SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path: what ``sockaddr_un`` holds on Linux, without the final zero."""
