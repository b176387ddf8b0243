"""How client and server of the bridge write to each other: a MessagePack header, then one frame per array. No pickle.

===== ======================================================================================================
frame content
===== ======================================================================================================
0     ``b"bridge2"``
1     MessagePack map: ``kind``, ``id``, ``body`` (plain data), ``arrays`` (list of [name, dtype, shape])
2 …   the bytes of each array, C order, little endian, in the order of ``arrays``
===== ======================================================================================================

Everything is checked against the received lengths before an array is made; an array is a read-only view of its frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from env_bridge.tasks import task_from_json, task_to_json
from swarm.environment import EpisodeStatistics, RolloutRequest, RolloutResult
from swarm.errors import ActionError, CodecError, ConfigError, PeerLost, SwarmError
from swarm.messages import Arrays, Json

MAGIC: Final = b"bridge2"
DTYPES: Final = {name: np.dtype(name) for name in ("bool", "int32", "int64", "uint64", "float32", "float64")}
MAX_HEADER_BYTES: Final = 4 << 20
MAX_FRAME_BYTES: Final = 1 << 30
MAX_ARRAYS: Final = 4096
MAX_DIMENSIONS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Letter:
    """One request or reply.

    Attributes:
        kind: operation of a request; of a reply ``ok``, ``working``, ``unknown``, or an error's kind.
        request_id: chosen by the client, repeated by the reply.
    """

    kind: str
    request_id: int
    body: Mapping[str, Json] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


def encode(letter: Letter) -> list[bytes | memoryview]:
    """Frames of ``letter``; array frames are views where the arrays are contiguous already."""
    described: list[list[Json]] = []
    frames: list[bytes | memoryview] = []
    for name, array in letter.arrays.items():
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        if contiguous.dtype.name not in DTYPES:
            raise CodecError("bad-dtype", f"array {name!r} has dtype {contiguous.dtype}, expected {', '.join(DTYPES)}")
        described.append([name, contiguous.dtype.name, list(contiguous.shape)])
        frames.append(contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b"")
    header = {"kind": letter.kind, "id": letter.request_id, "body": letter.body, "arrays": described}
    return [MAGIC, msgpack.packb(header), *frames]


def decode(frames: Sequence[zmq.Frame | bytes | memoryview]) -> Letter:
    """Check and read the frames of one letter. Raises ``CodecError`` with a countable reason."""
    buffers = [frame.buffer if isinstance(frame, zmq.Frame) else memoryview(frame) for frame in frames]
    if len(buffers) < 2 or bytes(buffers[0][: len(MAGIC) + 1]) != MAGIC:
        raise CodecError("bad-magic", f"{len(buffers)} frames that do not start with {MAGIC!r}")
    header = _unpack(buffers[1])
    kind, request_id, body, described = (header.get(key) for key in ("kind", "id", "body", "arrays"))
    if not isinstance(kind, str) or not isinstance(request_id, int) or isinstance(request_id, bool):
        raise CodecError("bad-header", "kind must be a text and id a whole number")
    if not isinstance(body, dict) or not isinstance(described, list):
        raise CodecError("bad-header", "body must be a map and arrays a list")
    if len(described) != len(buffers) - 2 or len(described) > MAX_ARRAYS:
        raise CodecError("bad-frames", f"{len(described)} arrays described, {len(buffers) - 2} frames came")
    arrays: dict[str, NDArray[np.generic]] = {}
    for entry, buffer in zip(described, buffers[2:], strict=True):
        name, array = _read_array(entry, buffer)
        if name in arrays:
            raise CodecError("bad-array", f"array {name!r} came twice")
        arrays[name] = array
    return Letter(kind=kind, request_id=request_id, body=body, arrays=arrays)


def _unpack(buffer: memoryview) -> dict[str, Any]:
    if buffer.nbytes > MAX_HEADER_BYTES:
        raise CodecError("too-large", f"header of {buffer.nbytes} bytes, at most {MAX_HEADER_BYTES}")
    try:
        header = msgpack.unpackb(buffer, strict_map_key=True, max_ext_len=0)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise CodecError("bad-msgpack", f"{type(error).__name__}: {error}") from error
    if not isinstance(header, dict) or not all(isinstance(key, str) for key in header):
        raise CodecError("bad-header", "expected a map with text keys")
    return header


def _read_array(entry: object, buffer: memoryview) -> tuple[str, NDArray[np.generic]]:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
        raise CodecError("bad-array", "expected [name, dtype, shape]")
    name, dtype_name, shape = entry
    dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise CodecError("bad-dtype", f"array {name!r} claims dtype {dtype_name!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise CodecError("bad-shape", f"array {name!r} claims shape {shape!r}")
    if not all(type(size) is int and 0 <= size <= MAX_FRAME_BYTES for size in shape):
        raise CodecError("bad-shape", f"array {name!r} claims shape {shape!r}")
    if math.prod(shape) * dtype.itemsize != buffer.nbytes:
        raise CodecError("bad-length", f"array {name!r}: {buffer.nbytes} bytes for {dtype} {shape}")
    if dtype == np.bool_ and buffer.nbytes and int(np.frombuffer(buffer, np.uint8).max()) > 1:
        raise CodecError("bad-bool", f"array {name!r} holds bytes that are neither 0 nor 1")
    array = np.frombuffer(buffer, dtype).reshape(shape)
    array.flags.writeable = False
    return name, array


# --- the bodies of rollouts -------------------------------------------------------------------------------------------


def _group(prefix: str, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    return {f"{prefix}/{name}": np.asarray(array) for name, array in arrays.items()}


def _ungroup(prefix: str, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    start = f"{prefix}/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def request_to_letter(request: RolloutRequest, request_id: int) -> Letter:
    """Write a rollout request."""
    arrays = _group("weights", request.weights)
    if request.snapshot is not None:
        arrays |= _group("snapshot", request.snapshot)
    if request.policy_state is not None:
        arrays["policy_state"] = request.policy_state
    body: dict[str, Json] = {
        "env_id": request.env_id,
        "tasks": [task_to_json(task) for task in request.tasks],
        "seed": request.seed,
        "num_steps": request.num_steps,
        "policy": request.policy,
        "policy_options": request.policy_options,
        "has_snapshot": request.snapshot is not None,
        "carry_state": request.carry_state,
        "noise_seed": request.noise_seed,
        "max_episode_steps": request.max_episode_steps,
        "record_qpos": request.record_qpos,
    }
    return Letter(kind="rollout", request_id=request_id, body=body, arrays=arrays)


def letter_to_request(letter: Letter) -> RolloutRequest:
    """Read a rollout request. Raises ``ConfigError`` for fields of a wrong type."""
    body, arrays = letter.body, letter.arrays
    state = arrays.get("policy_state")
    return RolloutRequest(
        env_id=read(body, "env_id", str),
        tasks=tuple(task_from_json(task) for task in read_maps(body, "tasks")),
        seed=read(body, "seed", int),
        num_steps=read_optional(body, "num_steps"),
        policy=read(body, "policy", str),
        weights=_ungroup("weights", arrays),
        policy_options=cast(Mapping[str, Json], read(body, "policy_options", dict)),
        snapshot=_ungroup("snapshot", arrays) if read(body, "has_snapshot", bool) else None,
        policy_state=None if state is None else cast(NDArray[np.float32], state),
        carry_state=read(body, "carry_state", bool),
        noise_seed=read_optional(body, "noise_seed"),
        max_episode_steps=read_optional(body, "max_episode_steps"),
        record_qpos=read(body, "record_qpos", bool),
    )


def result_to_letter(result: RolloutResult, request_id: int) -> Letter:
    """Write a rollout's result, packed."""
    arrays = _group("columns", result.columns) | _group("snapshot", result.snapshot)
    arrays["policy_state"] = result.policy_state
    body: dict[str, Json] = {
        "episodes": [asdict(episode) for episode in result.episodes],
        "num_steps": result.num_steps,
    }
    return Letter(kind="ok", request_id=request_id, body=body, arrays=arrays)


