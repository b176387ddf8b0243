"""What the bridge does for a request; knows nothing of sockets.

Built environments are kept per (environment id, number), because compiling a model takes longer than a short rollout.
Rollouts and descriptions are pure, so that asking again is harmless. A session (an environment that a client steps by
itself) carries a turn number: a request that came twice is not stepped twice.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from env_bridge.arguments import FEW
from env_bridge.gym_vector import BridgeVectorEnv
from env_bridge.infos import infos_to_arrays
from env_bridge.rollout import check_request, run_packed
from env_bridge.rollout_pool import RolloutPool
from env_bridge.tasks import task_from_json
from env_bridge.vector_env import VectorEnv
from env_bridge.wire import Letter, letter_to_request, read, read_maps, read_optional, result_to_letter
from swarm.errors import ActionError, ConfigError, SwarmError
from swarm.messages import Json

MAX_ENVIRONMENTS: Final = 4096
MAX_KEPT: Final = 8
MAX_SESSIONS: Final = 64
SETTINGS: Final = inspect.signature(BridgeVectorEnv).parameters.keys() - {"options"}
"""What the maker of a session says by other words than ``options``."""


class SessionLost(SwarmError):
    """The session is not known (any more): the bridge was restarted, or too many newer ones were opened."""


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """An environment that a client steps by itself, and the number of its next request."""

    env: BridgeVectorEnv
    turn: int = 0


class Kept:
    """Environments by what they were made of, at most `MAX_KEPT`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, VectorEnv] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], VectorEnv]) -> VectorEnv:
        """The environment of ``key``, made where it is not there; the one that was not used for longest is closed."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)[1].close()
        return self._kept[key]

    def close(self) -> None:
        """Close all."""
        while self._kept:
            self._kept.popitem()[1].close()


class Service:
    """Performs requests one after the other. Not thread-safe: one thread owns it."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = RolloutPool(workers)
        self._kept = Kept()
        self._sessions: OrderedDict[tuple[bytes, str], Session] = OrderedDict()
        self._operations: Mapping[str, Callable[[bytes, Letter], Letter]] = {
            "describe": self._describe,
            "make": self._make,
            "reset": self._reset,
            "step": self._step,
            "get_state": self._get_state,
            "set_state": self._set_state,
            "close": self._close,
        }

    def perform(self, client: bytes, letter: Letter, should_stop: Callable[[], bool]) -> Letter:
        """Do what ``letter`` asks.

        Raises:
            ConfigError: the request does not fit.
            ActionError: an action is not finite.
            SessionLost: the session of the request is gone.
            RolloutCancelled: ``should_stop`` said so.
        """
        if letter.kind == "rollout":
            return self._rollout(letter, should_stop)
        operation = self._operations.get(letter.kind)
        if operation is None:
            raise ConfigError(f"unknown request {letter.kind!r}; known: rollout, {', '.join(self._operations)}")
        return operation(client, letter)

    def _environment(self, env_id: str, num_envs: int) -> VectorEnv:
        return self._kept.get((env_id, num_envs), lambda: VectorEnv(env_id, num_envs, workers=self._workers))

    def _rollout(self, letter: Letter, should_stop: Callable[[], bool]) -> Letter:
        request = letter_to_request(letter)
        check_request(request)
        if len(request.tasks) > MAX_ENVIRONMENTS:
            raise ConfigError(f"got {len(request.tasks)} environments; at most {MAX_ENVIRONMENTS}")
        if self._pool.takes(request):
            return result_to_letter(self._pool.perform(request, should_stop), letter.request_id)
        env = self._environment(request.env_id, len(request.tasks))
        return result_to_letter(run_packed(request, env, should_stop=should_stop), letter.request_id)

    def close(self) -> None:
        """End worker processes and stepping threads."""
        self._pool.close()
        for session in self._sessions.values():
            session.env.close()
        self._kept.close()

    def _describe(self, client: bytes, letter: Letter) -> Letter:
        env = self._environment(read(letter.body, "env_id", str), 1)
        env.set_time_limit(None)
        return answer(letter, asdict(env.spec))

    def _make(self, client: bytes, letter: Letter) -> Letter:
        num_envs = read(letter.body, "num_envs", int)
        if not 1 <= num_envs <= MAX_ENVIRONMENTS:
            raise ConfigError(f"got num_envs={num_envs}; expected 1 to {MAX_ENVIRONMENTS}")
        tasks = [task_from_json(task) for task in read_maps(letter.body, "tasks")]
        options = read(letter.body, "options", dict)
        if taken := sorted(SETTINGS & options.keys()):
            raise ConfigError(f"options {taken} are settings of the bridge; expected those of the environment's class")
        env_id = read(letter.body, "env_id", str)
        if ":" in env_id:  # a client must not have this process import what it likes
            raise ConfigError(f"got environment {env_id!r}; expected a registered id, without a module")
        env = BridgeVectorEnv(
            env_id,
            num_envs,
            workers=self._workers if self._workers > 1 and num_envs > FEW else 0,
            autoreset_mode=read(letter.body, "autoreset_mode", str),
            max_episode_steps=read_optional(letter.body, "max_episode_steps"),
            tasks=tasks or None,
            actions=read(letter.body, "actions", str),
            **options,
        )
        try:
            described = answer(letter, asdict(env.describe()))
            key = (client, read(letter.body, "session", str))
        except BaseException:
            env.close()
            raise
        if key in self._sessions:
            self._sessions.pop(key).env.close()
        self._sessions[key] = Session(env=env)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)[1].env.close()
        return described

    def _session(self, client: bytes, letter: Letter) -> Session:
        key = (client, read(letter.body, "session", str))
        session, turn = self._sessions.get(key), read(letter.body, "turn", int)
        if session is None:
            raise SessionLost("the bridge does not know this session (it was restarted, or 64 newer ones were opened)")
        if turn != session.turn:
            raise SessionLost(f"the session is at request {session.turn}, this is request {turn}")
        session.turn += 1
        self._sessions.move_to_end(key)
        return session

    def _reset(self, client: bytes, letter: Letter) -> Letter:
        session = self._session(client, letter)
        tasks = [task_from_json(task) for task in read_maps(letter.body, "tasks")]
        options: dict[str, object] = {"tasks": tasks} if tasks else {}
        if "mask" in letter.arrays:
            options["reset_mask"] = np.array(letter.arrays["mask"], dtype=np.bool_)
        observation, infos = session.env.reset(seed=read_optional(letter.body, "seed"), options=options)
        return answer(letter, {}, observation=observation, **infos_to_arrays(infos))

    def _step(self, client: bytes, letter: Letter) -> Letter:
        session = self._session(client, letter)
        action = letter.arrays.get("action")
        if action is None:
            raise ConfigError("request 'step' came without its array 'action'")
        observation, reward, terminated, truncated, infos = session.env.step(action)
        arrays = {"observation": observation, "reward": reward, "terminated": terminated, "truncated": truncated}
        return answer(letter, {}, **arrays, **infos_to_arrays(infos))

    def _get_state(self, client: bytes, letter: Letter) -> Letter:
        return answer(letter, {}, **self._session(client, letter).env.get_state())

    def _set_state(self, client: bytes, letter: Letter) -> Letter:
        self._session(client, letter).env.set_state(letter.arrays)
        return answer(letter, {})

    def _close(self, client: bytes, letter: Letter) -> Letter:
        session = self._sessions.pop((client, read(letter.body, "session", str)), None)
        if session is not None:
            session.env.close()
        return answer(letter, {})


def answer(letter: Letter, body: Mapping[str, Json], **arrays: NDArray[np.generic]) -> Letter:
    """The reply ``ok`` to ``letter``."""
    return Letter(kind="ok", request_id=letter.request_id, body=body, arrays=arrays)


def error_kind(error: BaseException) -> str:
    """How an error is called on the wire; ``error`` is a defect of the bridge."""
    kinds = ((ActionError, "action-error"), (ConfigError, "config-error"), (SessionLost, "session-lost"))
    return next((name for kind, name in kinds if isinstance(error, kind)), "error")
