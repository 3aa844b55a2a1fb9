"""A stream of events that survives a lost connection: one connection (`StreamConnection`), and the loop that opens the
next one behind the last event that was received (`reconnecting`).

Both print nothing: what a person should know meanwhile goes to `notify`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource, SSEError

from agentctl.api.api_error import ApiError, JsonObject, raise_for_problem, reason_of, retry_after
from agentctl.exit_codes import CommandError, ExitCode

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
"""The server sends a comment every 15 s (STREAM_HEARTBEAT_SECONDS) while nothing happens."""
LONGEST_PAUSE = 30.0
"""In seconds, whatever a server asks for."""
STEADY_SECONDS = 5.0
"""A connection that stood this long was fine: when it breaks, the pauses start from the shortest again."""
LINGER_SECONDS = 2.0
"""After `end`, how long the server has to close the stream. A run that was retried has an `end` in its middle."""
MAY_PASS = frozenset({429, 502, 503, 504})
"""Statuses of answers after which it helps to connect again."""


@dataclass
class StreamPosition:
    """How far a stream was read. `cursor`: the id of the last frame; "": from the beginning. `ended`: the last event
    was the stream's end, so the server may close it."""

    cursor: str
    ended: bool = False


class StreamConnection:
    """One connection to a stream. `is_open`: the server answered with a stream. `is_over`: it answered that no event
    will come. `retry_after`: the pause that it asks for, in seconds."""

    def __init__(
        self, http: httpx.AsyncClient, url: str, position: StreamPosition, is_event: Callable[[JsonObject], bool]
    ) -> None:
        self.is_open = False
        self.is_over = False
        self.retry_after = 0.0
        self._http = http
        self._url = url
        self._is_event = is_event
        self._position = position

    async def events(self) -> AsyncGenerator[JsonObject, None]:
        """The events behind the position, which moves with them, until the connection ends. Raises ApiError for an
        error answer; httpx.RequestError, SSEError, ValueError and KeyError for a connection that breaks and for
        frames that hold no event."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._position.cursor:
            headers["Last-Event-ID"] = self._position.cursor
        request = self._http.build_request("GET", self._url, headers=headers, timeout=TIMEOUT)
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code == httpx.codes.NO_CONTENT:
                self.is_over = True
                return
            self.retry_after = min(retry_after(response), LONGEST_PAUSE)
            await raise_for_problem(response)
            self.is_open = True
            frames = EventSource(response).aiter_sse()
            while True:
                try:
                    async with asyncio.timeout(LINGER_SECONDS if self._position.ended else None):
                        frame = await anext(frames)
                except (StopAsyncIteration, TimeoutError):
                    return
                event = json.loads(frame.data or "null")
                self._position.cursor = frame.id or self._position.cursor
                if event is None:  # an id alone, or a comment, which after a numbered frame looks the same here
                    continue
                if not self._is_event(event):
                    raise ValueError("what it sends is no event")
                yield event
        finally:
            await response.aclose()


def is_run_event(event: JsonObject) -> bool:
    """An event of a run has a number. Raises KeyError for what is no event."""
    return isinstance(event["type"], str) and isinstance(event["id"], int)


def is_bus_event(event: JsonObject) -> bool:
    """A CloudEvent, or a gap. Raises KeyError for what is none."""
    return isinstance(event["type"], str)


@dataclass(frozen=True)
class Pauses:
    """Between two connections, in seconds; after the last pause the stream is given up. `first`: until a connection
    stood once, so that a person soon reads that nothing answers at all. `later`: from then on."""

    first: Sequence[float]
    later: Sequence[float]


async def reconnecting(
    http: httpx.AsyncClient,
    url: str,
    name: str,
    position: StreamPosition,
    pauses: Pauses,
    notify: Callable[[str], None],
    is_event: Callable[[JsonObject], bool] = is_run_event,
) -> AsyncGenerator[JsonObject, None]:
    """The events behind `position` over as many connections as it takes. Ends when the server closes the stream and
    `position.ended` is set. Raises ApiError for an answer that connecting again cannot change, and
    CommandError(UNREACHABLE) after too many failures in a row; the message calls the stream by `name`."""
    failures = 0
    may_pause = pauses.first
    clock = asyncio.get_running_loop().time
    while True:
        opened, connection = clock(), StreamConnection(http, url, position, is_event)
        try:
            async with aclosing(connection.events()) as events:
                async for event in events:
                    failures = 0
                    yield event
            reason = "it was closed before its end"
        except ApiError as error:
            if error.status not in MAY_PASS:
                raise
            reason = error.detail
        except (httpx.RequestError, SSEError, ValueError, KeyError) as error:
            reason = reason_of(error)
        if connection.is_over or position.ended:
            return
        if connection.is_open:
            may_pause = pauses.later
        if clock() - opened >= STEADY_SECONDS:
            failures = 0
        if failures >= len(may_pause):
            message = f"{name} cannot be had: {reason}. Tried {failures + 1} times in a row."
            raise CommandError(ExitCode.UNREACHABLE, message)
        pause = max(may_pause[failures], connection.retry_after)
        failures += 1
        notify(f"No stream ({reason}); connecting again after event {position.cursor or 0} in {pause:g} s.")
        await asyncio.sleep(pause)
