"""The real API on a real port, as its users see it, and a worker that is played by hand.

The API runs in the test's own event loop, so a test can also reach behind it: `api.resources` are the queue, the event
log and the store that it uses itself.
"""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import uvicorn
from fastapi import FastAPI

from app.auth import Access
from app.main import create_app
from backplane.domain.events import Event, EventType, encode
from backplane.domain.runs import RunError, RunStatus
from backplane.domain.users import Tier, token_digest
from backplane.logs.base import Appended, Batch
from backplane.queue.base import Claim
from backplane.resources import Resources
from backplane.settings import Settings
from backplane.store.run_transaction import RunTransaction
from tests.databases import make_tables
from tests.queues import finish
from tests.settings import settings_of
from tests.waiting import wait_until
from worker.service import serve

LONGEST_WAIT_SECONDS = 30.0
PLAN = {"steps": [{"id": "only", "tool": "file_write", "arguments": {"path": "a.txt", "content": "a"}}]}


@dataclass(frozen=True, slots=True)
class Frame:
    """One SSE frame. A comment is a frame without an event."""

    id: int | None
    event: str
    text: str
    comment: str = ""

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def data(self) -> Any:
        return self.body["data"]


def frame_of(block: bytes) -> Frame:
    fields: dict[str, str] = {}
    for line in block.decode().split("\n"):
        name, _, value = line.partition(":")
        assert name not in fields, f"two lines {name!r} in one frame: {block!r}"
        fields[name] = value.removeprefix(" ")
    number = fields.get("id")
    return Frame(int(number) if number else None, fields.get("event", ""), fields.get("data", ""), fields.get("", ""))


async def frames(response: httpx.Response) -> AsyncIterator[Frame]:
    """Until the server ends the stream, which it may only do after a whole frame."""
    rest = b""
    async for chunk in response.aiter_raw():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            yield frame_of(block)
    assert rest == b""


