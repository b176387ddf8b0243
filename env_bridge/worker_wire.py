"""What a stepping worker and its owner say to each other over a socket pair: single bytes, and letters of `wire`.

A step costs one byte each way, since its arrays lie in shared memory; everything else is a letter. The end of the
stream means that the other process has ended.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from env_bridge.wire import MAX_ARRAYS, MAX_FRAME_BYTES, Letter, decode
from swarm.errors import CodecError, PeerLost

READY: Final = b"r"
STEP: Final = b"s"
DONE: Final = b"d"
LETTER: Final = b"l"
EXIT_PATIENCE_S: Final = 5.0
"""How long a worker may go on after its owner closed the connection or ended."""
LATE: Final = "the other process did not answer in time"
_COUNT: Final = struct.Struct("<I")
_TIMEVAL: Final = struct.Struct("@ll")


def set_patience(connection: socket.socket, seconds: float) -> None:
    """Have the kernel end a receive or send that waits longer than ``seconds``. Raises ``PeerLost`` once closed."""
    whole = int(seconds)
    limit = _TIMEVAL.pack(whole, int((seconds - whole) * 1_000_000))
    try:
        for which in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, which, limit)
    except OSError as error:
        raise PeerLost(f"it was given up ({error})") from error


def send_byte(connection: socket.socket, byte: bytes) -> None:
    """Send ``READY``, ``STEP`` or ``DONE``. Raises ``PeerLost`` where the other process has ended."""
    try:
        connection.send(byte)
    except OSError as error:
        raise PeerLost(f"the other process has ended ({error})") from error


def receive_byte(connection: socket.socket) -> bytes:
    """Return the next byte. Raises ``PeerLost`` where the other process has ended, or says nothing for too long."""
    byte = np.empty(1, np.uint8)
    receive_byte_into(connection, byte)
    return byte.tobytes()


def receive_byte_into(connection: socket.socket, byte: NDArray[np.uint8]) -> None:
    """`receive_byte` into ``byte`` (1,), where it is safe from an interrupt."""
    _receive_into(connection, byte.data)


def send_frames(connection: socket.socket, written: Sequence[bytes | memoryview]) -> None:
    """Send the frames of a letter, announced by its byte. Raises ``PeerLost`` as `send_byte`."""
    frames = [memoryview(frame).cast("B") for frame in written]
    sizes = struct.pack(f"<{len(frames)}Q", *(frame.nbytes for frame in frames))
    try:
        connection.sendall(b"".join((LETTER, _COUNT.pack(len(frames)), sizes)))
        for frame in frames:
            connection.sendall(frame)
    except BlockingIOError:
        raise PeerLost(LATE) from None
    except OSError as error:
        raise PeerLost(f"the other process has ended ({error})") from error


def receive_letter(connection: socket.socket) -> Letter:
    """Read the letter whose byte was received. Raises ``PeerLost`` as `receive_byte`, ``CodecError`` for rubbish."""
    (count,) = _COUNT.unpack(_receive(connection, _COUNT.size))
    if count > MAX_ARRAYS + 2:
        raise CodecError("bad-frames", f"a letter of {count} frames")
    sizes = struct.unpack(f"<{count}Q", _receive(connection, 8 * count))
    if any(size > MAX_FRAME_BYTES for size in sizes):
        raise CodecError("too-large", f"a frame of {max(sizes)} bytes, at most {MAX_FRAME_BYTES}")
    return decode([_receive(connection, size) for size in sizes])


def _receive(connection: socket.socket, size: int) -> memoryview:
    buffer = memoryview(bytearray(size))
    _receive_into(connection, buffer)
    return buffer


def _receive_into(connection: socket.socket, view: memoryview) -> None:
    filled = 0
    while filled < len(view):
        try:
            received = connection.recv_into(view[filled:])
        except BlockingIOError:
            raise PeerLost(LATE) from None
        except OSError as error:
            raise PeerLost(f"the other process has ended ({error})") from error
        if not received:
            raise PeerLost("the other process has ended")
        filled += received
