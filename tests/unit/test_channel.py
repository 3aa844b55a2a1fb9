"""Frames over a stream that gives what it likes."""

import json

import pytest

from backplane.errors import Superseded, Unavailable
from worker.sandbox.kubernetes.channel import ACKNOWLEDGE_BYTES, Channel, NotUnderstood
from worker.sandbox.kubernetes.pod.frames import (
    ACKNOWLEDGE,
    FAULT,
    HELLO,
    MAX_PAYLOAD,
    OUTPUT,
    STATE,
    frame,
    json_frame,
)


class Scripted:
    """A stream that gives these pieces and then ends."""

    is_closed = False

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.sent = bytearray()

    async def send(self, data: bytes) -> None:
        self.sent += data

    async def receive(self) -> bytes | None:
        return self._pieces.pop(0) if self._pieces else None


async def test_frames_are_put_together_from_whatever_pieces_come() -> None:
    whole = frame(OUTPUT, b"one") + frame(OUTPUT, b"") + frame(STATE, b"two")
    channel = Channel(Scripted(*(whole[at : at + 1] for at in range(len(whole)))))
    assert [await channel.receive() for _ in range(3)] == [(OUTPUT, b"one"), (OUTPUT, b""), (STATE, b"two")]


async def test_a_stream_that_ends_in_the_middle_of_a_frame_is_a_lost_connection() -> None:
    channel = Channel(Scripted(frame(OUTPUT, b"one")[:-1]))
    with pytest.raises(Unavailable) as lost:
        await channel.receive()
    assert lost.value.part == "sandbox"


async def test_a_frame_of_the_greatest_length_passes_and_a_longer_one_does_not() -> None:
    channel = Channel(Scripted(frame(OUTPUT, b"x" * MAX_PAYLOAD), frame(OUTPUT, b"x" * (MAX_PAYLOAD + 1))[:10]))
    assert len((await channel.receive())[1]) == MAX_PAYLOAD
    with pytest.raises(NotUnderstood, match="longer than any"):
        await channel.receive()


async def test_a_greeting_names_the_generation_and_the_call_and_gets_the_state() -> None:
    stream = Scripted(json_frame(STATE, {"state": "idle"}))
    assert await Channel(stream).greet(generation=3, call="abc", offset=7) == {"state": "idle"}
    assert stream.sent == frame(HELLO, json.dumps({"generation": 3, "call": "abc", "from": 7, "peek": False}).encode())


async def test_a_runner_that_another_worker_uses_says_so() -> None:
    channel = Channel(Scripted(json_frame(FAULT, {"superseded": True})))
    with pytest.raises(Superseded):
        await channel.greet(generation=1, call="", offset=0)


@pytest.mark.parametrize("answer", [frame(STATE, b"no json"), frame(STATE, b"[]"), frame(OUTPUT, b"{}")])
async def test_an_answer_that_is_no_state_is_refused(answer: bytes) -> None:
    with pytest.raises(NotUnderstood):
        await Channel(Scripted(answer)).greet(generation=1, call="", offset=0)


async def test_what_arrived_is_acknowledged_now_and_then() -> None:
    stream = Scripted()
    channel = Channel(stream)
    await channel.acknowledge(ACKNOWLEDGE_BYTES - 1)
    assert stream.sent == b""
    await channel.acknowledge(ACKNOWLEDGE_BYTES)
    assert stream.sent == frame(ACKNOWLEDGE, str(ACKNOWLEDGE_BYTES).encode())