class Person:
    """Someone with a token."""

    def __init__(self, http: httpx.AsyncClient, token: str, token_id: str) -> None:
        self.http = http
        self.token = token
        self.token_id = token_id

    async def access(self, api: "Api") -> Access:
        """What a stream of this person is opened with."""
        user = await api.resources.store.users.user_of(self.token)
        assert user is not None
        return Access(user, token_digest(self.token))

    async def act(self, action: str, run_id: str | None = None, **fields: Any) -> httpx.Response:
        body = {"action": action, **({"run_id": run_id} if run_id else {}), **fields}
        return await self.http.post("/agent/execute", json=body)

    async def make(self, action: str = "run", **fields: Any) -> str:
        """The id of a new run, queued unless the action is `create`."""
        answer = await self.act(action, **{"prompt": "say hello", "plan": PLAN, **fields})
        assert answer.status_code == 201, answer.text
        run_id: str = answer.json()["run_id"]
        return run_id

    async def show(self, run_id: str) -> Any:
        answer = await self.http.get(f"/agent/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    @asynccontextmanager
    async def stream(
        self, run_id: str, *, after: int | None = None, last_event_id: int | str | None = None
    ) -> AsyncIterator[AsyncIterator[Frame]]:
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        parameters = {} if after is None else {"after": str(after)}
        path = f"/agent/logs/{run_id}/stream"
        async with (
            asyncio.timeout(LONGEST_WAIT_SECONDS),
            self.http.stream("GET", path, headers=headers, params=parameters) as response,
        ):
            assert response.status_code == 200, await response.aread()
            yield frames(response)

    async def watch(
        self, run_id: str, *, after: int | None = None, last_event_id: int | str | None = None
    ) -> list[Frame]:
        """Every numbered frame, until the stream ends by itself."""
        async with self.stream(run_id, after=after, last_event_id=last_event_id) as stream:
            return [frame async for frame in stream if frame.id is not None]


@dataclass
class Api:
    url: str
    app: FastAPI
    settings: Settings
    people: list[httpx.AsyncClient] = field(default_factory=list)

    @property
    def resources(self) -> Resources:
        resources: Resources = self.app.state.context.resources
        return resources

    async def person(self, tier: Tier = Tier.STANDARD) -> Person:
        """A new user of this tier, with a token."""
        token, plain = await self.resources.store.users.create_token(f"user-{uuid4().hex[:8]}", tier)
        return Person(self.client({"Authorization": f"Bearer {plain}"}), plain, token.id)

    def client(self, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=LONGEST_WAIT_SECONDS, limits=limits)
        self.people.append(http)
        return http

    async def answer_to(self, request: str) -> tuple[bytes, bytes]:
        """Head and body of the answer to exactly this text, which a client's library would not send."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request.encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-l"))
            body = await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()
        return head, body

    async def worker(self) -> "WorkerByHand":
        """Takes the next run of the queue."""
        [claim] = await self.resources.queue.claim("by-hand", 1)
        return await WorkerByHand.take(self.resources, claim)


class _ServerOfTests(uvicorn.Server):
    """An API that cannot go on sends SIGTERM to its process. Here that ends the API, and not the process of the tests,
    to which uvicorn would send the signal again."""

    ended_itself = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self.ended_itself = signal.SIGTERM in self._captured_signals
            self._captured_signals = [number for number in self._captured_signals if number != signal.SIGTERM]


@asynccontextmanager
async def running(settings: Settings, *, send_buffer: int | None = None) -> AsyncIterator[Api]:
    """The API under uvicorn; ready for requests, with its tables made. `send_buffer`: bytes that the system holds for a
    client that does not read."""
    await make_tables(settings.database_url.get_secret_value())
    app = create_app(settings)
    # asyncio lets no answer wait (TCP_NODELAY) only where the protocol is named: else each takes 40 ms more.
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        if send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listening.bind(("127.0.0.1", 0))
        server = _ServerOfTests(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await wait_until(lambda: server.started)
        api = Api(f"http://127.0.0.1:{listening.getsockname()[1]}", app, settings)
        try:
            await api.resources.workspaces.prepare()
            yield api
        finally:
            for http in api.people:
                await http.aclose()
            server.should_exit = True
            await serving
            await _end_stream_watcher()
            assert not server.ended_itself, "the API ended by itself; its log says why"


StartApi = Callable[..., Awaitable[Api]]
StartWorker = Callable[[Settings], None]


@asynccontextmanager
async def api_starter(settings_with: Callable[..., Settings]) -> AsyncIterator[StartApi]:
    """Starts APIs with these settings, `await start(stream_watchers_max=16)`, and stops them."""
    async with AsyncExitStack() as stack:

        async def start(*, send_buffer: int | None = None, **values: Any) -> Api:
            return await stack.enter_async_context(running(settings_with(**values), send_buffer=send_buffer))

        yield start


@asynccontextmanager
async def worker_starter() -> AsyncIterator[StartWorker]:
    """Starts real workers on the settings of an API, and stops them."""
    async with AsyncExitStack() as stack:

        def start(settings: Settings) -> None:
            stop = asyncio.Event()
            short = {"lease_seconds": 2.0, "heartbeat_seconds": 0.2}
            working = asyncio.create_task(serve(settings.model_copy(update=short), stop))

            async def end() -> None:
                stop.set()
                await working

            stack.push_async_callback(end)

        yield start


def settings_on(folder: Path, **values: Any) -> Settings:
    """SQLite and workspaces in this folder, and what else is said; the environment is not read."""
    parts = {"database_url": f"sqlite:///{folder / 'agent.db'}", "workspace_dir": folder / "workspaces"}
    parts |= {"memory_dir": str(folder / "memory"), "artifacts_dir": str(folder / "artifacts")}
    without_limits = {"api_rate_burst": 100_000, "api_anonymous_rate_per_second": 0}
    return settings_of(**{**parts, "log_level": "error", "token_cache_seconds": 0.0, **without_limits, **values})


async def _end_stream_watcher() -> None:
    """sse-starlette has one task a loop that waits for the end of the process."""
    for task in asyncio.all_tasks():
        if "_shutdown_watcher" in str(task.get_coro()):
            task.cancel()
            await asyncio.wait([task])


class WorkerByHand:
    """Has claimed one run, and publishes what the test says."""

    def __init__(self, resources: Resources, claim: Claim, last_id: int) -> None:
        self.claim = claim
        self.last_id = last_id
        self._resources = resources

    @classmethod
    async def take(cls, resources: Resources, claim: Claim) -> "WorkerByHand":
        taken = await resources.store.running_runs.take(claim.run_id, claim.generation)
        assert taken is not None
        return cls(resources, claim, taken.last_event_id)

    @property
    def run_id(self) -> str:
        return self.claim.run_id

    def number(self, type: EventType, data: Mapping[str, Any]) -> Event:
        self.last_id += 1
        return encode(self.run_id, self.last_id, type, data)

    def lines(self, *lines: str) -> list[Event]:
        return [self.number(EventType.LOG, {"line": line}) for line in lines]

    async def say(self, *lines: str) -> None:
        """Publish log lines and store them; the other way round where Redis does not know the run."""
        answer = await self._append(events := self.lines(*lines), events[0].id - 1)
        await self.store(events)
        if answer is Appended.STORE_FIRST:
            await self.publish(events, stored=True)

    async def publish(self, events: Sequence[Event], *, stored: bool = False) -> None:
        assert await self._append(events, events[-1].id if stored else events[0].id - 1) is Appended.TAKEN

    async def _append(self, events: Sequence[Event], stored_id: int) -> Appended:
        batch = Batch(self.run_id, self.claim.generation, events, stored_id=stored_id)
        [answer] = await self._resources.event_log.append([batch])
        return answer

    async def store(self, events: Sequence[Event]) -> None:
        assert not await self._resources.store.running_runs.add_events({(self.run_id, self.claim.generation): events})

    async def end(
        self, status: RunStatus = RunStatus.COMPLETED, error: RunError | None = None, *, published: bool = True
    ) -> None:
        """Commit the run's end and, when `published`, publish it."""
        ends = [self.number(EventType.STATUS, {"status": status}), self.number(EventType.END, {"status": status})]

        def write(transaction: RunTransaction) -> None:
            transaction.add_events(ends)
            transaction.finish(status, error)

        await self._resources.store.running_runs.write(self.run_id, self.claim.generation, write)
        if published:
            await self.publish(ends, stored=True)
            await finish(self._resources.queue, self.claim, 1.0)
