"""The proxy that a sandboxed program goes through: what it lets out, and what it does not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any

import pytest

from backplane.addresses import Address
from backplane.egress import OutsidePolicy
from worker.egress_proxy import EgressProxy, ProxyLimits

LIMITS = ProxyLimits(connections=2, bytes=100_000, connect_seconds=5, idle_seconds=10)


@asynccontextmanager
async def listening(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[int]:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


class Proxy:
    """A proxy on a socket of its own, and what it refused."""

    def __init__(self, port: int, refused: list[str]) -> None:
        self.port = port
        self.refused = refused

    async def say(self, *parts: bytes) -> bytes:
        """All that comes back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"".join(parts))
        writer.write_eof()
        said = await reader.read()
        writer.close()
        return said


@asynccontextmanager
async def proxy(
    *hosts: str, limits: ProxyLimits = LIMITS, resolved: str = "127.0.0.1", allow_private: bool = True
) -> AsyncIterator[Proxy]:
    async def resolve(host: str, port: int) -> list[Address]:
        return [ip_address(resolved)]

    refused: list[str] = []
    policy = OutsidePolicy(hosts, allow_private=allow_private, resolver=resolve)
    async with listening(EgressProxy(policy, limits, refused.append).serve) as port:
        yield Proxy(port, refused)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says what it heard, once all was said."""
    heard = await reader.read()
    writer.write(heard)
    await writer.drain()
    writer.close()


async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says the head of the request that it got."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + head)
    await writer.drain()
    writer.close()


async def test_a_tunnel_carries_what_it_is_given_both_ways() -> None:
    async with listening(echo) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(b"CONNECT site.test:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port, b"hello" * 1000)
    assert said == b"HTTP/1.1 200 Connection established\r\n\r\n" + b"hello" * 1000


async def test_a_plain_request_goes_on_without_what_was_meant_for_the_proxy() -> None:
    async with listening(one_answer) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(
            b"GET http://site.test:%d/a?b=c HTTP/1.1\r\nHost: other.test\r\nProxy-Connection: keep-alive\r\n"
            b"Proxy-Authorization: Basic eA==\r\nAccept: */*\r\n\r\n" % port
        )
    head = said.partition(b"\r\n\r\n")[2]
    expected = b"GET /a?b=c HTTP/1.1\r\nHost: site.test:%d\r\nAccept: */*\r\nConnection: close\r\n\r\n" % port
    assert head == expected


async def everything(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers at once, then sends back all that still comes."""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    with suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            while piece := await reader.read(4096):
                writer.write(piece)
                await writer.drain()
    writer.close()


REQUEST = b"POST http://site.test:%d/ HTTP/1.1\r\nHost: site.test\r\n"
ANOTHER = b"GET /secret HTTP/1.1\r\nHost: internal.test\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "body", "arrives"),
    [
        (b"", b"", b""),
        (b"Content-Length: 5\r\n", b"hello", b"hello"),
        (b"Content-Length: 0\r\n", b"", b""),
        (b"Transfer-Encoding: chunked\r\n", b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    ],
)
async def test_a_second_request_on_a_connection_reaches_nobody(framing: bytes, body: bytes, arrives: bytes) -> None:
    async with listening(everything) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(REQUEST % port, framing, b"\r\n", body, ANOTHER)
    heard = said.partition(b"\r\n\r\n")[2]
    assert heard.partition(b"\r\n\r\n")[2] == arrives
    assert b"internal.test" not in said


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length : 5\r\n",
        b"X: y\r\n Content-Length: 5\r\n",
        b"X: y\nHost: internal.test\r\n",
        b"X: y\rHost: internal.test\r\n",
        b"X\0: y\r\n",
        b"no colon\r\n",
    ],
)
async def test_a_head_that_leaves_the_end_of_the_body_in_doubt_is_refused(framing: bytes) -> None:
    async with listening(everything) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(REQUEST % port, framing, b"\r\n", b"hello")
    assert said.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("body", [b"x\r\n", b"-5\r\nhello\r\n", b"5\r\nhello!\r\n", b"5" + b" " * 300 + b"\r\n"])
