"""What a stranger sends before a token can be read has limits, and a flood of it does not stop users.

Each limit is tried from both sides. The times are shortened here, the sizes are the real ones.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.edge import gate, protocol
from backplane.domain.users import token_digest
from backplane.settings import fixed
from tests.attack.raw_http import Answer, RawConnection, connections, get, request
from tests.integration.api.running import Api, Person, running, settings_on
from tests.ports import own_port
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
LIVE = get("/health/live")
SHORT_SECONDS = 0.4
PER_ADDRESS = 8
BURST = 10
SHORT_TIMES = {"HEAD_SECONDS", "BODY_SILENCE_SECONDS", "CLOSING_SECONDS"}


@pytest.fixture(scope="module", autouse=True)
def short_times() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in SHORT_TIMES:
            patch.setattr(protocol, name, SHORT_SECONDS)
        patch.setattr(protocol, "LINGER_SECONDS", 0.1)
        patch.setattr(gate, "PAUSE_SECONDS", 0.05)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(
    redis_of_module: str, sqlite_of_module: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    settings = settings_on(
        tmp_path_factory.mktemp("api"),
        redis_url=redis_of_module,
        database_url=sqlite_of_module,
        api_keep_alive_seconds=30,
        api_anonymous_connections_per_address=PER_ADDRESS,
        api_anonymous_rate_per_second=0.01,
        api_anonymous_rate_burst=BURST,
        api_trusted_proxies="127.0.1.0/24",
        token_cache_seconds=60,
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(fixed, "STREAM_SEND_TIMEOUT_SECONDS", SHORT_SECONDS)
        async with running(settings, send_buffer=65536) as api:
            api.app.state.connection_limits.sweep_seconds = 0.05
            api.app.state.connection_limits.send_seconds = SHORT_SECONDS
            yield api


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    """An address of the test's own: what strangers may send is counted by it."""
    number = hash(request.node.nodeid) % 60_000
    return f"127.{2 + number // 250 % 200}.{number % 250}.7"


@pytest.fixture
def connect(api: Api, source: str) -> Any:
    return lambda: RawConnection(api.url, source)


@pytest_asyncio.fixture(loop_scope="module")
async def person(api: Api) -> Person:
    person = await api.person()
    assert (await person.http.get("/agent/me")).status_code == 200
    return person


def bearer(person: Person) -> dict[str, str]:
    return {"Authorization": f"Bearer {person.token}"}


def refused(answer: Answer | None, status: int) -> None:
    """A problem, as every other error is, on a connection that will be closed."""
    assert answer is not None
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert "sandbox" in answer.headers["content-security-policy"]


def padded(size: int) -> bytes:
    """A head of exactly so many bytes."""
    rest = size - len(get("/health/live", Pad=""))
    return get("/health/live", Pad="x" * rest)


# --- sizes ---


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(padded(protocol.HEAD_MAX_BYTES), 200, id="head at the limit"),
        pytest.param(padded(protocol.HEAD_MAX_BYTES + 1), 431, id="head over the limit"),
        pytest.param(get("/health/live", **{f"H{i}": "x" for i in range(99)}), 200, id="headers at the limit"),
        pytest.param(get("/health/live", **{f"H{i}": "x" for i in range(100)}), 431, id="headers over the limit"),
        pytest.param(get("/" + "x" * (protocol.TARGET_MAX_BYTES - 1)), 404, id="path at the limit"),
        pytest.param(get("/" + "x" * protocol.TARGET_MAX_BYTES), 414, id="path over the limit"),
        pytest.param(get("/x?" + "x" * protocol.TARGET_MAX_BYTES), 414, id="query over the limit"),
    ],
)
async def test_a_head_is_taken_up_to_its_limits(connect: Any, head: bytes, status: int) -> None:
    async with connect() as connection:
        answer = await connection.ask(head)
        if status in (200, 404):
            assert answer is not None
            assert answer.status == status
        else:
            refused(answer, status)
            assert await connection.is_closed()


