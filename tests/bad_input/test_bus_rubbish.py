"""Rubbish on the bus: every case is rejected with a counted reason, and the peers live on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from swarm.arrays import Frame
from swarm.bus import Received
from swarm.codec import decode, encode
from swarm.control import EVERYBODY, Answer, Ask, Beat, Control, Press, Probe, Taken, encode_control, own_prefix
from swarm.errors import CodecError
from swarm.memory_bus import MemoryBus, MemoryHub
from swarm.messages import Cancel, Gradient, Proposal
from swarm.testing.broker_process import BrokerProcess
from swarm.topics import Topic
from swarm.zmq_bus import ZmqBus

GOOD = [bytes(frame) for frame in encode("stranger", 1, 0, Cancel(task_id="t", epoch=1, reason="x"))]
HEADER = GOOD[1]
PROPOSAL = msgpack.packb(["stranger", 1, 0, "Proposal"])
GRADIENT = msgpack.packb(["stranger", 1, 0, "Gradient"])
CONTROL_ID = ["stranger", 1, 0]


def _tasks(header: bytes = HEADER, body: bytes = GOOD[2], *more: bytes) -> list[bytes]:
    return [b"tasks", header, body, *more]


def _proposal(**changes: Any) -> list[bytes]:
    values = {"task_id": "t", "epoch": 1, "agent": "a", "values": [1.0], "cost": 0.0, "uncertainty": 0.0, "terms": {}}
    return [b"proposals", PROPOSAL, msgpack.packb(list((values | changes).values()))]


def _gradient(description: object, *frames: bytes, name: object = "p") -> list[bytes]:
    return [b"gradients", GRADIENT, msgpack.packb(["o", 1, "member", 1, {name: description}]), *frames]


def _terms(raw: bytes) -> list[bytes]:
    """A proposal whose terms are the given bytes."""
    whole = msgpack.packb(["t", 1, "a", [1.0], 0.0, 0.0])
    return [b"proposals", PROPOSAL, b"\x97" + whole[1:] + raw]


def _header(*values: object) -> bytes:
    return bytes(msgpack.packb(list(values)))


def _control(name: str, *values: object, prefix: bytes = EVERYBODY) -> list[bytes]:
    return [prefix, _header(*CONTROL_ID, name), bytes(msgpack.packb(list(values)))]


CORPUS: dict[str, tuple[list[bytes], str]] = {
    "one empty frame": ([b""], "bad-frames"),
    "a topic alone": ([b"tasks"], "bad-frames"),
    "header without body": ([b"tasks", HEADER], "bad-frames"),
    "2000 frames": ([b"tasks", HEADER, GOOD[2], *[b""] * 2_000], "bad-frames"),
    "an undescribed frame": (_tasks(HEADER, GOOD[2], b"more"), "bad-frames"),
    "empty header": (_tasks(b""), "truncated"),
    "never used byte as header": (_tasks(b"\xc1"), "not-msgpack"),
    "header of 10 kB": (_tasks(_header("s" * 10_000, 1, 0, "Cancel")), "too-large"),
    "header is a map": (_tasks(b"\x80"), "bad-header"),
    "header is too short": (_tasks(_header("a", 1, 0)), "bad-header"),
    "type is no text": (_tasks(_header("a", 1, 0, 7)), "bad-header"),
    "sender with a path": (_tasks(_header("../x", 1, 0, "Cancel")), "bad-id"),
    "sender with NUL": (_tasks(_header("a\0", 1, 0, "Cancel")), "bad-id"),
    "sender with newline": (_tasks(_header("a\n", 1, 0, "Cancel")), "bad-id"),
    "sender is a number": (_tasks(_header(5, 1, 0, "Cancel")), "bad-type"),
    "incarnation true": (_tasks(_header("a", True, 0, "Cancel")), "bad-type"),
    "negative sequence": (_tasks(_header("a", 1, -1, "Cancel")), "bad-range"),
    "sequence 2**63": (_tasks(_header("a", 1, 2**63, "Cancel")), "bad-range"),
    "unknown type": (_tasks(_header("a", 1, 0, "Cancle")), "unknown-type"),
    "root type": (_tasks(_header("a", 1, 0, "Message")), "unknown-type"),
    "topic of another type": ([b"results", *GOOD[1:]], "wrong-topic"),
    "topic with a tail": ([b"tasks-and-more", *GOOD[1:]], "wrong-topic"),
    "topic of 1 MB": ([b"tasks" + b"x" * (1 << 20), *GOOD[1:]], "wrong-topic"),
    "body 0xc1": (_tasks(HEADER, b"\xc1"), "not-msgpack"),
    "body trailing bytes": (_tasks(HEADER, GOOD[2] + b"\0"), "trailing-bytes"),
    "body array32 of 2**32-1": (_tasks(HEADER, b"\xdd\xff\xff\xff\xff"), "too-large"),
    "body map32 of 2**32-1": (_tasks(HEADER, b"\xdf\xff\xff\xff\xff"), "too-large"),
    "body str32 of 2**32-1": (_tasks(HEADER, b"\xdb\xff\xff\xff\xff"), "truncated"),
    "body bin32 of 2**32-1": (_tasks(HEADER, b"\xc6\xff\xff\xff\xff"), "truncated"),
    "body nested 1025": (_tasks(HEADER, b"\x91" * 1_025 + b"\xc0"), "too-deep"),
    "body nested 100000": (_tasks(HEADER, b"\x91" * 100_000 + b"\xc0"), "too-deep"),
    "body is a number": (_tasks(HEADER, b"\x07"), "bad-body"),
    "body misses a field": (_tasks(HEADER, msgpack.packb(["t", 1, "x"])), "bad-body"),
    "body has a field more": (_tasks(HEADER, msgpack.packb(["t", 1, "x", "", 0])), "bad-body"),
    "body bad UTF-8": (_tasks(HEADER, b"\x94\xa2\xff\xfe\x01\xa0\xa0"), "bad-text"),
    "ext code 5": (_terms(b"\xd4\x05\x00"), "too-large"),
    "timestamp": (_terms(b"\xd6\xff\x00\x00\x00\x00"), "too-large"),
    "terms nested 33": (_terms(b"\x81\xa1a" * 34 + b"\xc0"), "too-deep"),
    "terms duplicate key": (_terms(b"\x82\xa1a\x01\xa1a\x02"), "duplicate-key"),
    "terms integer key": (_terms(b"\x81\x01\x01"), "bad-key"),
    "terms bytes key": (_terms(b"\x81\xc4\x01a\x01"), "bad-key"),
    "terms bytes value": (_terms(b"\x81\xa1a\xc4\x01a"), "bad-type"),
    "terms NaN": (_terms(b"\x81\xa1a\xcb" + struct.pack(">d", float("nan"))), "not-finite"),
    "terms 2**64-1": (_terms(b"\x81\xa1a\xcf" + b"\xff" * 8), "bad-range"),
    "terms are a list": (_terms(b"\x90"), "bad-type"),
    "epoch -2**63": (_proposal(epoch=-(2**63)), "bad-range"),
    "epoch 2**63": (_proposal(epoch=2**63), "bad-range"),
    "epoch true": (_proposal(epoch=True), "bad-type"),
    "epoch 1.0": (_proposal(epoch=1.0), "bad-type"),
    "task id ../x": (_proposal(task_id="../x"), "bad-id"),
    "task id of 10 kB": (_proposal(task_id="x" * 10_000), "bad-id"),
    "bid NaN": (_proposal(values=[float("nan")]), "not-finite"),
    "bid infinite": (_proposal(values=[float("inf")]), "not-finite"),
    "bid is text": (_proposal(values=["1"]), "bad-type"),
    "bids are a map": (_proposal(values={}), "bad-type"),
    "negative cost": (_proposal(cost=-1.0), "bad-range"),
    "dtype object": (_gradient(["O", [1], b"x" * 8]), "bad-dtype"),
    "dtype V8": (_gradient(["V8", [1], b"x" * 8]), "bad-dtype"),
    "dtype big-endian": (_gradient([">f4", [1], b"x" * 4]), "bad-dtype"),
    "dtype U10": (_gradient(["U10", [1], b"x" * 40]), "bad-dtype"),
    "dtype structured": (_gradient([[["a", "f4"]], [1], b"x" * 4]), "bad-dtype"),
    "negative size": (_gradient(["float32", [-1], b""]), "bad-shape"),
    "two negative sizes": (_gradient(["float32", [-2, -2], b"x" * 16]), "bad-shape"),
    "size 2**62": (_gradient(["float32", [2**62, 4], b""]), "bad-shape"),
    "size true": (_gradient(["float32", [True], b"x" * 4]), "bad-shape"),
    "64 dimensions": (_gradient(["float32", [1] * 64, b"x" * 4]), "bad-shape"),
    "shape is a number": (_gradient(["float32", 1, b"x" * 4]), "bad-shape"),
    "4 GiB in 40 bytes": (_gradient(["float32", [2**30], b"x" * 40]), "bad-length"),
    "one byte too few": (_gradient(["float32", [2], b"x" * 7]), "bad-length"),
    "one byte too many": (_gradient(["float32", [2], b"x" * 9]), "bad-length"),
    "frame of another length": (_gradient(["float32", [2], 0], b"x" * 12), "bad-length"),
    "bool of 2": (_gradient(["bool", [1], b"\2"]), "bad-value"),
    "frame that is not there": (_gradient(["float32", [2], 1], b"x" * 8), "bad-array"),
    "frame -1": (_gradient(["float32", [2], -1], b"x" * 8), "bad-array"),
    "description too short": (_gradient(["float32", [2]]), "bad-array"),
    "array name empty": (_gradient(["float32", [1], b"x" * 4], name=""), "bad-key"),
    "control without fields": (_control("!beat"), "bad-body"),
    "beat of lists": (_control("!beat", [1]), "bad-type"),
    "beat with negative end": (_control("!beat", {"tasks": -1}), "bad-range"),
    "ask for an unknown topic": (_control("!ask", 0, "tusks", 1, 0, 9), "unknown-topic"),
    "taken of an unknown topic": (_control("!taken", "", 1, 0, False), "unknown-topic"),
    "unknown control": (_control("!format-disk", 1), "unknown-type"),
    "replay of nothing": (_control("!replay", 0), "bad-frames"),
    "replay of another's message": (
        [*_control("!replay", 0), _header("victim", 1, 0, "Cancel"), GOOD[2]],
        "wrong-sender",
    ),
    "replay of no message": ([*_control("!replay", 0), _header(*CONTROL_ID, "!beat"), GOOD[2]], "unknown-type"),
}


@pytest.mark.parametrize("case", CORPUS)
async def test_a_peer_counts_the_case_and_lives_on(case: str) -> None:
    frames, reason = CORPUS[case]
    hub = MemoryHub()
    async with MemoryBus("a", hub) as a, asyncio.timeout(20):
        subscription = a.subscribe(*Topic)
        hub.send(frames)
        a.publish(Cancel(task_id="t", epoch=1, reason="after"))
        item = await subscription.receive()
        assert isinstance(item, Received)
        assert item.sender == "a"
        assert a.statistics().rejected == {reason: 1}
        assert subscription.receive_nowait() is None


GRADIENT_FRAMES = [
    bytes(frame) for frame in encode("s", 1, 0, Gradient(owner="o", version=1, kind="member", num_samples=1, arrays={}))
]


@pytest.mark.parametrize("frames", [GOOD, GRADIENT_FRAMES], ids=["cancel", "gradient"])
def test_a_message_truncated_at_any_byte_is_rejected(frames: list[bytes]) -> None:
    for index in (1, 2):
        for length in range(len(frames[index])):
            damaged = [*frames[:index], frames[index][:length], *frames[index + 1 :]]
            with pytest.raises(CodecError):
                decode(damaged)


def test_flipped_bits_are_rejected_or_give_another_valid_message() -> None:
    generator = random.Random(0)
    message = Proposal(task_id="t", epoch=1, agent="a", values=(1.0, 2.0), terms={"a": [1, None, {"b": "c"}]})
    frames = [bytes(frame) for frame in encode("s", 1, 0, message)]
    outcomes: Counter[str] = Counter()
    for _ in range(5_000):
        damaged = [bytearray(frame) for frame in frames]
        frame = damaged[generator.randrange(3)]
        frame[generator.randrange(len(frame))] ^= 1 << generator.randrange(8)
        try:
            decode([bytes(each) for each in damaged])
            outcomes["valid"] += 1
        except CodecError as error:
            outcomes[error.reason] += 1
    assert outcomes["wrong-topic"] > 1_000
    assert outcomes["valid"] < 2_000


CONTROLS: list[Control] = [
    Ask(token=0, topic="tasks", incarnation=2**62, first=0, until=2**62),
    Ask(token=9, topic="presence", incarnation=1, first=5, until=1),
    Answer(token=77, topic="tasks", incarnation=1, gone_until=2**62, until=2**62),
    Taken(topic="tasks", incarnation=1, until=2**62, waived=False),
    Taken(topic="presence", incarnation=1, until=0, waived=True),
    Press(topic="parameters"),
    Probe(nonce=0),
    Beat(ends={"tasks": 5, "nonsense": 3}),
]


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
async def test_valid_but_senseless_control_frames_disturb_nobody(control: Control) -> None:
    hub = MemoryHub()
    async with MemoryBus("a", hub, incarnation=1) as a, asyncio.timeout(20):
        subscription = a.subscribe(Topic.TASKS)
        for prefix in (EVERYBODY, own_prefix("a")):
            hub.send(encode_control(prefix, "stranger", 1, control))
        a.publish(Cancel(task_id="t", epoch=1, reason="after"))
        item = await subscription.receive()
        assert isinstance(item, Received)
        assert item.sender == "a"
        assert a.statistics().rejected == {}


# --- from other processes' sockets ------------------------------------------------------------------------------------


@pytest.fixture
def tcp_broker() -> Iterator[BrokerProcess]:
    with BrokerProcess.over_tcp() as broker:
        yield broker


async def _until_rejected(bus: ZmqBus, reason: str, count: int) -> None:
    async with asyncio.timeout(30):
        while bus.statistics().rejected.get(reason, 0) < count:  # noqa: ASYNC110 - statistics are read, not waited for
            await asyncio.sleep(0.005)


async def _still_works(a: ZmqBus, b: ZmqBus) -> None:
    async with asyncio.timeout(30):
        subscription = b.subscribe(Topic.TASKS)
        a.publish(Cancel(task_id="t", epoch=1, reason="after"))
        item = await subscription.receive()
        assert isinstance(item, Received)
        assert item.sender == "a"


async def test_a_foreign_publisher_of_rubbish_is_counted_and_nothing_else() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(BrokerProcess.over_ipc(folder))
        context = stack.enter_context(zmq.Context())
        async with ZmqBus("a", *broker.endpoints) as a, ZmqBus("b", *broker.endpoints) as b:
            subscription = b.subscribe(*Topic)
            foreign = stack.enter_context(context.socket(zmq.PUB))
            foreign.linger = 0
            foreign.connect(broker.endpoints[0])
            on_topic = [(frames, reason) for frames, reason in CORPUS.values() if frames != [b""]]
            async with asyncio.timeout(30):
                while not b.statistics().rejected:
                    foreign.send_multipart([b"tasks"])
                    await asyncio.sleep(0.005)
            for frames, _ in on_topic:
                foreign.send_multipart(frames)
            for reason, count in Counter(reason for _, reason in on_topic).items():
                await _until_rejected(b, reason, count)
            assert subscription.receive_nowait() is None
            subscription.close()
            await _still_works(a, b)


RAW: dict[str, bytes] = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS hello": bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2,
    "random bytes": random.Random(0).randbytes(4_096),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("raw", RAW)
async def test_strangers_on_the_port_are_turned_away_and_counted(raw: str, tcp_broker: BrokerProcess) -> None:
    async with ZmqBus("a", *tcp_broker.endpoints) as a, ZmqBus("b", *tcp_broker.endpoints) as b:
        for endpoint in tcp_broker.endpoints:
            port = int(endpoint.rpartition(":")[2])
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(RAW[raw])
                assert (await reader.readexactly(1)) == b"\xff"  # ZeroMQ's greeting: it has read ours
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
        await _until_rejected(a, "handshake", 2)
        await _until_rejected(b, "handshake", 2)
        await _still_works(a, b)


async def test_messages_sent_up_the_subscribers_side_reach_nobody(tcp_broker: BrokerProcess) -> None:
    with zmq.Context() as context, context.socket(zmq.XSUB) as foreign:
        foreign.linger = 0
        foreign.connect(tcp_broker.endpoints[1])
        async with ZmqBus("a", *tcp_broker.endpoints) as a, ZmqBus("b", *tcp_broker.endpoints) as b:
            subscription = b.subscribe(Topic.TASKS)
            for _ in range(100):
                foreign.send_multipart(GOOD)
                foreign.send(b"\x01" + b"x" * 1_000)
            a.publish(Cancel(task_id="t", epoch=1, reason="after"))
            async with asyncio.timeout(30):
                item = await subscription.receive()
            assert isinstance(item, Received)
            assert item.sender == "a"


def test_a_frame_beyond_the_limit_is_cut_off_by_its_claim_alone(tcp_broker: BrokerProcess) -> None:
    port = int(tcp_broker.endpoints[0].rpartition(":")[2])
    asyncio.run(_join_and_leave(tcp_broker))
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
    ready = b"\x05READY\x0bSocket-Type\0\0\0\x03PUB"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as stranger:
        stranger.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready + b"\x02" + struct.pack(">Q", 1 << 40))
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4_096):
                pass
    asyncio.run(_join_and_leave(tcp_broker))


async def _join_and_leave(broker: BrokerProcess) -> None:
    async with ZmqBus("a", *broker.endpoints) as a, ZmqBus("b", *broker.endpoints) as b:
        await _still_works(a, b)


def test_the_corpus_has_frames_only() -> None:
    frames: list[Frame] = [frame for case, _ in CORPUS.values() for frame in case]
    assert all(isinstance(frame, bytes) for frame in frames)
