"""A stream that is refused leaves nothing behind."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from starlette.types import Message

from app.auth import Access
from app.streams.buffer import Watcher
from app.streams.hub import Hub
from app.streams.sse import EventStream
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
