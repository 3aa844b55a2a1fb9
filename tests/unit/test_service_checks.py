"""Checks of services against servers on real ports: that answer, answer wrongly, slowly, for ever, or not at all."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest

from backplane.domain.services import CheckKind, CheckResult, HealthCheck, ServiceSpec
from backplane.net.addresses import Address
from controller.services.checks import ServiceChecker, may_be_asked
from tests.ports import own_port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SHORT = 2.0
"""Long enough to connect in on a busy machine: a check that ends before that leaves its socket to the collector."""
LONG = 20.0
"""More than a busy machine takes to answer itself."""


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()


def spec_of(port: int, kind: CheckKind = CheckKind.HTTP, **check: object) -> ServiceSpec:
    return ServiceSpec(port=port, check=HealthCheck(kind=kind, **{"timeout_seconds": LONG, **check}))  # type: ignore[arg-type]


async def checked(spec: ServiceSpec, **options: object) -> CheckResult:
    checker = ServiceChecker(**options)  # type: ignore[arg-type]
    try:
        return await checker.check(spec)
    finally:
        await checker.close()


def answering(head: str, body: bytes = b"") -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return serve


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A header that has no end, a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"-ERR unknown command\r\n\r\n")
    await writer.drain()
    await reader.read()


OK = "HTTP/1.1 200 OK\r\nContent-Length: 0"
HTTP: dict[str, tuple[Serve, str]] = {
    "the expected status": (answering(OK), ""),
    "another status": (answering("HTTP/1.1 503 No\r\nContent-Length: 0"), "it answered 503, not 200"),
    "a redirect is not followed": (answering("HTTP/1.1 302 No\r\nLocation: http://127.0.0.1:1/"), "it answered 302"),
    "a body without an end": (endless_body, ""),
    "a connection, and no word": (never, "no answer within 2 s"),
    "a header without an end": (drip, "no answer within 2 s"),
    "a server that closes": (hang_up, "closed the connection"),
    "something else than HTTP": (garbage, "does not speak HTTP"),
}


SLOW = {case for case, (_, error) in HTTP.items() if "no answer" in error}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in HTTP])
async def test_a_check_by_http_says_what_is_wrong_and_ends_in_time(case: str) -> None:
    serve, error = HTTP[case]
    async with listening(serve) as port:
        began = time.monotonic()
        result = await checked(spec_of(port, timeout_seconds=SHORT if "no answer" in error else LONG))
    assert error in result.error
    assert bool(result.error) == bool(error)
    assert time.monotonic() - began < LONG
    assert (result.latency_ms is None) == ("no answer" in error or "connection" in error or "speak" in error)


async def test_a_check_by_http_asks_for_the_path_and_the_expected_status() -> None:
    asked = list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")

    async with listening(serve) as port:
        assert (await checked(spec_of(port, path="/a/health?full=1", expected_status=404))).error == ""
    assert asked[0].startswith(b"GET /a/health?full=1 HTTP/1.1\r\n")


async def test_a_check_by_tcp_needs_no_word_of_the_server() -> None:
    async with listening(never) as port:
        assert (await checked(spec_of(port, CheckKind.TCP))).error == ""


@pytest.mark.parametrize("kind", [CheckKind.TCP, CheckKind.HTTP])
async def test_a_port_on_which_nothing_listens_is_named_so(kind: CheckKind) -> None:
    assert (await checked(spec_of(own_port(), kind))).error == "nothing listens on the port"


@pytest.mark.parametrize("kind", [CheckKind.TCP, CheckKind.HTTP])
async def test_a_name_server_that_does_not_answer_ends_with_the_check(kind: CheckKind) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        await asyncio.Event().wait()
        return []

    spec = replace(spec_of(80, kind, timeout_seconds=0.1), host="slow.example.org")
    assert (await checked(spec, resolver=resolver)).error == "no answer within 0.1 s"


@pytest.mark.parametrize("kind", [CheckKind.TCP, CheckKind.HTTP])
async def test_a_name_that_leads_to_a_metadata_server_is_not_connected_to(kind: CheckKind) -> None:
    async with listening(answering(OK)) as port:

        async def resolver(host: str, port: int) -> list[Address]:
            return [ip_address("127.0.0.1"), ip_address("169.254.169.254")]

        result = await checked(replace(spec_of(port, kind), host="rebind.example.org"), resolver=resolver)
    assert "checks do not go there" in result.error


@pytest.mark.parametrize(
    ("address", "may"),
    [
        *(("127.0.0.1", True), ("10.0.0.10", True), ("fd00::10", True), ("::1", True), ("93.184.216.34", True)),
        *(("169.254.169.254", False), ("fe80::1", False), ("224.0.0.1", False), ("0.0.0.0", False), ("::", False)),
        *(("::ffff:169.254.169.254", False), ("fd00:ec2::254", False), ("255.255.255.255", False)),
    ],
)
def test_addresses_of_the_network_inside_may_be_asked_and_link_local_ones_not(address: str, may: bool) -> None:
    assert may_be_asked(ip_address(address)) is may


async def test_a_name_without_an_address_is_said_in_words() -> None:
    async def unknown(host: str, port: int) -> list[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for kind in CheckKind:
        result = await checked(replace(spec_of(80, kind), host="nowhere.invalid"), resolver=unknown)
        assert result.error == "its host's name has no address"
