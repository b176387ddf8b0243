"""The inner loop of stepping, compiled: actions in, MuJoCo's ``mj_step``, fields out, without the interpreter's lock.

Letters: E environments, A actions, S integration state, F fields.

numba compiles the loop and calls MuJoCo's own C functions in the very library that its Python bindings loaded, on the
addresses of the bindings' models and data: the bits are those of ``mujoco.mj_step``. What is saved is the interpreter's
share of each environment's step (2 of 31 µs for HalfCheetah).

All environments lie on a `Board`, which threads and processes can share. Whoever steps (a `Stepper`) takes one
environment after the other from it until none is left, so that nobody waits for more than the last one.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from enum import IntEnum, auto
from pathlib import Path
from typing import Any, Final

import llvmlite.binding
import mujoco
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from env_bridge.robots.anatomy import Robot
from env_bridge.shared_arrays import ArraySpec
from swarm.errors import SwarmError

Integers = NDArray[np.int64]
FIRST_WARNING: Final = int(mujoco.mjtWarning.mjWARN_BADQPOS)
LAST_WARNING: Final = int(mujoco.mjtWarning.mjWARN_BADQACC)
STATE: Final = int(mujoco.mjtState.mjSTATE_INTEGRATION)
LEFT, COUNT, SOON = 0, 1, 2
NUM_COUNTERS = 3
FIELD: Final = "field."
COUNTERS: Final = "counters"
LOOKS: Final = 4000
"""Looks for a byte before waiting for it: about two milliseconds, in which whoever waits has nothing else to do."""
FEW_LOOKS: Final = 200
"""As many where the last one was in vain: about as long as falling asleep and being woken takes."""
RETRY_EVERY: Final = 16
"""So many times in vain, and the longer look is tried again."""
DONT_WAIT: Final = int(socket.MSG_DONTWAIT)
NO_SIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
WARNING_WORDS: Final = 2
"""A warning's statistics are two 32-bit words, (last information, number)."""
NO_NUMBERS: Final = np.empty(0)


def _load_library() -> None:
    """Make MuJoCo's functions known by name. Raises ``SwarmError`` where the bindings came without their library."""
    folder = Path(mujoco.__file__).parent
    found = sorted(
        path for pattern in ("libmujoco*.so*", "libmujoco*.dylib", "mujoco.dll") for path in folder.glob(pattern)
    )
    if not found:
        raise SwarmError(f"no MuJoCo library beside the bindings in {folder}; reinstall the package mujoco")
    llvmlite.binding.load_library_permanently(str(found[0]))


_load_library()
_DOUBLES: Final[Any] = types.CPointer(types.float64)  # type: ignore[no-untyped-call]
_array: Final[Any] = numba.carray  # type: ignore[attr-defined]
_READ: Final[Any] = types.ExternalFunction("read", types.intp(types.intc, types.voidptr, types.uintp))
_WRITE: Final[Any] = types.ExternalFunction("write", types.intp(types.intc, types.voidptr, types.uintp))
_RECEIVE: Final[Any] = types.ExternalFunction("recv", types.intp(types.intc, types.voidptr, types.uintp, types.intc))
_SEND: Final[Any] = types.ExternalFunction("send", types.intp(types.intc, types.voidptr, types.uintp, types.intc))
_STEP: Final[Any] = types.ExternalFunction("mj_step", types.void(types.voidptr, types.voidptr))
_SET_STATE: Final[Any] = types.ExternalFunction(
    "mj_setState", types.void(types.voidptr, types.voidptr, types.voidptr, types.intc)
)
_GET_STATE: Final[Any] = types.ExternalFunction(
    "mj_getState", types.void(types.voidptr, types.voidptr, types.voidptr, types.intc)
)
_POST_CONSTRAINT: Final[Any] = types.ExternalFunction("mj_rnePostConstraint", types.void(types.voidptr, types.voidptr))


def _make_pointer(context: Any, address: Any) -> Any:  # noqa: ANN401 - numba's protocol
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


_pointer: Any = intrinsic(_make_pointer)


def _make_doubles(context: Any, address: Any) -> Any:  # noqa: ANN401
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(values[0], ir.DoubleType().as_pointer())

    return _DOUBLES(types.intp), generate


_doubles: Any = intrinsic(_make_doubles)