def letter_to_result(letter: Letter) -> RolloutResult:
    """Read a rollout's result, packed."""
    episodes = [EpisodeStatistics(**episode) for episode in read_maps(letter.body, "episodes")]  # type: ignore[arg-type]
    return RolloutResult(
        columns=_ungroup("columns", letter.arrays),
        snapshot=_ungroup("snapshot", letter.arrays),
        policy_state=cast(NDArray[np.float32], letter.arrays["policy_state"]),
        episodes=tuple(episodes),
        num_steps=read(letter.body, "num_steps", int),
    )


def raise_error(reply: Letter) -> Letter:
    """Return the reply, if it is one. Raises the error that it names."""
    if reply.kind == "ok":
        return reply
    text = str(reply.body.get("text", ""))
    match reply.kind:
        case "config-error":
            raise ConfigError(text)
        case "action-error":
            raise ActionError(text)
        case "session-lost":
            raise PeerLost(text)
        case _:
            raise SwarmError(f"the bridge failed: {text}")


def read(body: Mapping[str, Json], key: str, kind: type[Any]) -> Any:  # noqa: ANN401 - the caller names the type
    """The value of ``key``. Raises ``ConfigError`` unless it is a ``kind`` (and no bool where a number is meant)."""
    value = body.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"request field {key!r}: got {value!r}, expected {kind.__name__}")
    return value


def read_optional(body: Mapping[str, Json], key: str) -> int | None:
    """A whole number or nothing. Raises ``ConfigError`` otherwise."""
    return None if body.get(key) is None else int(read(body, key, int))


def read_maps(body: Mapping[str, Json], key: str) -> list[dict[str, Json]]:
    """A list of maps. Raises ``ConfigError`` otherwise."""
    value = read(body, key, list)
    if not all(isinstance(item, dict) for item in value):
        raise ConfigError(f"request field {key!r}: expected a list of maps")
    return cast(list[dict[str, Json]], value)


def read_floats(body: Mapping[str, Json], key: str) -> tuple[float, ...]:
    """A list of floats. Raises ``ConfigError`` otherwise."""
    value = read(body, key, list)
    if not all(isinstance(item, float) for item in value):
        raise ConfigError(f"request field {key!r}: expected a list of numbers")
    return tuple(value)


def read_optional_map(body: Mapping[str, Json], key: str) -> dict[str, Json] | None:
    """A map or nothing. Raises ``ConfigError`` otherwise."""
    return None if body.get(key) is None else cast(dict[str, Json], read(body, key, dict))
