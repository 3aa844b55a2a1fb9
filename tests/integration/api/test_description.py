"""The description of the API and its page: built once, sent again only when changed, at home below any path."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from backplane.process.tasks import end
from tests.integration.api.running import Api, StartApi
from tests.metrics import scrape


async def test_the_description_is_built_once_for_all_who_ask(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    built = 0
    generate = api.app.state.description._make

    async def counted() -> Any:
        nonlocal built
        built += 1
        return await generate()

    monkeypatch.setattr(api.app.state.description, "_make", counted)
    http = api.client()
    answers = await asyncio.gather(*[http.get("/openapi.json") for _ in range(20)])
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    # To name the methods of a path needs it too.
    assert (await http.post("/health/live")).headers["allow"] == "GET, HEAD"
    assert built == 1


async def test_metrics_are_encoded_once_for_all_who_ask_within_a_second(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = 0
    kept = api.app.state.context.platform_metrics._kept
    make = kept._make

    async def counted() -> Any:
        nonlocal encoded
        encoded += 1
        return await make()

    monkeypatch.setattr(kept, "_make", counted)
    monkeypatch.setattr(kept, "_seconds", 600.0)
    http = api.client()
    answers = await asyncio.gather(*[http.get("/metrics") for _ in range(20)])
    assert {answer.status_code for answer in answers} == {200}
    assert encoded == 1
    monkeypatch.setattr(kept, "_kept", None)
    assert (await scrape(api.url)).value("agent_http_requests_total", route="/metrics") >= 20


# --- below a path ---


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()


@asynccontextmanager
async def proxy(url: str, prefix: str, *, takes_it_away: bool) -> AsyncIterator[str]:
    """A proxy that serves what is at `url` below `prefix`, as nginx does by `location /agents/ {…}`, one request a
    connection. Gives its address."""
    target = httpx.URL(url)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            method, path, *rest = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
            if not path.startswith(prefix.encode() + b"/"):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            inner, outer = await asyncio.open_connection(target.host, target.port)
            path = path.removeprefix(prefix.encode()) if takes_it_away else path
            head = b" ".join([method, path, *rest]).removesuffix(b"\r\n")
            outer.write(head + b"X-Forwarded-Prefix: %s\r\nConnection: close\r\n\r\n" % prefix.encode())
            body = asyncio.create_task(pump(reader, outer))
            await pump(inner, writer)
            await end(body)
            outer.close()
        writer.close()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{prefix}"


@pytest.mark.parametrize(
    ("takes_it_away", "root_path"),
    [(True, ""), (False, "/agents"), pytest.param(True, "/agents", marks=pytest.mark.slow)],
)
async def test_below_a_path_of_a_proxy_everything_is_found_from_the_first_address_on(
    start_api: StartApi, takes_it_away: bool, root_path: str
) -> None:
    api = await start_api(request_max_bytes=1024, api_root_path=root_path)
    person = await api.person()
    async with (
        proxy(api.url, "/agents", takes_it_away=takes_it_away) as address,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {person.token}", "Connection": "close"}) as http,
    ):
        page = await http.get(f"{address}/", follow_redirects=True)
        assert (page.status_code, str(page.url)) == (200, f"{address}/docs")
        if not takes_it_away:
            # Without the slash its last part is a name in the folder above.
            bare = await http.get(f"{api.url}{root_path}", follow_redirects=True)
            assert (bare.status_code, str(bare.url)) == (200, f"{api.url}{root_path}/docs")
        for link in ("docs/swagger-ui.css", "docs/start.js", "openapi.json"):
            assert (await http.get(urljoin(str(page.url), link))).status_code == 200
        described = await http.get(f"{address}/openapi.json")
        [server] = json.loads(described.content)["servers"]
        below = urljoin(str(described.url), server["url"]).rstrip("/")
        assert below == address
        assert (await http.get(f"{below}/agent/me")).status_code == 200
        assert (await http.get(f"{below}/nothing")).status_code == 404
        assert (await http.delete(f"{below}/agent/queue")).headers["allow"] == "GET, HEAD"
        run_id = await person.make("create")
        # The limit on bodies is not that of files, whose path is told apart below the proxy's.
        file = f"{below}/agent/runs/{run_id}/files/a.txt"
        assert (await http.put(file, content=b"x" * 5000)).status_code == 201
        assert (await http.post(f"{below}/agent/execute", content=b"x" * 5000)).status_code == 413
    # A health check goes past the proxy.
    assert (await api.client().get("/health/ready")).status_code == 200
