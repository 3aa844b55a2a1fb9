"""All turns of an agent as one stream: turn after turn, each as the stream of its run (`app.streams.sse`).

A frame's id is `<turn>-<event>`: the number of the message among its agent's, and of the event in its run. So a client
that comes back goes on where it was, and no event comes twice. Between two turns a stream waits for the next message.
Redis announces the events of a user's runs; which of these runs are messages is asked of the database, once for all
that appear at about the same time. What was not announced is found at the next heartbeat (`app.streams.hub`).

An older turn that is retried after a newer one has begun is not shown again here: the stream of its run shows it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import structlog

from app.streams.buffer import Watched, Watcher
from app.streams.hub import Hub
from app.streams.sse import COMMENT, History, Position, replay, stream
from backplane.domain.events import EventType, encode
from backplane.domain.runs import FINAL, Run, RunStatus
from backplane.errors import InvalidInput, Unavailable
from backplane.process.retrying import pauses
from backplane.store import Store

log = structlog.get_logger()

LARGEST = 2**31 - 1


class TurnCursor(NamedTuple):
    turn: int
    event: int

    def __str__(self) -> str:
        return f"{self.turn}-{self.event}"


def turn_cursor(text: str, field: str) -> TurnCursor:
    """Raises InvalidInput."""
    turn, dash, event = text.partition("-")
    if dash and all(part.isascii() and part.isdigit() and len(part) <= 10 for part in (turn, event)):
        cursor = TurnCursor(int(turn), int(event))
        if max(cursor) <= LARGEST:
            return cursor
    raise InvalidInput(f"{field}: send the id of the last event, such as 3-17", field=field)


def numbered(chunk: bytes, turn: int) -> bytes:
    """Whole frames of a run's stream, with ids of an agent's. No other line begins with `id: `: data is one line."""
    of_turn = b"id: %d-" % turn
    first = of_turn + chunk[4:] if chunk.startswith(b"id: ") else chunk
    return first.replace(b"\nid: ", b"\n" + of_turn)


def gap_frame(asked: TurnCursor, last: TurnCursor) -> bytes:
    """Says that there is no event `asked`, and that the stream goes on behind `last`."""
    reason = f"there is no event {asked} yet; the stream goes on after {last}"
    event = encode("", 0, EventType.GAP, {"after": last.event, "before": last.event + 1, "reason": reason})
    return f"id: {last}\nevent: {event.type}\ndata: {event.line}\n\n".encode()


@dataclass(frozen=True, slots=True)
class TurnSource:
    """Where the turns of agents are read."""

    hub: Hub
    store: Store
    history: History


async def turns(
    source: TurnSource, mailbox: Watched[int], agent_id: str, cursor: TurnCursor, watcher: Watcher, opening: bytes = b""
) -> AsyncGenerator[bytes, None]:
    """Frames after `cursor`, without an end. `mailbox` was opened before (`Hub.open_mailbox`)."""
    with mailbox.watched():
        if mailbox.swept:
            return
        if opening:
            yield opening
        waits = pauses()
        while True:
            epoch, before, is_read = mailbox.epoch, cursor, False
            try:
                run = await _next_run(source, agent_id, cursor)
                is_read = run is None
                if run is not None and run.turn is not None:
                    position = Position(cursor.event if run.turn == cursor.turn else 0)
                    async with aclosing(_one_turn(source, run, position, watcher)) as chunks:
                        async for chunk in chunks:
                            cursor = TurnCursor(run.turn, position.cursor)
                            yield numbered(chunk, run.turn)
                    cursor = TurnCursor(run.turn, position.cursor)
            except Unavailable as error:
                log.warning("the turns of an agent cannot be read", agent=agent_id, error=error.message)
            if cursor != before:
                waits = pauses()
            elif not is_read:
                # It cannot be read now, or its end is on its way.
                await asyncio.sleep(next(waits))
                if watcher.is_due:
                    yield COMMENT
            elif watcher.is_due:
                yield COMMENT
            elif mailbox.epoch == epoch:
                await mailbox.wait(watcher)


async def _next_run(source: TurnSource, agent_id: str, cursor: TurnCursor) -> Run | None:
    """The message whose events come next: that of the cursor, as long as it has further ones, or the one behind it.
    Raises Unavailable."""
    for run in await source.store.agent_views.turns(agent_id, after_turn=cursor.turn - 1, limit=2):
        if run.turn != cursor.turn or run.status not in FINAL:
            return run
        if await source.history.last_id(run.id) > cursor.event:
            return run
    return None


async def _one_turn(
    source: TurnSource, run: Run, position: Position[int], watcher: Watcher
) -> AsyncGenerator[bytes, None]:
    """The frames of a message's run, to its end. Raises Unavailable."""
    history = partial(source.history.span, run.id)
    if run.status in FINAL:
        chunks = replay(history, position)
    else:
        watched = await source.hub.go_on(run.id, is_queued=run.status is RunStatus.QUEUED)
        chunks = stream(watched, history, position, watcher)
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
