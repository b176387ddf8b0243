"""What is encoded comes back; what does not validate is refused on either side."""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.arrays import OWN_FRAME_BYTES
from swarm.codec import decode, encode
from swarm.control import CONTROL_TYPES
from swarm.errors import CodecError
from swarm.messages import (
    Accepted,
    Announcement,
    Award,
    Cancel,
    Done,
    Ended,
    Evaluation,
    Failed,
    Goodbye,
    Gradient,
    Heartbeat,
    Hello,
    Message,
    ParameterVersion,
    PeerDown,
    Progress,
    Proposal,
    Refusal,
    Rejection,
    RoundCommitted,
    RowsWritten,
    Submission,
)
from swarm.topics import MESSAGE_TYPES, TOPIC_OF, Topic
from swarm.validation import rules_of

EXAMPLES: list[Message] = [
    Submission(task_id="run:1", kind="collect", submitter="me", terms={"a": [1, {"b": None}]}, eligible=("x", "y")),
    Announcement(task_id="run:1", epoch=1, kind="collect", deadline_s=None),
    Award(task_id="run:1", epoch=1, agent="a", kind="act", units=8, terms={"x": 1.5}, lease_s=30.0),
    Rejection(task_id="run:1", epoch=1, agent="a"),
    Cancel(task_id="run:1", epoch=1, reason="no\nneed"),
    RoundCommitted(round_index=3, rows={"nominal": 25}, summary={"returns": [1.0, -2.0]}),
    Proposal(task_id="run:1", epoch=1, agent="a", values=(3.0, -1.0), cost=0.5),
    Refusal(task_id="run:1", epoch=1, agent="a", reason="busy"),
    Accepted(task_id="run:1"),
    Progress(task_id="run:1", epoch=1, agent="a", fraction=0.5),
    Done(task_id="run:1", epoch=1, agent="a", result={"ok": True}),
    Failed(task_id="run:1", epoch=1, agent="a", reason="broke", retryable=False),
    Ended(task_id="run:1", status="done", results={"a": {"ok": True}}, units={"a": 8}),
    RowsWritten(
        round_index=1, stream="nominal", first_row=0, num_rows=5, seats=("a",) * 8, episodes=({"return": 1.0},)
    ),
    Evaluation(judge="a", round_index=1, kind="vote", scores={"b": -3.5}),
    Hello(agent="a", incarnation=2**62, skills=("act",)),
    Heartbeat(agent="a", incarnation=1, progress=4, sequences={"tasks": 7}),
    Goodbye(agent="a", incarnation=1),
    PeerDown(agent="a", reason="signal 9", restarting=True),
]
DTYPES = ("bool", "int32", "int64", "uint64", "float32", "float64")


def test_every_message_type_that_travels_has_an_example() -> None:
    shown = {type(example) for example in EXAMPLES} | {ParameterVersion, Gradient}
    assert shown == set(TOPIC_OF)
    assert {each for types in MESSAGE_TYPES.values() for each in types} == shown


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_equal(message: Message) -> None:
    received = decode(encode("peer-1", 5, 7, message))
    assert (received.sender, received.incarnation, received.sequence) == ("peer-1", 5, 7)
    assert received.topic is TOPIC_OF[type(message)]
    assert received.message == message


def test_every_type_builds_its_rules_from_annotations() -> None:
    for thing_type in (*TOPIC_OF, *CONTROL_TYPES.values()):
        assert [name for name, _ in rules_of(thing_type)] == [field.name for field in fields(thing_type)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (7, 5), (40, 90)])
def test_arrays_come_back_to_the_bit_and_read_only(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * 9 - 2).astype(np.float64)
    array = np.asarray(np.abs(array) > 1 if dtype == "bool" else np.abs(array).astype(dtype))
    message = Gradient(owner="a", version=1, kind="member", num_samples=1, arrays={"p": array, "q": array})
    arrays = decode(encode("a", 1, 0, message)).message.arrays  # type: ignore[attr-defined]
    for name in ("p", "q"):
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
        assert not arrays[name].flags.writeable


def test_not_a_number_travels_inside_an_array_only() -> None:
    message = ParameterVersion(owner="a", version=1, digest="", arrays={"w": np.array([np.nan, np.inf], np.float32)})
    assert np.isnan(decode(encode("a", 1, 0, message)).message.arrays["w"][0])  # type: ignore[attr-defined]


