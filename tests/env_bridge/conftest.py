"""Fixtures of all tests of the bridge."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import pytest

from env_bridge.models import route_warnings_to_log


@pytest.fixture(autouse=True)
def _warnings_in_log() -> Iterator[None]:
    """MuJoCo's warnings go to the log instead of a file in the working directory."""
    route_warnings_to_log()
    yield
    mujoco.set_mju_user_warning(None)
