"""The API's origin runs nothing but its own page, and every answer says so to browsers."""

import http.server
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from app.edge.origin import HEADERS
from app.schemas.description import TAGS
from tests.attack.raw_http import RawConnection, get
from tests.browsing import CHROMIUM
from tests.integration.api.requests.conftest import api, person
from tests.integration.api.running import Api, Person

__all__ = ["api", "person"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Chromium as root, which speaks to nobody by itself.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NOBODY = "00000000-0000-7000-8000-000000000000"


def says_what_it_must(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert answer.headers.get_list("content-security-policy") == [policy]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    for name, value in HEADERS.items():
        if name != "Content-Security-Policy":
            assert answer.headers.get_list(name) == [value], name
    assert "server" not in answer.headers


# --- headers ---


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/live", 200),
        ("GET", "/health/ready", 200),
        ("GET", "/agent/me", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/metrics", 200),
        ("GET", "/docs", 200),
        ("GET", "/docs/start.js", 200),
        ("GET", "/docs/swagger-ui-bundle.js", 200),
        ("GET", "/docs/swagger-ui.css", 200),
        ("GET", "/docs/main.py", 404),
        ("GET", "/docs/..%2f__init__.py", 404),
        ("GET", "/redoc", 404),
        ("GET", "/nothing", 404),
        ("GET", f"/agent/runs/{NOBODY}", 404),
        ("DELETE", "/agent/queue", 405),
        ("POST", "/agent/execute", 422),
        ("GET", "/mcp", 405),
        ("HEAD", "/agent/me", 200),
        ("HEAD", "/nothing", 404),
    ],
)
async def test_every_answer_says_what_a_browser_may_do_with_it(
    person: Person, method: str, path: str, status: int
) -> None:
    answer = await person.http.request(method, path)
    assert answer.status_code == status
    says_what_it_must(answer)


async def test_a_refusal_says_so_too(api: Api, person: Person) -> None:
    too_large = await person.http.post("/agent/execute", content=b"x" * (api.settings.request_max_bytes + 1))
    without_token = await api.client().get("/agent/me")
    for answer, status in ((too_large, 413), (without_token, 401)):
        assert answer.status_code == status
        says_what_it_must(answer)


async def test_a_fault_of_the_platform_says_so_too(api: Api, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(api.resources.store.run_lists, "page", fault)
    answer = await person.http.get("/agent/runs")
    assert answer.status_code == 500
    says_what_it_must(answer)


async def test_a_stream_says_so_too(person: Person) -> None:
    run_id = await person.make("create")
    async with person.http.stream("GET", f"/agent/logs/{run_id}/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        says_what_it_must(answer)


async def test_a_page_that_somebody_uploaded_is_never_shown_as_one(person: Person) -> None:
    run_id = await person.make("create")
    path = f"/agent/runs/{run_id}/files/evil.html"
    assert (await person.http.put(path, content=b"<script>alert(1)</script>")).status_code == 201
    for method, more in (("GET", {}), ("GET", {"Range": "bytes=0-3"}), ("HEAD", {})):
        answer = await person.http.request(method, path, headers=more)
        says_what_it_must(answer)
        assert answer.headers["content-security-policy"].startswith("sandbox;")
        assert answer.headers["content-disposition"] == "attachment"
        assert answer.headers["content-type"] == "application/octet-stream"


# --- redirects, methods ---


@pytest.mark.parametrize("path", ["/docs/", "/agent/runs/", "/health/live/", "//evil.test/agent/runs"])
async def test_no_answer_leads_to_the_host_that_a_request_names(api: Api, path: str) -> None:
    async with RawConnection(api.url) as connection:
        answer = await connection.ask(get(path).replace(b"api.test", b"evil.test"))
        assert answer is not None
        assert (answer.status in (401, 404), "location" in answer.headers) == (True, False), answer
        assert b"evil.test" not in answer.body


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/agent/runs", "GET, HEAD"),
        ("POST", f"/agent/runs/{NOBODY}/files/a.txt", "DELETE, GET, HEAD, PUT"),
        ("PUT", "/agent/accounts/transfer", "POST"),
        ("PATCH", "/agent/secrets/NAME", "DELETE, PUT"),
        ("GET", "/agent/execute", "POST"),
        ("HEAD", "/agent/execute", "POST"),
        ("OPTIONS", "/agent/me", "GET, HEAD"),
        ("TRACE", "/health/live", "GET, HEAD"),
        ("GET", "/mcp", "POST"),
    ],
)
async def test_a_refused_method_names_all_that_the_path_takes(
    person: Person, method: str, path: str, allowed: str
) -> None:
    answer = await person.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_head_is_answered_as_get_without_the_body_wherever_get_is(api: Api, person: Person) -> None:
    run_id = await person.make()
    await person.http.put(f"/agent/runs/{run_id}/files/a.txt", content=b"x" * 1000)
    paths = [path for path, methods in api.app.openapi()["paths"].items() if "get" in methods]
    values = {"{run_id}": run_id, "{path}": "a.txt"}
    for path in [*paths, "/docs", "/openapi.json"]:
        for name, value in values.items():
            path = path.replace(name, value)
        if "{" in path:
            continue
        head = await person.http.head(path)
        async with person.http.stream("GET", path) as got:
            if "event-stream" not in got.headers.get("content-type", ""):
                await got.aread()
            assert head.status_code == got.status_code, path
            assert head.content == b""
            assert head.headers.get("content-type") == got.headers.get("content-type"), path
            if "/health/ready" not in path:
                assert head.headers.get("content-length") == got.headers.get("content-length"), path
    assert api.app.state.context.hub.watchers <= 1  # the stream that was read last


# --- in a browser ---


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"there is no {CHROMIUM}: install chromium", pytrace=False)
        pytest.skip(f"there is no {CHROMIUM}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    page = await browser.new_page()
    yield page
    await page.close()


@pytest.mark.slow
async def test_the_page_of_the_api_works_with_nothing_from_elsewhere_and_no_error(api: Api, page: Page) -> None:
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(f"{api.url}/docs")
    await page.locator("#operations-tag-health").click()
    operation = page.locator(".opblock", has_text="/health/live")
    await operation.locator(".opblock-summary-control").click()
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await operation.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
    assert await page.locator(".opblock-tag").count() == len(TAGS)
    assert f"{api.url}/health/live" in requests
    assert [url for url in requests if not url.startswith((f"{api.url}/", "data:"))] == []
    assert errors == []


@contextmanager
def framing(url: str) -> Iterator[str]:
    """A page of somebody else that shows `url` in a frame."""

    class Frame(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<iframe src="{url}"></iframe>'.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Frame) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
async def test_a_page_of_somebody_else_cannot_show_ours_in_a_frame(api: Api, page: Page) -> None:
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    with framing(f"{api.url}/docs") as elsewhere:
        await page.goto(elsewhere)
        assert [frame.url for frame in page.frames if frame.url.startswith(api.url)] == []
    assert any("frame-ancestors" in text for text in refused), refused
