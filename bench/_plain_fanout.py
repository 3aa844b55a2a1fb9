"""What `bench.fanout` measures the API against: `uvicorn bench._plain_fanout:app`.

/plain/{run_id}: the plain way, one Redis connection and one subscription a client; the messages are the platform's own.
/bare: the limit of the web server and framework: the same bytes from memory, in chunks of BATCH events, as fast as they
are taken, to all at once when /go is called. No history, no cursor, no heartbeat, no cut-off in either.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from backplane.redis.keys import Keys
from bench._frames import BATCH, events

redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=10_000)
bare: dict[str, tuple[asyncio.Event, list[bytes]]] = {}


def frame_of(line: str) -> str:
    event = json.loads(line)
    return f"id: {event['id']}\nevent: {event['type']}\ndata: {line}\n\n"


async def plain(request: Request) -> Response:
    run_id = request.path_params["run_id"]

    async def stream() -> AsyncIterator[str]:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(Keys().channel(run_id))
            yield frame_of(events(run_id, 1)[0].line)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    chunk = "".join(map(frame_of, message["data"].split("\n")))
                    yield chunk
                    if "event: end" in chunk:
                        return

    return StreamingResponse(stream(), media_type="text/event-stream")


async def from_memory(request: Request) -> Response:
    run_id, count = request.path_params["run_id"], int(request.query_params["frames"])
    if run_id not in bare:
        frames = [frame_of(event.line).encode() for event in events(run_id, count)]
        chunks = [b"".join(frames[first : first + BATCH]) for first in range(1, count, BATCH)]
        bare[run_id] = (asyncio.Event(), [frames[0], *chunks])
    go, (first, *chunks) = bare[run_id]

    async def stream() -> AsyncIterator[bytes]:
        yield first
        await go.wait()
        for chunk in chunks:
            yield chunk

    return StreamingResponse(stream(), media_type="text/event-stream")


async def begin(request: Request) -> Response:
    bare[request.path_params["run_id"]][0].set()
    return Response()


app = Starlette(
    routes=[
        Route("/plain/{run_id}", plain),
        Route("/bare/{run_id}", from_memory),
        Route("/go/{run_id}", begin),
    ]
)
