"""The client of a bridge process, for coroutines: `connect`, `BridgeClient`, `RemoteVectorEnv`.

One plain ZeroMQ socket per client, read through ``loop.add_reader`` (no ``zmq.asyncio``); works on any event loop. A
request that stays without an answer is asked about every second; a bridge that was restarted meanwhile gets it again.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from env_bridge.action_arrays import read_numbers
from env_bridge.infos import infos_from_arrays
from env_bridge.packed import unpack
from env_bridge.tasks import check_task, task_to_json
from env_bridge.wire import (
    DTYPES,
    MAX_FRAME_BYTES,
    Letter,
    decode,
    encode,
    letter_to_result,
    raise_error,
    read,
    read_floats,
    request_to_letter,
)
from swarm.environment import EnvironmentSpec, RolloutRequest, RolloutResult, TaskParameters
from swarm.errors import CodecError, ConfigError, PeerLost
from swarm.messages import Arrays, Json

DEFAULT_PATIENCE_S: Final = 60.0
ASK_AGAIN_S: Final = 1.0
RETRY_SEND_S: Final = 0.05
MAX_BATCH: Final = 64


async def connect(options: Mapping[str, Json]) -> BridgeClient:
    """Make a client of the running loop (entry point of the group ``swarm.services``); waits for nobody.

    Args:
        options: ``endpoint`` of the bridge, and optionally ``patience_s``.

    Raises:
        ConfigError: an option is missing, unknown or of a wrong type.
    """
    unknown = set(options) - {"endpoint", "patience_s"}
    if unknown:
        raise ConfigError(f"unknown option of the bridge client: {', '.join(sorted(unknown))}")
    patience_s = options.get("patience_s", DEFAULT_PATIENCE_S)
    if not isinstance(patience_s, int | float) or isinstance(patience_s, bool) or not patience_s > 0:
        raise ConfigError(f"option patience_s of the bridge client: got {patience_s!r}, expected seconds above 0")
    return BridgeClient(read(options, "endpoint", str), patience_s=float(patience_s))


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """A request under way: ``news`` is set by every letter about it; ``heard_at`` is the loop time of the last one."""

    heard_at: float
    reply: Letter | None = None
    is_unknown: bool = False
    failure: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class BridgeClient:
    """Implements `swarm.environment.Bridge`. Belongs to the event loop in which it was made; close it there."""

    def __init__(self, endpoint: str, *, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint = endpoint
        self._patience_s = patience_s
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._closed = False
        self.rejected = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, uuid.uuid4().bytes)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues for a bridge that is not there
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            self._context.term()
            raise ConfigError(
                f"bridge endpoint {endpoint!r}: {error}; expected ipc:///path or tcp://host:port"
            ) from error
        self._descriptor = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self._drain)

    async def __aenter__(self) -> Self:
        """Use as ``async with``; nothing to wait for."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.aclose()

    async def describe(self, env_id: str) -> EnvironmentSpec:
        """Sizes and limits of ``env_id``. Raises ``ConfigError`` for an unknown id, ``PeerLost`` without a bridge."""
        reply = await self.call("describe", {"env_id": env_id})
        return _read_spec(reply)

    async def rollout(self, request: RolloutRequest) -> RolloutResult:
        """Perform ``request``; a bridge that dies meanwhile is waited for and asked again.

        Raises:
            ConfigError: the request does not fit the environment.
            ActionError: the policy gave an action that is not finite.
            PeerLost: no bridge answered within the client's patience.
            CodecError: its answer does not fit together.
        """
        return unpack(letter_to_result(await self._call(request_to_letter(request, next(self._numbers)))))

    async def make(
        self,
        env_id: str,
        num_envs: int,
        *,
        tasks: Sequence[TaskParameters] = (),
        max_episode_steps: int | None = None,
        autoreset_mode: str = "NEXT_STEP",
        actions: str = "gymnasium",
        **options: Json,
    ) -> RemoteVectorEnv:
        """Open a vector environment in the bridge; arguments as of `env_bridge.BridgeVectorEnv`.

        Raises as ``rollout`` does.
        """
        session = uuid.uuid4().hex
        body: dict[str, Json] = {
            "session": session,
            "env_id": env_id,
            "num_envs": num_envs,
            "tasks": [task_to_json(check_task(task)) for task in tasks],
            "max_episode_steps": max_episode_steps,
            "autoreset_mode": autoreset_mode,
            "actions": actions,
            "options": options,
        }
        return RemoteVectorEnv(self, session, num_envs, _read_spec(await self.call("make", body)))

    async def statistics(self) -> Mapping[str, Json]:
        """Counts of the bridge: requests performed and waiting, and what it rejected by reason."""
        return (await self.call("statistics", {})).body

    async def aclose(self) -> None:
        """Close the connection; requests under way raise ``PeerLost``."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        self._socket.close(linger=0)
        self._context.term()
        for call in self._calls.values():
            call.failure = PeerLost("the client of the bridge was closed")
            call.news.set()

    async def call(self, kind: str, body: Mapping[str, Json], arrays: Arrays | None = None) -> Letter:
        """Send one request and wait for its answer, for operations that have no method of their own."""
        return await self._call(Letter(kind=kind, request_id=next(self._numbers), body=body, arrays=arrays or {}))

    async def _call(self, letter: Letter) -> Letter:
        if self._closed:
            raise PeerLost("the client of the bridge is closed; make a new one")
        call = self._calls[letter.request_id] = _Call(heard_at=self._loop.time())
        try:
            return raise_error(await self._converse(letter, call))
        finally:
            del self._calls[letter.request_id]
            if call.reply is None and not self._closed:
                self._send(encode(Letter(kind="cancel", request_id=letter.request_id)))

    async def _converse(self, letter: Letter, call: _Call) -> Letter:
        """Send, ask again, send again to a restarted bridge, until there is an answer or patience ends."""
        request = encode(letter)
        query = encode(Letter(kind="query", request_id=letter.request_id))
        sent = False
        while True:
            if not sent:
                sent = self._send(request)
            try:
                async with asyncio.timeout(ASK_AGAIN_S if sent else RETRY_SEND_S):
                    await call.news.wait()
            except TimeoutError:
                if self._loop.time() - call.heard_at > self._patience_s:
                    raise PeerLost(
                        f"no bridge answered at {self._endpoint} for {self._patience_s:g} s; start env_bridge.server"
                    ) from None
                if sent:
                    self._send(query)
            call.news.clear()
            if call.failure is not None:
                raise call.failure
            if call.reply is not None:
                return call.reply
            if call.is_unknown:
                call.is_unknown, sent = False, False

    def _send(self, frames: list[bytes | memoryview]) -> bool:
        """Whether the frames went out; sending may swallow the descriptor's edge, so readiness is looked at after."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        finally:
            self._loop.call_soon(self._drain)
        return True

    def _drain(self) -> None:
        """Take in what waits: ZeroMQ's descriptor fires on edges, so read until there is nothing left."""
        if self._closed:
            return
        for _ in range(MAX_BATCH):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._take(decode(frames))
            except CodecError:
                self.rejected += 1
        self._loop.call_soon(self._drain)

    def _take(self, letter: Letter) -> None:
        call = self._calls.get(letter.request_id)
        if call is None:  # answered already, or given up
            return
        call.heard_at = self._loop.time()
        if letter.kind == "working":
            return
        if letter.kind == "unknown":
            call.is_unknown = True
        else:
            call.reply = letter
        call.news.set()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RemoteStep:
    """One step of a remote environment: ``observation`` (E, O), ``reward`` (E,) float64, flags (E,) bool, and infos."""

    observation: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    infos: dict[str, Any]