@pytest.mark.parametrize("piece", [b"GET / HTTP/1.1\r\nX: " + b"x" * 65_536, b"\r\n" * 32_768], ids=["header", "lines"])
async def test_sixty_megabytes_before_a_request_are_cut_off_after_the_first(connect: Any, piece: bytes) -> None:
    async with connect() as connection:
        sent = 0
        with suppress(OSError):
            while sent < 60_000_000 and not connection.writer.transport.is_closing():
                connection.writer.write(piece)
                await connection.writer.drain()
                sent += len(piece)
                piece = b"x" * 65_536
        assert sent < 20_000_000


async def test_chunks_of_one_byte_are_refused_and_ordinary_ones_are_not(connect: Any, person: Person) -> None:
    run_id = await person.make("create")
    path = f"/agent/runs/{run_id}/files/a.txt"
    head = request("PUT", path, Transfer_Encoding="chunked", **bearer(person))
    async with connect() as connection:
        await connection.send(head)
        refused(await connection.ask(b"1\r\nx\r\n" * 40_000), 400)
    async with connect() as connection:
        answer = await connection.ask(head + b"40\r\n" + b"x" * 64 + b"\r\n" + b"0\r\n\r\n")
        assert answer is not None
        assert answer.status == 201


async def test_a_trailer_is_no_header(connect: Any, person: Person) -> None:
    body = b'{"action": "status", "run_id": "00000000-0000-7000-8000-000000000000"}'
    head = request("POST", "/agent/execute", Transfer_Encoding="chunked", Content_Type="application/json")
    trailer = f"Authorization: Bearer {person.token}\r\n".encode()
    async with connect() as connection:
        answer = await connection.ask(head + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailer))
        assert answer is not None
        assert answer.status == 401


# --- what is no request ---


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        get("/health/live", Content_Length="1", content_length="2"),
        request("POST", "/health/live", Content_Length="3", Transfer_Encoding="chunked") + b"0\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n\r\n",
        get("/health/live", Host="other.test"),
        b"GET /health/live HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        get("/health/live", Authorization="Bearer a", authorization="Bearer b"),
        b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    ],
    ids=[
        "TLS",
        "HTTP/2",
        "two lengths",
        "length and chunks",
        "folded",
        "no colon",
        "no Host",
        "two Hosts",
        "two Hosts in HTTP/1.0",
        "two tokens",
        "CONNECT",
    ],
)
async def test_what_is_no_request_is_refused_as_a_problem(connect: Any, said: bytes) -> None:
    async with connect() as connection:
        refused(await connection.ask(said), 400)
        assert await connection.is_closed()


async def test_an_upgrade_is_answered_as_the_request_that_it_is_and_the_connection_is_closed(connect: Any) -> None:
    websocket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    for path, status in (("/health/live", 200), ("/agent/events", 401)):
        async with connect() as connection:
            answer = await connection.ask(get(path, Sec_WebSocket_Version="13", **websocket))
            assert answer is not None
            assert answer.status == status
            assert await connection.is_closed()


async def test_a_request_of_http_1_0_is_answered_and_the_connection_is_closed(connect: Any) -> None:
    async with connect() as connection:
        answer = await connection.ask(b"GET /health/live HTTP/1.0\r\n\r\n")
        assert answer is not None
        assert answer.status == 200
        assert await connection.is_closed()


@pytest.mark.parametrize("version", [b"", b" HTTP/2.0"], ids=["0.9", "2.0"])
async def test_a_request_of_another_version_is_refused(connect: Any, version: bytes) -> None:
    async with connect() as connection:
        refused(await connection.ask(b"GET /health/live%s\r\nHost: a\r\n\r\n" % version), 505)


async def test_pipelined_requests_are_answered_in_order_up_to_a_number(connect: Any) -> None:
    async with connect() as connection:
        await connection.send(LIVE * 5 + get("/nothing"))
        answers = [await connection.answer() for _ in range(6)]
        assert [answer and answer.status for answer in answers] == [200] * 5 + [404]
    async with connect() as connection:
        await connection.send(LIVE * 1000)
        answered = 0
        while await connection.answer():
            answered += 1
        assert answered <= protocol.PIPELINED_MAX + 1


# --- times ---


