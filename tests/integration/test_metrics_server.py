"""The small server of processes that have no other: what it answers, and that nobody can hold it up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
from prometheus_client import CollectorRegistry

from agentctl.local.embedded import free_port
from backplane.process import metrics
from backplane.process.metrics import CONNECTIONS_MAX, REQUEST_MAX_BYTES, metrics_served, process_registry
from tests.metrics import broken_conventions, scrape


@pytest.fixture
async def url() -> AsyncIterator[str]:
    port = free_port()
    async with metrics_served(process_registry(), "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


async def raw(url: str, request: bytes) -> bytes:
    """What is answered to these bytes, until the server closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_the_metrics_describe_the_process(url: str) -> None:
    found = await scrape(url)
    assert found.value("process_resident_memory_bytes") > 0
    assert broken_conventions(found.families) == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics?x=1", 200),
        ("GET", "/health/live", 200),
        ("GET", "/health/ready", 503),
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
    ],
)
async def test_it_answers_three_paths_and_one_method(url: str, method: str, path: str, status: int) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.request(method, url + path)).status_code == status


async def test_it_is_ready_once_it_was_said_to_be() -> None:
    port = free_port()
    async with metrics_served(CollectorRegistry(), "127.0.0.1", port) as ready, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}/health/ready"
        assert (await http.get(url)).json() == {"ok": False}
        ready.set()
        assert ((await http.get(url)).status_code, (await http.get(url)).json()) == (200, {"ok": True})


async def test_a_request_that_is_too_large_is_refused(url: str) -> None:
    assert (await raw(url, b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 2 * REQUEST_MAX_BYTES)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("request_bytes", [b"\r\n\r\n", b"\x16\x03\x01\x00\r\n\r\n", b"GET\r\n\r\n"])
async def test_what_is_no_request_is_not_found(url: str, request_bytes: bytes) -> None:
    assert (await raw(url, request_bytes)).startswith(b"HTTP/1.1 404 ")


async def test_a_request_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(metrics, "REQUEST_SECONDS", 0.05)
    async with asyncio.timeout(10):
        assert await raw(url, b"GET /metrics HTTP/1.1\r\n") == b""


async def test_connections_over_the_limit_are_closed_at_once_and_all_with_the_server() -> None:
    port = free_port()
    async with metrics_served(CollectorRegistry(), "127.0.0.1", port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
        assert await raw(f"http://127.0.0.1:{port}", b"GET /health/live HTTP/1.1\r\n\r\n") == b""
    async with asyncio.timeout(10):
        for reader, writer in held:
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()


async def test_port_0_serves_nothing_and_a_taken_port_is_no_error(url: str) -> None:
    async with metrics_served(CollectorRegistry(), "127.0.0.1", 0):
        pass
    async with metrics_served(CollectorRegistry(), "127.0.0.1", int(url.rpartition(":")[2])):
        assert (await scrape(url)).value("process_resident_memory_bytes") > 0


async def test_a_port_beyond_the_last_is_no_error_either() -> None:
    async with metrics_served(CollectorRegistry(), "127.0.0.1", 65_536):
        pass