def test_large_arrays_are_frames_without_a_copy_and_small_ones_are_not() -> None:
    large, small = np.zeros(OWN_FRAME_BYTES, np.uint8).view(np.float32), np.zeros(3, np.float32)
    message = ParameterVersion(owner="a", version=1, digest="", arrays={"large": large, "small": small})
    frames = encode("a", 1, 0, message)
    assert len(frames) == 4
    assert np.shares_memory(np.frombuffer(frames[3], np.uint8), large)


def test_read_only_mappings_and_tuples_travel_as_json() -> None:
    terms: Any = MappingProxyType({"inner": MappingProxyType({"pair": (1, 2)})})
    received = decode(encode("a", 1, 0, Done(task_id="t", epoch=0, agent="a", result=terms)))
    assert received.message.result == {"inner": {"pair": [1, 2]}}  # type: ignore[attr-defined]


def _proposal(**changes: object) -> Proposal:
    values: dict[str, Any] = {"task_id": "t", "epoch": 1, "agent": "a", "values": (1.0,), **changes}
    return Proposal(**values)


def _arrays(**arrays: object) -> Gradient:
    given: Any = arrays
    return Gradient(owner="a", version=1, kind="member", num_samples=1, arrays=given)


DEEP: list[Any] = []
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (_proposal(task_id="../x"), "bad-id"),
        (_proposal(task_id="x" * 129), "bad-id"),
        (_proposal(agent="a\n"), "bad-id"),
        (_proposal(agent="a\0"), "bad-id"),
        (_proposal(agent=""), "bad-id"),
        (_proposal(agent=None), "bad-type"),
        (_proposal(epoch=-1), "bad-range"),
        (_proposal(epoch=2**63), "bad-range"),
        (_proposal(epoch=True), "bad-type"),
        (_proposal(epoch=1.0), "bad-type"),
        (_proposal(values=(float("nan"),)), "not-finite"),
        (_proposal(values=(float("inf"),)), "not-finite"),
        (_proposal(values=(10**400,)), "not-finite"),
        (_proposal(values=("1",)), "bad-type"),
        (_proposal(values=1.0), "bad-type"),
        (_proposal(cost=-0.1), "bad-range"),
        (_proposal(terms={1: 2}), "bad-key"),
        (_proposal(terms={"a": float("nan")}), "not-finite"),
        (_proposal(terms={"a": 2**64}), "bad-range"),
        (_proposal(terms={"a": b"bytes"}), "bad-type"),
        (_proposal(terms={"a": object()}), "bad-type"),
        (_proposal(terms={"a": DEEP}), "too-deep"),
        (_proposal(terms={"a": "x" * (2**20 + 1)}), "too-large"),
        (_proposal(terms=[]), "bad-type"),
        (Progress(task_id="t", epoch=1, agent="a", fraction=1.01), "bad-range"),
        (Announcement(task_id="t", epoch=1, kind="k", deadline_s=-1.0), "bad-range"),
        (Ended(task_id="t", status="finished"), "bad-value"),
        (_arrays(a=np.zeros(3, np.float16)), "bad-dtype"),
        (_arrays(a=np.zeros(3, ">f4")), "bad-dtype"),
        (_arrays(a=np.array([object()])), "bad-dtype"),
        (_arrays(a=np.zeros((4, 4), np.float32).T[1:]), "bad-shape"),
        (_arrays(a=[1.0]), "bad-type"),
        (_arrays(**{"": np.zeros(1)}), "bad-key"),
        (Message(), "unknown-type"),
    ],
)
def test_a_bad_message_is_refused_before_it_is_sent(message: Message, reason: str) -> None:
    with pytest.raises(CodecError) as caught:
        encode("a", 1, 0, message)
    assert caught.value.reason == reason


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(terms=st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_any_json_tree_comes_back_equal(terms: dict[str, Any]) -> None:
    message = Done(task_id="t", epoch=0, agent="a", result=terms)
    assert decode(encode("a", 1, 0, message)).message == message


@given(frames=st.lists(st.binary(max_size=60), max_size=6), topic=st.sampled_from(Topic))
def test_arbitrary_frames_are_a_codec_error_and_nothing_else(frames: list[bytes], topic: Topic) -> None:
    for given_frames in (frames, [topic.encode(), *frames]):
        with pytest.raises(CodecError):
            decode(given_frames)