@pytest.mark.parametrize(
    ("first", "status"), [(b"", None), (b"GET /health/live HTTP/1.1\r\nHo", 408)], ids=["nothing", "half a head"]
)
async def test_a_head_that_does_not_come_is_not_waited_for(connect: Any, first: bytes, status: int | None) -> None:
    async with connect() as connection:
        answer = await connection.ask(first)
        if status is None:
            assert answer is None
        else:
            refused(answer, status)
        assert await connection.is_closed()


async def test_a_head_that_comes_byte_by_byte_is_not_waited_for(connect: Any) -> None:
    async with connect() as connection:
        answering = asyncio.create_task(connection.answer())
        for byte in get("/health/live", Pad="x" * 500):
            await connection.send(bytes([byte]))
            if (await asyncio.wait([answering], timeout=0.05))[0]:
                break
        refused(await answering, 408)


async def test_a_connection_that_has_been_idle_is_closed_and_one_that_is_used_is_not(
    api: Api, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.app.state.connection_limits, "keep_alive_seconds", 2 * SHORT_SECONDS)
    async with connect() as used, connect() as idle:
        assert await used.ask(LIVE)
        assert await idle.ask(LIVE)
        closing = asyncio.create_task(idle.is_closed())
        while not closing.done():
            assert await used.ask(LIVE)
            await asyncio.wait([closing], timeout=SHORT_SECONDS / 4)
        assert await used.ask(LIVE)


async def test_a_body_that_stops_is_not_waited_for(connect: Any, person: Person) -> None:
    head = request("POST", "/agent/execute", Content_Length="1000", Content_Type="application/json", **bearer(person))
    async with connect() as connection:
        refused(await connection.ask(head + b'{"action":'), 408)
        assert await connection.is_closed()


@pytest.mark.slow
async def test_a_body_that_goes_on_coming_may_take_longer_than_one_that_stops(connect: Any, person: Person) -> None:
    run_id = await person.make("create")
    pieces = 24
    head = request("PUT", f"/agent/runs/{run_id}/files/a.txt", Content_Length=str(pieces * 256), **bearer(person))
    loop = asyncio.get_running_loop()
    async with connect() as connection:
        began = loop.time()
        await connection.send(head)
        answering = asyncio.create_task(connection.answer())
        for _ in range(pieces):
            await connection.send(b"x" * 256)
            await asyncio.wait([answering], timeout=0.05)
        answer = await answering
        assert answer is not None
        assert (answer.status, loop.time() - began > 2 * SHORT_SECONDS) == (201, True), answer


async def test_a_reader_that_takes_nothing_of_a_file_is_cut_off(api: Api, connect: Any, person: Person) -> None:
    run_id = await person.make("create")
    content = b"x" * 3_000_000
    assert (await person.http.put(f"/agent/runs/{run_id}/files/a.bin", content=content)).status_code == 201
    limits = api.app.state.connection_limits
    async with connect() as connection:
        connection.writer.transport.pause_reading()
        await connection.send(get(f"/agent/runs/{run_id}/files/a.bin", **bearer(person)))
        await wait_until(lambda: any(c._blocked_since for c in limits._all), what="the file to be held up")
        await wait_until(lambda: not any(c._blocked_since for c in limits._all), what="the end of the connection")
    assert (await person.http.get(f"/agent/runs/{run_id}/files/a.bin")).content == content


@pytest.mark.slow
async def test_a_stream_outlives_every_one_of_these_limits(api: Api, person: Person) -> None:
    run_id = await person.make()
    loop = asyncio.get_running_loop()
    async with person.stream(run_id) as stream:
        assert (await anext(stream)).id == 1
        worker = await api.worker()
        until = loop.time() + 3 * SHORT_SECONDS
        await wait_until(lambda: loop.time() > until)
        await worker.say("still there")
        await worker.end()
        assert "still there" in [frame.data.get("line") async for frame in stream if frame.event == "log"]


# --- a body that nobody wants ---


@pytest.mark.parametrize("token", [None, "agt_wrong"])
async def test_the_body_of_a_stranger_is_refused_before_it_is_sent(connect: Any, token: str | None) -> None:
    more = {"Authorization": f"Bearer {token}"} if token else {}
    head = request("POST", "/agent/execute", Content_Length="1000000000", Expect="100-continue", **more)
    async with connect() as connection:
        answer = await connection.ask(head)
        assert answer is not None
        assert answer.status == 401
        # Of what is sent all the same, no more is read than what lets the client see the answer.
        await connection.send(b"x" * 20_000_000)
        assert await connection.is_closed()


