"""A stream replays the history and follows what is live; one that is refused leaves nothing behind."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from starlette.types import Message

from app.auth import Access
from app.streams.buffer import Frame, Span, Watched, Watcher
from app.streams.hub import Hub
from app.streams.sse import COMMENT, EventStream, Position, ReadHistory, follow, replay
from backplane.errors import TooManyStreams


class FullHub:
    @contextmanager
    def watching(self, _: Watcher) -> Iterator[None]:
        raise TooManyStreams("no more", retry_after=5)
        yield


async def never_ends() -> AsyncGenerator[bytes, None]:
    while True:
        yield b"data: x\n\n"


async def test_a_stream_that_is_refused_leaves_no_task_and_no_open_generator() -> None:
    async def receive() -> Message:
        return await asyncio.Future()

    async def send(message: Message) -> None:
        raise AssertionError(f"a refused stream began to answer: {message}")

    chunks = never_ends()
    stream = EventStream(chunks, cast(Hub, FullHub()), Watcher(cast(Access, None)))
    before = asyncio.all_tasks()
    with pytest.raises(TooManyStreams):
        await stream({"type": "http", "path": "/agent/events"}, receive, send)
    assert asyncio.all_tasks() == before
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


def pages(*spans: Span[int]) -> ReadHistory[int]:
    left = list(spans)

    async def read(_: int) -> tuple[Span[int], bool]:
        return left.pop(0), bool(left)

    return read


def buffer_of(*numbers: int, size: int = 16) -> Watched[int]:
    watched = Watched(0, size, 1 << 20)
    watched.extend([Frame(number, b"%d;" % number, False) for number in numbers], numbers[-1] if numbers else 0)
    return watched


def a_watcher() -> Watcher:
    return Watcher(cast(Access, None))


async def test_a_replay_reads_all_pages_and_moves_the_position_behind_the_last() -> None:
    position = Position(0)
    read = pages(Span((b"1", b"2"), 2), Span((b"3",), 3))
    assert [chunk async for chunk in replay(read, position)] == [b"1", b"2", b"3"]
    assert position == Position(3)


@pytest.mark.parametrize(("later", "is_end"), [(Span((), 2), True), (Span((b"3",), 3), False)])
async def test_a_replay_is_at_an_end_only_when_nothing_was_kept_behind_it(later: Span[int], is_end: bool) -> None:
    position = Position(0)
    async for _ in replay(pages(Span((b"2",), 2, is_end=True), later), position):
        pass
    assert position.is_end is is_end


async def test_following_gives_what_the_buffer_has_behind_the_position_and_then_waits() -> None:
    watched, position, watcher = buffer_of(1, 2, 3), Position(1), a_watcher()
    chunks = follow(watched, watched.epoch, position, watcher)
    assert await anext(chunks) == b"2;3;"
    waiting = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)
    assert not waiting.done()
    watcher.remind()
    assert await waiting == COMMENT
    await chunks.aclose()


async def test_following_ends_when_the_buffer_does_not_reach_back_to_the_position() -> None:
    watched, position = buffer_of(*range(1, 100), size=16), Position(1)
    assert [chunk async for chunk in follow(watched, watched.epoch, position, a_watcher())] == []
    assert not position.is_end


async def test_following_ends_when_events_may_have_been_missed() -> None:
    watched, position = buffer_of(1), Position(1)
    assert [chunk async for chunk in follow(watched, watched.epoch - 1, position, a_watcher())] == []
