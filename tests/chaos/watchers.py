"""Clients of the stream as they are: they lose the connection at random and come back with the last id they saw.

A watcher writes down every numbered frame that reached it whole, over all its connections, and leaves when it has seen
`end`; half of them then ask once more, to see that there is nothing.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import httpx

from tests.chaos.checker import Event, WatcherFacts

SILENCE_SECONDS = 8.0
"""Longer than several heartbeats of a stream: nobody is there any more."""


class Watcher:
    """`drops` is the number of a frame that it secretly forgets: what the checker must find."""

    def __init__(self, http: httpx.AsyncClient, name: str, run_id: str, draw: random.Random, drops: int = 0) -> None:
        self.name = name
        self.run_id = run_id
        self.connections = 0
        self._http = http
        self._draw = draw
        self._drops = drops
        self._events: list[Event] = []
        self._has_ended = False

    @property
    def facts(self) -> WatcherFacts:
        return WatcherFacts(self.name, self.run_id, tuple(self._events))

    async def watch(self) -> None:
        """Until it has seen the end, however often it takes."""
        while not self._has_ended:
            await self._once()
        if self._draw.random() < 0.5:
            await self._ask_for_more()

    async def _once(self) -> None:
        """One connection. It ends with the run, with the patience of this watcher, or with a fault."""
        patience = self._draw.choice((1, 3, 10, 1000, 1000))
        try:
            async with self._stream() as response:
                if response.status_code == 200:
                    self.connections += 1
                    async for event in _events(response):
                        self._write_down(event)
                        patience -= 1
                        if self._has_ended or not patience:
                            return
        except httpx.TransportError:
            pass
        await asyncio.sleep(self._draw.uniform(0.05, 0.4))

    async def _ask_for_more(self) -> None:
        while True:
            try:
                async with self._stream() as response:
                    if response.status_code < 500:
                        async for event in _events(response):
                            self._write_down(event)
                        return
            except httpx.TransportError:
                pass
            await asyncio.sleep(self._draw.uniform(0.05, 0.4))

    def _stream(self) -> AbstractAsyncContextManager[httpx.Response]:
        headers = {"Last-Event-ID": str(self._events[-1].id)} if self._events else {}
        timeout = httpx.Timeout(SILENCE_SECONDS)
        return self._http.stream("GET", f"/agent/logs/{self.run_id}/stream", headers=headers, timeout=timeout)

    def _write_down(self, event: Event) -> None:
        self._has_ended = self._has_ended or event.type == "end"
        if event.id != self._drops:
            self._events.append(event)


async def _events(response: httpx.Response) -> AsyncIterator[Event]:
    """The numbered frames that arrive whole."""
    rest = b""
    async for chunk in response.aiter_raw():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "id" in fields:
                yield event_of(int(fields["id"]), fields["event"], fields["data"])


def event_of(number: int, type: str, line: str) -> Event:
    data = json.loads(line)["data"] if type == "gap" else {}
    return Event(number, type, line, data.get("after", 0), data.get("before", 0))
