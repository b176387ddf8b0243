from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from env_bridge.service import MAX_ENVIRONMENTS, Service
from env_bridge.wire import Letter, request_to_letter
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import ConfigError
from swarm.messages import Json
from swarm.policy import BLOCK_SIZE


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(workers=1)
    yield service
    service.close()


def make(env_id: str = "HalfCheetah-v4", **options: Json) -> Letter:
    body: dict[str, Json] = {"env_id": env_id, "num_envs": 2, "tasks": [], "actions": "gymnasium"}
    body |= {"autoreset_mode": "NEXT_STEP", "session": "s", "options": options}
    return Letter(kind="make", request_id=1, body=body, arrays={})


def test_settings_of_the_bridge_among_the_options_are_refused(service: Service) -> None:
    with pytest.raises(ConfigError, match=r"options \['workers'\] are settings of the bridge"):
        service.perform(b"client", make(workers=2), lambda: False)


def test_module_is_not_imported_for_a_client(service: Service) -> None:
    with pytest.raises(ConfigError, match="expected a registered id, without a module"):
        service.perform(b"client", make("antigravity:Fun-v0"), lambda: False)


def test_session_made_again_takes_the_place_of_the_first_which_is_closed(service: Service) -> None:
    service.perform(b"client", make(), lambda: False)
    [first] = service._sessions.values()
    service.perform(b"client", make(), lambda: False)
    [second] = service._sessions.values()
    assert first.env.closed
    assert not second.env.closed


def test_a_session_that_no_client_could_use_is_refused_in_one_line_and_leaves_no_process() -> None:
    service, me = Service(workers=2), psutil.Process()
    before = set(me.children())
    letter = make("CartPole-v1")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"CartPole-v1 has actions Discrete\(\) .* expected") as caught:
            service.perform(
                b"client", Letter(kind="make", request_id=1, body=dict(letter.body) | {"num_envs": 16}), lambda: False
            )
        assert "\n" not in str(caught.value)
    assert set(me.children()) == before
    assert not service._sessions
    service.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rollout_of_more_environments_than_a_bridge_has_is_refused(workers: int) -> None:
    count = MAX_ENVIRONMENTS + BLOCK_SIZE
    wanted = RolloutRequest(
        env_id="HalfCheetah-v4", tasks=(TaskParameters(),) * count, seed=0, num_steps=1, policy="random"
    )
    service = Service(workers=workers)
    with pytest.raises(ConfigError, match=f"got {count} environments; at most {MAX_ENVIRONMENTS}"):
        service.perform(b"client", request_to_letter(wanted, 1), lambda: False)
    service.close()