def _make_take(context: Any, address: Any) -> Any:  # noqa: ANN401
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        place = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("sub", place, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(types.intp), generate


_take: Any = intrinsic(_make_take)
"""Return the integer at an address and take one from it, as one act for all threads and processes."""


def _make_fence(context: Any) -> Any:  # noqa: ANN401
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


_fence: Any = intrinsic(_make_fence)
"""Have other processes see what was written before earlier than what is written after, and read likewise."""


class Place(IntEnum):
    """What the kernel finds where in its one array: addresses and sizes (an argument of a call costs time, each)."""

    NUM_ENVS = 0
    MODELS = auto()
    DATA = auto()
    CONTROL = auto()
    WARNINGS = auto()
    STATES = auto()
    STATE_SIZE = auto()
    DIVERGED = auto()
    ACTION = auto()
    ACTION_SIZE = auto()
    INDICES = auto()
    COUNTERS = auto()
    DONE = auto()
    FRAME_SKIP = auto()
    POST_CONSTRAINT = auto()
    NUM_FIELDS = auto()
    FIELDS = auto()
    """From here on, for each field: its address in the data, its address on the board, its size."""


@numba.njit(cache=True, nogil=True)
def _gather(places: Any, e: int) -> None:  # noqa: ANN401 - (≥ Place.FIELDS,) int64; see `Place`
    for f in range(places[Place.NUM_FIELDS]):
        at = Place.FIELDS + 3 * f
        size = places[at + 2]
        source = _array(_doubles(places[at]), size)
        target = _array(_doubles(places[at + 1] + 8 * size * e), size)
        for k in range(size):
            target[k] = source[k]


@numba.njit(cache=True, nogil=True)
def _step_one(places: Any) -> bool:  # noqa: ANN401
    counters = _array(_pointer(places[Place.COUNTERS]), NUM_COUNTERS, np.int64)
    _fence()
    if counters[LEFT] <= 0:
        return False
    left = _take(places[Place.COUNTERS])
    if left <= 0:
        return False
    num_envs, num_actions = places[Place.NUM_ENVS], places[Place.ACTION_SIZE]
    models = _array(_pointer(places[Place.MODELS]), num_envs, np.int64)
    control = _array(_doubles(places[Place.CONTROL]), num_actions)
    warnings = _array(_pointer(places[Place.WARNINGS]), (LAST_WARNING - FIRST_WARNING + 1, WARNING_WORDS), np.int32)
    diverged = _array(_pointer(places[Place.DIVERGED]), num_envs, np.bool_)
    action = _array(_pointer(places[Place.ACTION]), (num_envs, num_actions), np.float32)
    indices = _array(_pointer(places[Place.INDICES]), num_envs, np.int64)
    done = _array(_pointer(places[Place.DONE]), num_envs, np.bool_)
    place = counters[COUNT] - left
    data, e = _pointer(places[Place.DATA]), indices[place]
    model, state = _pointer(models[e]), _pointer(places[Place.STATES] + 8 * places[Place.STATE_SIZE] * e)
    _SET_STATE(model, data, state, STATE)
    for j in range(num_actions):
        control[j] = action[e, j]
    for k in range(warnings.shape[0]):
        warnings[k, 0] = 0
    for _ in range(places[Place.FRAME_SKIP]):
        _STEP(model, data)
    if places[Place.POST_CONSTRAINT]:
        _POST_CONSTRAINT(model, data)
    _gather(places, e)
    _GET_STATE(model, data, state, STATE)
    diverged[e] = False
    for k in range(warnings.shape[0]):
        if warnings[k, 0] != 0:
            diverged[e] = True
    _fence()
    done[place] = True
    return True


@numba.njit(cache=True, nogil=True)
def _step(places: Any) -> None:  # noqa: ANN401
    while _step_one(places):
        pass


@numba.njit(cache=True, nogil=True)
def _look_for_byte(descriptor: int, byte: Any, tries: int) -> bool:  # noqa: ANN401
    while tries > 0 and _RECEIVE(descriptor, _pointer(byte.ctypes.data), 1, DONT_WAIT) != 1:
        tries -= 1
    return tries > 0


@numba.njit(cache=True, nogil=True)
def _ask(descriptor: int, question: Any, answer: Any, unanswered: int) -> bool:  # noqa: ANN401
    sent = _SEND(descriptor, _pointer(question.ctypes.data), 1, NO_SIGNAL)
    if sent == 1:
        answer[0] = unanswered
    return bool(sent == 1)


@numba.njit(cache=True, nogil=True)
def _serve(descriptor: int, byte: Any, answer: Any, places: Any) -> int:  # noqa: ANN401
    asked, counters = byte[0], _array(_pointer(places[Place.COUNTERS]), NUM_COUNTERS, np.int64)
    in_vain = 0
    while True:
        received = 1
        looks = (FEW_LOOKS if in_vain % RETRY_EVERY else LOOKS) if counters[SOON] else 0
        if _look_for_byte(descriptor, byte, looks):
            in_vain = 0
        else:
            in_vain += 1
            received = _READ(descriptor, _pointer(byte.ctypes.data), 1)
        if received != 1 or byte[0] != asked:
            return int(received)
        _step(places)
        _WRITE(descriptor, _pointer(answer.ctypes.data), 1)


def look_for_byte(descriptor: int, byte: NDArray[np.uint8], tries: int) -> bool:
    """Ask a socket ``tries`` times for a byte, without waiting; whether it came into ``byte`` (1,).

    A look costs about half a microsecond; to be put to sleep and woken again, fifty or more.
    """
    return bool(_look_for_byte(descriptor, byte, tries))


def ask(descriptor: int, question: NDArray[np.uint8], answer: NDArray[np.uint8], unanswered: bytes) -> bool:
    """Send a byte (1,) and write ``unanswered`` where its answer will be; whether there was somebody to send it to.

    No interrupt comes between the two.
    """
    return bool(_ask(descriptor, question, answer, ord(unanswered)))


@numba.njit(cache=True, nogil=True)
def _are_finite(numbers: Any) -> bool:  # noqa: ANN401
    strange = False
    for k in range(numbers.size):  # by index: so the compiler takes several at once
        strange |= not np.isfinite(numbers[k])
    return not strange


def are_finite(array: NDArray[np.floating]) -> bool:
    """Whether all numbers are; a tenth of the time of ``np.isfinite(array).all()`` for those of a few environments."""
    if array.dtype.char in "fd":
        return bool(_are_finite(array.reshape(-1)))
    return bool(np.isfinite(array).all())


@numba.njit(cache=True, nogil=True)
def _count_step(
    elapsed: Any,  # noqa: ANN401
    stepped: Any,  # noqa: ANN401
    limit: int,
    reward: Any,  # noqa: ANN401
    truncated: Any,  # noqa: ANN401
    diverged: Any,  # noqa: ANN401
    numbers: Any,  # noqa: ANN401
) -> tuple[bool, bool]:
    some = False
    for e in range(len(elapsed)):
        elapsed[e] += stepped[e]
        truncated[e] |= elapsed[e] >= limit
        diverged[e] = stepped[e] and (diverged[e] or not np.isfinite(reward[e]))
        some |= diverged[e]
    return some, _are_finite(numbers)


def count_step(
    elapsed: Integers,
    stepped: NDArray[np.bool_],
    limit: int,
    reward: NDArray[np.float64],
    truncated: NDArray[np.bool_],
    diverged: NDArray[np.bool_],
    observation: NDArray[Any],
) -> tuple[bool, bool]:
    """Count one more step of the environments that were ``stepped`` (E,).

    One call for what would be nine of NumPy's, whose code is in no cache after a step of physics.

    Args:
        elapsed: (E,) steps of each episode, counted on in place.
        limit: episodes of so many steps become ``truncated`` (E,), in place.
        reward: (E,); where it is not finite, the environment has ``diverged`` (E,), in place.
        observation: (E, …) of any type; integers are finite.

    Returns:
        Whether one of them diverged, and whether all observations are finite.
    """
    is_plain = observation.dtype.char in "fd"
    numbers = observation.reshape(-1) if is_plain else NO_NUMBERS
    some, finite = _count_step(elapsed, stepped, limit, reward, truncated, diverged, numbers)
    return bool(some), bool(finite) and (is_plain or observation.dtype.kind != "f" or are_finite(observation))


@numba.njit(cache=True, nogil=True)
def _publish(counters: Any, count: int) -> None:  # noqa: ANN401
    counters[COUNT] = count
    _fence()
    counters[LEFT] = count


@numba.njit(cache=True, nogil=True)
def _is_done(done: Any, counters: Any) -> bool:  # noqa: ANN401
    for place in range(counters[COUNT]):
        if not done[place]:
            return False
    _fence()
    return True


@numba.njit(cache=True, nogil=True)
def count_up(progress: Any, place: int) -> None:  # noqa: ANN401
    """Add one to ``progress`` (W,) at ``place``, behind all that was written before."""
    _fence()
    progress[place] += 1


class Board:
    """E simulations of one robot, and which of them are to be stepped; its arrays may lie in shared memory.

    Attributes:
        states: (E, S) integration states, warm start included.
        fields: by name, what the robot reads of the simulations, (E, …), contiguous float64.
        diverged: (E,) whether MuJoCo met a state that was not finite in the last step, and reset it.
        action: (E, A) float32.
        indices: (E,) the simulations to step, in front.
        counters: (3,) how many of these nobody took yet, how many there are, and whether the next step will come soon.
        done: (E,) by place in ``indices``, whether it was stepped.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.states: NDArray[np.float64] = arrays["states"]
        self.fields: dict[str, NDArray[np.float64]] = {
            name.removeprefix(FIELD): array for name, array in arrays.items() if name.startswith(FIELD)
        }
        self.diverged: NDArray[np.bool_] = arrays["diverged"]
        self.action: NDArray[np.float32] = arrays["action"]
        self.indices: Integers = arrays["indices"]
        self.counters: Integers = arrays[COUNTERS]
        self.done: NDArray[np.bool_] = arrays["done"]

    def write(self, action: NDArray[np.float32], indices: Integers) -> None:
        """Have ``indices`` stepped with their rows of ``action`` (E, A), by whoever takes them from now on."""
        self.action[...] = action
        self.indices[: len(indices)] = indices
        self.done[:] = False
        _publish(self.counters, len(indices))

    def is_done(self) -> bool:
        """Whether all were stepped."""
        return bool(_is_done(self.done, self.counters))

    def left_behind(self) -> Integers:
        """Simulations that somebody took and did not finish."""
        count = self.counters[COUNT]
        return self.indices[:count][~self.done[:count]].copy()


def board_specs(model: mujoco.MjModel, fields: Mapping[str, NDArray[np.float64]], num_envs: int) -> list[ArraySpec]:
    """The arrays of a `Board` of ``num_envs`` simulations with the ``fields`` of one."""
    per_env: list[tuple[str, type[np.generic], tuple[int, ...]]] = [
        ("states", np.float64, (mujoco.mj_stateSize(model, STATE),)),
        *((f"{FIELD}{name}", np.float64, field.shape) for name, field in fields.items()),
        ("diverged", np.bool_, ()),
        ("action", np.float32, (model.nu,)),
        ("indices", np.int64, ()),
        ("done", np.bool_, ()),
    ]
    specs = [ArraySpec(name=name, dtype=np.dtype(kind).str, shape=(num_envs, *rest)) for name, kind, rest in per_env]
    return [*specs, ArraySpec(name=COUNTERS, dtype=np.dtype(np.int64).str, shape=(NUM_COUNTERS,))]


class Stepper:
    """One ``mjData``, and what of the simulations on a board goes through it in turn: states in, fields and states out.

    What MuJoCo derives from a state, it derives again at each step, so that the integration state (warm start included)
    is all that needs to be kept of each simulation; and the processor's caches hold one ``mjData`` instead of many.

    Args:
        robot: says what to read, and how many physics steps make a step.
        models: (E,) addresses of ``mjModel``; may be rewritten where an environment gets another model.
        data: which this may use freely.
    """

    def __init__(self, robot: Robot, models: Integers, data: mujoco.MjData, board: Board) -> None:
        views = {name: read(data.model, data) for name, read in robot.views().items()}
        fields: list[int] = []
        for name, view in views.items():
            field = board.fields[name]
            assert view.flags.c_contiguous and field.flags.c_contiguous, name  # noqa: PT018
            assert field.dtype == view.dtype == np.float64, name
            assert field.shape[1:] == view.shape, name
            fields += (view.ctypes.data, field.ctypes.data, view.size)
        numbers = data.warning.number[FIRST_WARNING : LAST_WARNING + 1]
        assert numbers.dtype == np.int32, "the kernel reads 32-bit words"
        assert numbers.strides == (4 * WARNING_WORDS,), "the kernel reads every second word"
        self.models = models
        self.data = data
        self.board = board
        self._views = views  # addresses of theirs, and of what is above, are below
        places = {
            Place.NUM_ENVS: len(models),
            Place.MODELS: models.ctypes.data,
            Place.DATA: data._address,
            Place.CONTROL: data.ctrl.ctypes.data,
            Place.WARNINGS: numbers.ctypes.data,
            Place.STATES: board.states.ctypes.data,
            Place.STATE_SIZE: board.states.shape[1],
            Place.DIVERGED: board.diverged.ctypes.data,
            Place.ACTION: board.action.ctypes.data,
            Place.ACTION_SIZE: board.action.shape[1],
            Place.INDICES: board.indices.ctypes.data,
            Place.COUNTERS: board.counters.ctypes.data,
            Place.DONE: board.done.ctypes.data,
            Place.FRAME_SKIP: robot.frame_skip,
            Place.POST_CONSTRAINT: robot.reads_contact_forces,  # computed as Gymnasium does where they are read
            Place.NUM_FIELDS: len(views),
        }
        self._places = np.array([*(places[place] for place in Place if place in places), *fields], np.int64)

    def gather(self, index: int) -> None:
        """Copy the fields of ``data`` as those of a simulation."""
        _gather(self._places, index)

    def step_one(self) -> bool:
        """Take a simulation from the board and step it; false where none is left."""
        return bool(_step_one(self._places))

    def step(self) -> None:
        """Take simulations from the board and step them until none is left."""
        _step(self._places)

    def serve(self, descriptor: int, asked: bytes, answer: bytes) -> bytes:
        """`step` for each byte ``asked`` from a socket, and send ``answer``; return the first byte that is another.

        Nothing is returned where the other end was closed, or an interrupt came between.
        """
        byte = np.frombuffer(asked, np.uint8).copy()
        if _serve(descriptor, byte, np.frombuffer(answer, np.uint8), self._places) != 1:
            return b""
        return byte.tobytes()