class RemoteVectorEnv:
    """N environments that live in the bridge; behaves as `env_bridge.gym_vector.BridgeVectorEnv` does.

    They live as long as the bridge process: after its restart every call raises ``PeerLost``.
    """

    def __init__(self, client: BridgeClient, session: str, num_envs: int, spec: EnvironmentSpec) -> None:
        self._client = client
        self._session = session
        self._turn = 0
        self.num_envs = num_envs
        self.spec = spec

    async def _call(self, kind: str, arrays: Arrays | None = None, body: Mapping[str, Json] | None = None) -> Letter:
        whole: dict[str, Json] = {"session": self._session, "turn": self._turn, **(body or {})}
        self._turn += 1
        return await self._client.call(kind, whole, arrays)

    async def reset(
        self,
        seed: int | None = None,
        *,
        mask: NDArray[np.bool_] | None = None,
        tasks: Sequence[TaskParameters] = (),
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start new episodes, environment e with ``seed + e``; return observations (E, O) and infos.

        Args:
            seed: ``None``: the generators go on.
            mask: (E,) which to reset; ``None``: all.
            tasks: new tasks of all environments; none: they stay.
        """
        body: dict[str, Json] = {"seed": seed, "tasks": [task_to_json(check_task(task)) for task in tasks]}
        arrays = (await self._call("reset", None if mask is None else {"mask": mask}, body)).arrays
        return np.array(arrays["observation"]), infos_from_arrays(arrays)

    async def step(self, actions: NDArray[np.float32]) -> RemoteStep:
        """Step all with ``actions`` (E, A) in the environment's units; what ended is reset by the next step.

        Raises:
            ActionError: an action is not finite, or they are no array of numbers; nothing was stepped.
        """
        given = read_numbers(actions)
        if given.dtype.name not in DTYPES:
            given = given.astype(np.float64)
        arrays = (await self._call("step", {"action": given})).arrays
        return RemoteStep(
            observation=np.array(arrays["observation"]),
            reward=np.array(arrays["reward"], dtype=np.float64),
            terminated=np.array(arrays["terminated"], dtype=np.bool_),
            truncated=np.array(arrays["truncated"], dtype=np.bool_),
            infos=infos_from_arrays(arrays),
        )

    async def get_state(self) -> Arrays:
        """Everything that the future depends on, as plain arrays."""
        return (await self._call("get_state")).arrays

    async def set_state(self, state: Arrays) -> None:
        """Return to an earlier ``get_state``. Raises ``ConfigError`` where it does not fit."""
        await self._call("set_state", state)

    async def close(self) -> None:
        """Give the environments up."""
        await self._call("close")


def _read_spec(reply: Letter) -> EnvironmentSpec:
    body = reply.body
    return EnvironmentSpec(
        env_id=read(body, "env_id", str),
        observation_size=read(body, "observation_size", int),
        action_size=read(body, "action_size", int),
        action_low=read_floats(body, "action_low"),
        action_high=read_floats(body, "action_high"),
        max_episode_steps=read(body, "max_episode_steps", int),
        timestep_s=read(body, "timestep_s", float),
    )