async def test_a_user_who_asks_whether_to_send_a_body_gets_100_continue(connect: Any, person: Person) -> None:
    body = b'{"action": "create", "prompt": "hello"}'
    fields = {"Content_Length": str(len(body)), "Content_Type": "application/json", "Expect": "100-continue"}
    async with connect() as connection:
        answer = await connection.ask(request("POST", "/agent/execute", **fields, **bearer(person)))
        assert answer is not None
        assert answer.status == 100
        answer = await connection.ask(body)
        assert answer is not None
        assert answer.status == 201


# --- many ---


async def is_open(connection: RawConnection) -> bool:
    """Whether it still answers."""
    return await connection.ask(LIVE) is not None


async def test_one_address_holds_so_many_connections_without_a_token_and_the_newest_stay(
    api: Api, source: str, person: Person
) -> None:
    async with connections(api.url, 3 * PER_ADDRESS, source) as opened:
        still = [await is_open(connection) for connection in opened]
        assert still == [False] * 2 * PER_ADDRESS + [True] * PER_ADDRESS
        async with RawConnection(api.url, source) as mine:
            answer = await mine.ask(get("/agent/me", **bearer(person)))
            assert answer is not None
            assert answer.status == 200


async def test_a_connection_that_has_shown_a_token_is_not_closed_for_others(
    api: Api, source: str, person: Person
) -> None:
    async with RawConnection(api.url, source) as mine:
        assert await mine.ask(get("/agent/me", **bearer(person)))
        async with connections(api.url, 3 * PER_ADDRESS, source):
            answer = await mine.ask(get("/agent/me", **bearer(person)))
            assert answer is not None
            assert answer.status == 200


