"""What a stepping worker and its owner say to each other over a socket pair: single bytes, and letters of `wire`.

A step costs one byte each way, since its arrays lie in shared memory; everything else is a letter. The end of the
stream means that the other process has ended.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

from env_bridge.wire import MAX_ARRAYS, MAX_FRAME_BYTES, Letter, decode, encode
from swarm.errors import CodecError, PeerLost

READY: Final = b"r"
STEP: Final = b"s"
DONE: Final = b"d"
LETTER: Final = b"l"
EXIT_PATIENCE_S: Final = 5.0
"""How long a worker may go on after its owner closed the connection or ended."""
_COUNT: Final = struct.Struct("<I")
_TIMEVAL: Final = struct.Struct("@ll")


def set_patience(connection: socket.socket, seconds: float) -> None:
    """Have the kernel end a receive that waits longer than ``seconds``."""
    whole = int(seconds)
    connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(whole, int((seconds - whole) * 1_000_000))
    )


def send_byte(connection: socket.socket, byte: bytes) -> None:
    """Send ``READY``, ``STEP`` or ``DONE``. Raises ``PeerLost`` where the other process has ended."""
    try:
        connection.send(byte)
    except OSError as error:
        raise PeerLost(f"the other process has ended ({error})") from error


def receive_byte(connection: socket.socket) -> bytes:
    """Return the next byte. Raises ``PeerLost`` where the other process has ended, or says nothing for too long."""
    try:
        byte = connection.recv(1)
    except BlockingIOError:
        raise PeerLost("the other process did not answer in time") from None
    except OSError as error:
        raise PeerLost(f"the other process has ended ({error})") from error
    if not byte:
        raise PeerLost("the other process has ended")
    return byte


def send_letter(connection: socket.socket, letter: Letter) -> None:
    """Send a letter, announced by its byte. Raises ``PeerLost`` as `send_byte`."""
    send_frames(connection, encode(letter))


def send_frames(connection: socket.socket, written: Sequence[bytes | memoryview]) -> None:
    """Send the frames of a letter, announced by its byte. Raises ``PeerLost`` as `send_byte`."""
    frames = [memoryview(frame).cast("B") for frame in written]
    sizes = struct.pack(f"<{len(frames)}Q", *(frame.nbytes for frame in frames))
    try:
        connection.sendall(b"".join((LETTER, _COUNT.pack(len(frames)), sizes, *frames)))
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


def _receive(connection: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        try:
            received = connection.recv_into(view[filled:])
        except BlockingIOError:
            raise PeerLost("the other process did not answer in time") from None
        except OSError as error:
            raise PeerLost(f"the other process has ended ({error})") from error
        if not received:
            raise PeerLost("the other process has ended")
        filled += received
    return bytes(buffer)
