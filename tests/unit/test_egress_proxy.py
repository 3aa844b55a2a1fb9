"""The proxy that a sandboxed program goes through: what it lets out, and what it does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any

import pytest

from backplane.net.addresses import Address
from backplane.net.egress import OutsidePolicy
from tests.waiting import wait_until
from worker.browser import egress_proxy
from worker.browser.client_hello import HELLO_MAX_BYTES
from worker.browser.egress_proxy import EgressProxy, ProxyLimits

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
    """Send back all that was received, at its end."""
    received = await reader.read()
    writer.write(received)
    await writer.drain()
    writer.close()


async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says the head of the request that it got."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + head)
    await writer.drain()
    writer.close()


ANOTHER = b"GET /secret HTTP/1.1\r\nHost: internal.test\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def test_a_tunnel_carries_what_it_is_given_both_ways() -> None:
    async with listening(echo) as port, proxy(f"site.test:{port}") as through:
        sent = client_hello("site.test") + b"hello" * 1000
        said = await through.say(b"CONNECT site.test:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port, sent)
    assert said == CONNECTED + sent


# --- what a tunnel carries ---


def client_hello(name: str | None) -> bytes:
    """As OpenSSL writes it; without a name where there is none to be written."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def records(message: bytes, size: int) -> bytes:
    """The message of a handshake in records of so many bytes."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def hello_of(*extensions: tuple[int, bytes], session: bytes = b"", more: bytes = b"") -> bytes:
    """A ClientHello with these extensions, in one record."""
    written = b"".join(kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for kind, value in extensions)
    body = b"\x03\x03" + b"r" * 32 + bytes([len(session)]) + session + b"\x00\x02\x13\x01\x01\x00"
    body += len(written).to_bytes(2, "big") + written + more
    return records(b"\x01" + len(body).to_bytes(3, "big") + body, 1 << 14)


def server_name(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    written = b"".join(bytes([kind]) + len(name).to_bytes(2, "big") + name for name in names)
    return 0, len(written).to_bytes(2, "big") + written


SITE = server_name(b"site.test")
ECH = (0xFE0D, b"\x00" + b"e" * 200)
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02"

TAKEN = {
    "as OpenSSL writes it": client_hello("site.test"),
    "in capital letters and with a dot": hello_of(server_name(b"SITE.test.")),
    "with an encrypted name beside it, as browsers send it": hello_of(ECH, SITE),
    "in records of one byte": records(client_hello("site.test")[5:], 1),
    "in records of 100 bytes": records(client_hello("site.test")[5:], 100),
    "as large as it may be": hello_of(SITE, (21, b"\0" * (HELLO_MAX_BYTES - 69))),
    "with data that follows at once": client_hello("site.test") + b"\x14\x03\x03\x00\x01\x01" + b"early data",
}


@pytest.mark.parametrize("sent", TAKEN.values(), ids=TAKEN)
async def test_tls_that_names_the_host_of_its_tunnel_passes_as_it_is(sent: bytes) -> None:
    async with listening(echo) as port, proxy(f"site.test:{port}") as through:
        assert await through.say(b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port, sent) == CONNECTED + sent
    assert through.refused == []


REFUSED = {
    "another host": (client_hello("internal.test"), "names another host in TLS: internal.test"),
    "a host below it": (client_hello("a.site.test"), "names another host"),
    "an address": (hello_of(server_name(b"10.0.0.7")), "names another host"),
    "no host": (client_hello(None), "does not name its host"),
    "no extensions": (
        records(b"\x01\x00\x00\x29\x03\x03" + b"r" * 32 + b"\x00\x00\x02\x13\x01\x01\x00", 99),
        "does not name its host",
    ),
    "only an encrypted name": (hello_of(ECH), "does not name its host"),
    "the name of whoever decrypts it": (hello_of(ECH, server_name(b"cdn.test")), "names another host"),
    "two hosts": (hello_of(server_name(b"site.test", b"internal.test")), "not understood"),
    "its host twice": (hello_of(SITE, server_name(b"internal.test")), "names the server twice"),
    "a name of another kind": (hello_of(server_name(b"site.test", kind=1)), "not understood"),
    "an empty name": (hello_of(server_name(b"")), "names none"),
    "a name that is none": (hello_of(server_name(b"site.test\0.internal.test")), "names none"),
    "a name beyond ASCII": (hello_of(server_name("s\u00efte.test".encode())), "not understood"),
    "something behind its extensions": (hello_of(SITE, more=b"x"), "not understood"),
    "more than it may have": (hello_of(SITE, (21, b"\0" * (HELLO_MAX_BYTES - 68))), "more than 16,384 bytes"),
    "records without end": (records(b"\x01\x00\x30\x00" + b"\0" * 5_500, 1), "more than 32,768 bytes"),
    "another message first": (records(b"\x02\x00\x00\x00", 99), "begins with another message"),
    "another message with it": (records(hello_of(SITE)[5:] + b"\x01", 999), "another message follows"),
    "another record in it": (client_hello("site.test")[:5][:3] + b"\x00\x01\x01" + b"\x17", "another kind"),
}


@pytest.mark.parametrize(("sent", "why"), REFUSED.values(), ids=REFUSED)
async def test_tls_that_does_not_name_the_host_of_its_tunnel_reaches_nobody(sent: bytes, why: str) -> None:
    reached: list[bytes] = []
    async with listening(received_in(reached)) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port, sent)
    assert said.startswith(CONNECTED + TLS_ALERT)
    assert why in through.refused[0]
    assert b"".join(reached) == b""


def received_in(reached: list[bytes]) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            reached.append(await reader.read())
        writer.close()

    return hear


@pytest.mark.parametrize(
    "sent",
    [
        ANOTHER,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x02\x00\x00\x05hello",
        b"\x16\x03\x01\x00\x00hello",
        b"\x16\x03\x01\xff\xffhello",
        b"\x80\x2e\x01\x03\x01",
    ],
)
async def test_what_is_not_tls_is_refused_in_a_tunnel_with_what_to_do(sent: bytes) -> None:
    reached: list[bytes] = []
    async with listening(received_in(reached)) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port, sent)
    assert said.startswith(CONNECTED + b"HTTP/1.1 403 ")
    assert b"plain HTTP is sent to the proxy without a tunnel" in said
    assert b"".join(reached) == b""


@pytest.mark.parametrize(("name", "passes"), [(None, True), (b"127.0.0.1", True), (b"site.test", False)])
async def test_a_tunnel_to_an_address_names_no_host_or_that_address(name: bytes | None, passes: bool) -> None:
    sent = hello_of(server_name(name)) if name else hello_of()
    async with listening(echo) as port, proxy(f"127.0.0.1:{port}") as through:
        said = await through.say(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port, sent)
    assert (said == CONNECTED + sent) is passes


async def test_tls_that_comes_byte_by_byte_passes_and_one_that_stops_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = client_hello("site.test")
    async with listening(echo) as port, proxy(f"site.test:{port}") as through:
        for stops in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
            writer.write(b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port)
            assert await reader.readexactly(len(CONNECTED)) == CONNECTED
            if stops:
                writer.write(sent[:-1])
                assert await reader.read() == b""
            else:
                for byte in sent:
                    writer.write(bytes([byte]))
                    await writer.drain()
                writer.write_eof()
                assert await reader.read() == sent
                monkeypatch.setattr(egress_proxy, "HEAD_SECONDS", 0.1)
            writer.close()


async def test_a_server_that_speaks_first_is_not_passed_on_before_tls_has_named_it() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.test\r\n")
        await reader.read()
        writer.close()

    async with listening(speak) as port, proxy(f"site.test:{port}") as through:
        said = await through.say(b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port, b"EHLO x\r\n")
    assert b"220" not in said


# --- requests without a tunnel ---


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
    received = said.partition(b"\r\n\r\n")[2]
    assert received.partition(b"\r\n\r\n")[2] == arrives
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
        # It is answered with 431, if it listens: a client that still sends when the other end is closed receives
        # nothing.
        with suppress(ConnectionResetError):
            await through.say(b"GET http://site.test/ HTTP/1.1\r\n", b"a: b\r\n" * 30_000)
    assert "the head has more than 65,536 bytes" in through.refused[0]


async def test_the_bytes_of_all_connections_together_are_bounded() -> None:
    small = ProxyLimits(connections=2, bytes=10_000, connect_seconds=5, idle_seconds=10)
    async with listening(echo) as port, proxy(f"site.test:{port}", limits=small) as through:
        connect = b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port
        hello = hello_of(SITE)
        assert (await through.say(connect, hello, b"x" * 4_000)).endswith(b"x" * 4_000)
        assert (await through.say(connect, hello, b"x" * 4_000)).count(b"x") < 4_000
    assert "more than 10,000 bytes" in through.refused[0]


@pytest.mark.parametrize("first", [b"", b"CONNECT site.test:%d HTTP/1.1\r\n\r\n"], ids=["silent", "a tunnel"])
async def test_connections_at_once_are_bounded_from_when_they_are_opened(first: bytes) -> None:
    one = ProxyLimits(connections=1, bytes=10_000, connect_seconds=5, idle_seconds=10)
    reached: list[bytes] = []
    async with listening(received_in(reached)) as port, proxy(f"site.test:{port}", limits=one) as through:
        reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
        writer.write(first % port if first else b"")
        if first:
            await reader.readexactly(len(CONNECTED))
        second, unused = await asyncio.open_connection("127.0.0.1", through.port)
        assert (await second.read()).startswith(b"HTTP/1.1 503 ")
        unused.close()
        writer.close()
        await wait_until(lambda: free(through, port))


async def free(through: Proxy, port: int) -> bool:
    with suppress(ConnectionError):
        sent = b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port + hello_of(SITE)
        return (await through.say(sent)).startswith(CONNECTED)
    return False


async def test_silence_ends_a_connection() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    short = ProxyLimits(connections=2, bytes=10_000, connect_seconds=5, idle_seconds=0.05)
    async with listening(silent) as port, proxy(f"site.test:{port}", limits=short) as through:
        reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
        writer.write(b"CONNECT site.test:%d HTTP/1.1\r\n\r\n" % port + hello_of(SITE))
        assert await reader.read() == CONNECTED
        writer.close()


async def test_a_server_that_is_not_there_is_a_bad_gateway() -> None:
    async with proxy("site.test:9") as through:
        assert (await through.say(b"CONNECT site.test:9 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