async def test_a_user_who_holds_every_connection_keeps_no_other_user_out(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 12
    hostile = await api.person()
    monkeypatch.setattr(api.app.state.connection_limits, "total", total)
    async with AsyncExitStack() as stack:
        for _ in range(2 * total):
            held = await stack.enter_async_context(RawConnection(api.url))
            await held.ask(get("/agent/me", **bearer(hostile)))
        mine = await stack.enter_async_context(RawConnection(api.url))
        for _ in range(2):
            answer = await mine.ask(get("/agent/me", **bearer(person)))
            assert answer is not None
            assert answer.status == 200


async def test_strangers_of_all_addresses_get_a_share_and_users_the_rest(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = api.app.state.connection_limits
    monkeypatch.setattr(limits, "total", 40)
    async with RawConnection(api.url) as mine:
        assert await mine.ask(get("/agent/me", **bearer(person)))
        for number in range(10):
            async with connections(api.url, 7, f"127.9.9.{number + 1}"):
                await wait_until(lambda: len(limits._anonymous) <= 10)
        answer = await mine.ask(get("/agent/me", **bearer(person)))
        assert answer is not None
        assert answer.status == 200


async def test_a_proxy_may_hold_any_number_of_connections(api: Api) -> None:
    async with connections(api.url, 2 * PER_ADDRESS, "127.0.1.1") as opened:
        assert all([await is_open(connection) for connection in opened])


# --- wrong tokens ---


async def statuses(url: str, source: str, count: int, *, token: str = "agt_wrong", **more: str) -> list[int]:
    found = []
    for number in range(count):
        async with RawConnection(url, source) as connection:
            answer = await connection.ask(get("/agent/me", Authorization=f"Bearer {token}{number}", **more))
            assert answer is not None
            found.append(answer.status)
    return found


async def test_an_address_that_tries_tokens_has_to_wait_and_others_do_not(
    api: Api, source: str, person: Person
) -> None:
    assert await statuses(api.url, source, BURST + 5) == [401] * BURST + [429] * 5
    async with RawConnection(api.url, source) as connection:
        answer = await connection.ask(get("/openapi.json"))
        assert answer is not None
        assert (answer.status, int(answer.headers["retry-after"]) > 0) == (429, True)
        answer = await connection.ask(LIVE)
        assert answer is not None
        assert answer.status == 200
        # A token that was seen to be valid is not held up by what others at the address do.
        answer = await connection.ask(get("/agent/me", **bearer(person)))
        assert answer is not None
        assert answer.status == 200
        # One that was not seen before is only late.
        newcomer = await api.person()
        answer = await connection.ask(get("/agent/me", **bearer(newcomer)))
        assert answer is not None
        assert answer.status == 200
    # Neither is another address, nor a new token there.
    stranger = await api.person()
    assert (await stranger.http.get("/agent/me")).status_code == 200


@pytest.mark.slow
async def test_valid_tokens_take_nothing_of_what_an_address_may_ask(api: Api, source: str) -> None:
    people = [await api.person() for _ in range(BURST + 5)]
    for person in people:
        async with RawConnection(api.url, source) as connection:
            answer = await connection.ask(get("/agent/me", **bearer(person)))
            assert answer is not None
            assert answer.status == 200


async def test_an_address_is_what_a_trusted_proxy_says_and_nobody_else(api: Api, source: str) -> None:
    spoofed = [await statuses(api.url, source, 1, X_Forwarded_For=f"10.0.0.{i}") for i in range(BURST + 2)]
    assert spoofed[-1] == [429]
    by_proxy = [await statuses(api.url, "127.0.1.9", 1, X_Forwarded_For=f"10.0.1.{i}") for i in range(BURST + 2)]
    assert by_proxy[-1] == [401]
    one_client = await statuses(api.url, "127.0.1.9", BURST + 2, X_Forwarded_For="6.6.6.6, 10.0.2.1")
    assert one_client[-1] == 429


async def test_a_wrong_token_that_is_sent_again_is_not_looked_up_again(
    api: Api, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []
    users = api.resources.store.users
    look_up = users.caller_of

    async def counted(digest: str) -> Any:
        looked_up.append(digest)
        return await look_up(digest)

    monkeypatch.setattr(users, "caller_of", counted)
    async with RawConnection(api.url, source) as connection:
        for _ in range(3):
            answer = await connection.ask(get("/agent/me", Authorization="Bearer agt_again"))
            assert answer is not None
            assert answer.status == 401
    assert looked_up == [token_digest("agt_again")]


async def test_an_allowance_comes_back_with_time_and_forgets_whom_it_has_not_seen_for_long() -> None:
    allowance = gate.Allowance(per_second=2.0, burst=4)
    for _ in range(4):
        assert allowance.wait("a", 100.0) == 0.0
        allowance.take("a", 100.0)
    assert allowance.wait("a", 100.0) == pytest.approx(0.5)
    assert allowance.wait("b", 100.0) == 0.0
    assert allowance.wait("a", 100.5) == 0.0
    for number in range(gate.ADDRESSES_MAX):
        allowance.take(f"other {number}", 100.0)
    assert len(allowance._full_at) == gate.ADDRESSES_MAX
    assert allowance.wait("a", 100.0) == 0.0


# --- however the API is started ---

ENDING_SECONDS = 40.0
UVICORN = ("uvicorn", "app.main:create_app", "--factory", "--timeout-graceful-shutdown", "1")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(UVICORN, id="uvicorn", marks=pytest.mark.slow),
        pytest.param(("standalone",), id="standalone", marks=pytest.mark.slow),
        pytest.param(("agentctl", "up", "--json"), id="agentctl up", marks=pytest.mark.slow),
    ],
)
async def test_the_limits_hold_however_the_api_is_started(
    program: tuple[str, ...], redis: str, sqlite_database: str, tmp_path: Path
) -> None:
    port = own_port()
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": redis,
        "DATABASE_URL": sqlite_database,
        "WORKSPACE_DIR": str(tmp_path / "workspaces"),
        "LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *program, "--port", str(port)),
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    async def answers() -> bool:
        assert process.returncode is None, "it ended instead of answering"
        with suppress(OSError):
            async with RawConnection(url) as connection:
                return await connection.ask(LIVE) is not None
        return False

    try:
        await wait_until(answers, timeout=60)
        async with RawConnection(url) as connection:
            refused(await connection.ask(padded(protocol.HEAD_MAX_BYTES + 1)), 431)
        process.terminate()
        async with asyncio.timeout(ENDING_SECONDS):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