async def test_a_body_that_is_not_chunked_as_announced_ends_the_connection(body: bytes) -> None:
    async with listening(everything) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(REQUEST % port, b"Transfer-Encoding: chunked\r\n\r\n", body, ANOTHER)
    assert b"internal.test" not in said
    assert any("not chunked" in line for line in through.refused)


@pytest.mark.parametrize(
    "request_line",
    [
        b"CONNECT evil.test:443 HTTP/1.1",
        b"CONNECT site.test:22 HTTP/1.1",
        b"CONNECT 127.0.0.1:443 HTTP/1.1",
        b"CONNECT 0x7f.1:443 HTTP/1.1",
        b"GET http://evil.test/ HTTP/1.1",
        b"GET http://user@site.test/ HTTP/1.1",
        b"GET http://169.254.169.254/latest/meta-data HTTP/1.1",
    ],
)
async def test_what_the_operator_did_not_name_is_refused(request_line: bytes) -> None:
    async with proxy("site.test") as through:
        said = await through.say(request_line, b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 403 ")
    assert through.refused


async def test_a_name_that_leads_to_a_private_address_is_refused() -> None:
    async with proxy("*", resolved="10.0.0.7", allow_private=False) as through:
        said = await through.say(b"CONNECT rebind.test:443 HTTP/1.1\r\n\r\n")
    assert (said[:13], b"not public" in said) == (b"HTTP/1.1 403 ", True)


@pytest.mark.parametrize(
    "head",
    [
        b"hello",
        b"GET / HTTP/1.1",
        b"CONNECT site.test HTTP/1.1",
        b"GET https://site.test/ HTTP/1.1",
        b"GE\xffT http://site.test/ HTTP/1.1",
        b"GET http://s\xc3\xa4.test/ HTTP/1.1",
    ],
)
async def test_what_is_no_proxy_request_is_refused(head: bytes) -> None:
    async with proxy("site.test") as through:
        said = await through.say(head, b"\r\n\r\n")
    assert said[:9] == b"HTTP/1.1 "
    assert said[9:12] in (b"400", b"403")


async def test_a_head_without_end_is_cut_off() -> None:
    async with proxy("site.test") as through:
        # It is answered with 431, if it listens: whoever still speaks when the other end is closed hears nothing.
        with suppress(ConnectionResetError):
            await through.say(b"GET http://site.test/ HTTP/1.1\r\n", b"a: b\r\n" * 30_000)
    assert "the head has more than 65,536 bytes" in through.refused[0]


async def test_the_bytes_of_all_connections_together_are_bounded() -> None:
    small = ProxyLimits(connections=2, bytes=10_000, connect_seconds=5, idle_seconds=10)
    async with listening(echo) as port, proxy(f"site.test:{port}", limits=small) as through:
        connect = b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port
        assert (await through.say(connect, b"x" * 4_000)).endswith(b"x" * 4_000)
        assert (await through.say(connect, b"x" * 4_000)).count(b"x") < 4_000
    assert "more than 10,000 bytes" in through.refused[0]


async def test_connections_at_once_are_bounded() -> None:
    begun = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()
        writer.close()

    one = ProxyLimits(connections=1, bytes=10_000, connect_seconds=5, idle_seconds=10)
    async with listening(wait) as port, proxy(f"site.test:{port}", limits=one) as through:
        connect = b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port
        _, first = await asyncio.open_connection("127.0.0.1", through.port)
        first.write(connect)
        await begun.wait()
        assert (await through.say(connect)).startswith(b"HTTP/1.1 503 ")
        first.close()


async def test_silence_ends_a_connection() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    short = ProxyLimits(connections=2, bytes=10_000, connect_seconds=5, idle_seconds=0.05)
    async with listening(silent) as port, proxy(f"site.test:{port}", limits=short) as through:
        reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
        writer.write(b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port)
        assert await reader.read() == b"HTTP/1.1 200 Connection established\r\n\r\n"
        writer.close()


async def test_a_server_that_is_not_there_is_a_bad_gateway() -> None:
    async with proxy("site.test:9") as through:
        assert (await through.say(b"CONNECT site.test:9 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
