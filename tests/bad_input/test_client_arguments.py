"""What a client of the bridge process may say wrongly: the same lines as without a process between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm.environment import TaskParameters
from swarm.errors import ActionError, ConfigError
from tests.integration.test_bridge_process import running

BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"max_episode_steps": 2.5}, "max_episode_steps"),
    ({"autoreset_mode": "never"}, "autoreset_mode='never'"),
    ({"autoreset_mode": [1]}, "autoreset_mode"),
    ({"tasks": [TaskParameters(observation_delay=1.5)] * 2}, r"observation_delay=1\.5: expected a whole number"),  # type: ignore[arg-type]
    ({"tasks": [TaskParameters(gravity=None)] * 2}, "gravity=None: expected a number"),  # type: ignore[arg-type]
    ({"width": "junk"}, "option width is 'junk'"),
    ({"width": 64}, "option 'width' is about pictures"),
    ({"env_id": "FrozenLake-v1", "tasks": [TaskParameters(sensor_noise=1.0)] * 2}, "sensor noise needs"),
    ({"env_id": ".:X"}, "without a module"),
]
BAD_ACTIONS: list[tuple[Any, str]] = [
    ([[0.0] * 6, [0.0]], "of type list are no array of numbers"),
    ("forward", "an array of <U7, expected numbers"),
    ({}, "of type dict"),
    (np.full((2, 6), np.nan), "action 0 of environment 0 is nan"),
    (np.full((2, 6), 1.5), r"action 0 of environment 0 is 1\.5, expected -1 to 1"),
    (np.zeros(6, np.float16), r"actions have shape \(6,\), expected \(2, 6\)"),
]


async def test_a_client_gets_the_same_lines_as_plain_code_and_its_session_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, client):
        for settings, text in BAD_SETTINGS:
            with pytest.raises(ConfigError, match=text) as refused:
                await client.make(**{"env_id": "HalfCheetah-v4", "num_envs": 2, **settings})
            assert "\n" not in str(refused.value)
        env = await client.make("HalfCheetah-v4", 2, actions="strict")
        await env.reset(seed=0)
        for given, text in BAD_ACTIONS:
            with pytest.raises(ActionError, match=text) as caught:
                await env.step(given)
            assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match="crippled=True: expected a whole number"):
            await env.reset(tasks=[TaskParameters(crippled=True)] * 2)
        expected = (await env.step(np.zeros((2, 6), np.float32))).observation
        await env.reset(seed=0, tasks=[TaskParameters(gravity=np.float32(1.0))] * 2)  # type: ignore[arg-type]
        np.testing.assert_array_equal((await env.step(np.zeros((2, 6), np.int8))).observation, expected)  # type: ignore[arg-type]
