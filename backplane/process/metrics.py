"""What every process's metrics share: a registry of its own, and for those without a web server a very small one.

The registry is made where the process starts and handed on, so that several parts in one process (tests, `standalone`)
count apart. The server answers `GET /metrics`, `GET /health/live` and `GET /health/ready` and nothing else; it runs on
the event loop that does the work, so an answer shows that this loop is not blocked. It is no web server: one request
for each connection, no bodies, no TLS, no tokens; the network decides who may reach the port. A port that is taken
costs the metrics, not the work.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager

import structlog
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from backplane.process.own_use import OwnUse
from backplane.process.tasks import end

REQUEST_MAX_BYTES = 16 * 1024
REQUEST_SECONDS = 5.0
"""From the connection to the last byte of the answer."""
CONNECTIONS_MAX = 16

log = structlog.get_logger()


def process_registry() -> CollectorRegistry:
    """A registry with the metrics that every process has: memory, processor time, open files, network,
    Python."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, which nobody reads
    registry = CollectorRegistry(auto_describe=True)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    registry.register(OwnUse())
    return registry


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """All metrics in the text format of Prometheus, and its content type."""
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


@asynccontextmanager
async def metrics_served(registry: CollectorRegistry, host: str, port: int) -> AsyncIterator[asyncio.Event]:
    """The paths above for as long as the block runs; port 0: nothing. Raises nothing of its own. What it gives is to be
    set while the process does its work: `/health/ready` answers 200 then, else 503."""
    ready = asyncio.Event()
    if not port:
        yield ready
        return
    requests = _Requests(registry, ready)
    try:
        server = await asyncio.start_server(requests.answer, host, port, limit=REQUEST_MAX_BYTES)
    except (OSError, OverflowError) as error:
        log.error(
            "metrics are not served: the address cannot be used; set another METRICS_PORT or METRICS_HOST",
            host=host,
            port=port,
            error=str(error),
        )
        yield ready
        return
    log.info("metrics are served", host=host, port=port)
    try:
        yield ready
    finally:
        server.close()
        await end(*requests.under_way)


@contextmanager
def metrics_served_by_thread(registry: CollectorRegistry, host: str, port: int) -> Iterator[Callable[[], None]]:
    """The same for a process whose work is no event loop; what it gives is to be called when that work begins. An
    answer shows that the process is there, and not that its work goes on."""
    if not port:
        yield lambda: None
        return
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    serving: Future[asyncio.Event] = Future()

    async def serve() -> None:
        async with metrics_served(registry, host, port) as ready:
            serving.set_result(ready)
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="metrics", daemon=True)
    thread.start()
    ready = serving.result()
    try:
        yield lambda: _set(loop, ready)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


class _Requests:
    def __init__(self, registry: CollectorRegistry, ready: asyncio.Event) -> None:
        self._ready = ready
        self.under_way = set[asyncio.Task[object]]()
        self._registry = registry

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self.under_way) >= CONNECTIONS_MAX:
                return
            self.under_way.add(task)
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(await self._response(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.under_way.discard(task)
            writer.transport.abort()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large")
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path not in (b"/metrics", b"/health/live", b"/health/ready"):
            return _response("404 Not Found")
        if method != b"GET":
            return _response("405 Method Not Allowed", allow="GET")
        if path == b"/metrics":
            body, content_type = exposition(self._registry)
            return _response("200 OK", body, content_type=content_type)
        if path == b"/health/ready" and not self._ready.is_set():
            return _response("503 Service Unavailable", b'{"ok":false}', content_type="application/json")
        return _response("200 OK", b'{"ok":true}', content_type="application/json")


def _response(status: str, body: bytes = b"", **headers: str) -> bytes:
    all_headers = {**headers, "content_length": str(len(body)), "connection": "close"}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in all_headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body
