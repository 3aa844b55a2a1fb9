"""Requests to real servers that mean no good. Hosts are names that a played resolver knows."""

import asyncio
import gzip
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
import trustme

from backplane.errors import Forbidden, InvalidInput, InvalidPlan, QuotaExceeded, Superseded, TooLarge
from backplane.net.addresses import Address
from backplane.net.egress import OutsidePolicy, OutsideRefused
from tests.integration.tools.site import Site, site_on
from tests.tool_bench import MIB, Bench
from worker.tools.base import Effect, Risk
from worker.tools.http_fetch import OutsideLimits, http_tools
from worker.tools.registry import builtin_tools

LIMITS = OutsideLimits(max_bytes=MIB, timeout_seconds=20.0, redirects=3)
AT_HOME = {"a.example": "127.0.0.1", "b.example": "127.0.0.1"}


async def resolver(host: str, port: int) -> Sequence[Address]:
    known = {**AT_HOME, "metadata.example": "169.254.169.254", "127.0.0.1": "127.0.0.1"}
    try:
        return [ip_address(known.get(host, host))]
    except ValueError:
        raise OSError("no such name") from None


def reaching(
    bench: Bench, *hosts: str, limits: OutsideLimits = LIMITS, tls: ssl.SSLContext | None = None, private: bool = True
) -> Bench:
    policy = OutsidePolicy(hosts, allow_private=private, resolver=resolver, tls=tls)
    bench.tools = builtin_tools().with_tools(http_tools(policy, limits))
    return bench


@pytest.fixture
def web(bench: Bench, site: Site) -> Bench:
    """It reaches the site as a.example and b.example."""
    return reaching(bench, *(f"{host}:{site.port}" for host in AT_HOME))


def endless(head: bytes, piece: bytes) -> Any:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()

    return answer


class GivenSecrets:
    """Fills in TOKEN for a.example."""

    def __init__(self, value: str = "the-very-secret") -> None:
        self.value = value

    async def fill(self, text: str, *, host: str | None = None) -> str:
        if "${secrets.TOKEN}" in text and not (host or "").startswith("a.example"):
            raise Forbidden("not for this host")
        return text.replace("${secrets.TOKEN}", self.value)


# --- what it gives ---


async def test_a_page_is_printed_with_its_status_and_address(web: Bench, site: Site) -> None:
    site.says("/", "grüße\n".encode("latin-1"), "Content-Type: text/plain; charset=latin-1")
    result = await web.step("http_fetch", url=site.url("/", "a.example"))
    assert (result.exit_code, result.error) == (0, None)
    assert web.said.decode() == (f"200 OK\nGET http://a.example:{site.port}/\ntext/plain; charset=latin-1\n\ngrüße\n")
    assert web.changing == []


async def test_of_html_a_reader_sees_the_text_and_where_links_lead(web: Bench, site: Site) -> None:
    page = b"<html><script>evil()</script><h1>Title</h1><p>See <a href='/x'>this</a>.</p><li>one</html>"
    site.says("/", page, "Content-Type: text/html")
    await web.step("http_fetch", url=site.url("/", "a.example"))
    assert web.said.decode().endswith("\n\nTitle\nSee this (/x).\n- one\n")


async def test_a_body_is_saved_as_a_file(web: Bench, site: Site) -> None:
    body = bytes(range(256)) * 1000
    site.says("/data", body)
    result = await web.step("http_fetch", url=site.url("/data", "a.example"), save_as="in/data.bin")
    assert result.files_changed == ("in/data.bin",)
    assert (await web.files()) == {"in/data.bin": body}
    assert web.changing == ["now"]


@pytest.mark.parametrize(("status", "retryable"), [("404 Not Found", False), ("503 Busy", True), ("429 Slow", True)])
async def test_another_status_than_success_fails_the_step_and_writes_nothing(
    web: Bench, site: Site, status: str, retryable: bool
) -> None:
    site.says("/", b"the reason\n", status=status)
    result = await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
    assert result.error is not None
    assert (result.exit_code, result.error.code, result.error.retryable) == (1, "outside_status", retryable)
    assert b"the reason" in web.said
    assert await web.files() == {}


async def test_head_asks_for_no_body(web: Bench, site: Site) -> None:
    site.says("/", b"", "Content-Encoding: gzip")
    result = await web.step("http_fetch", url=site.url("/", "a.example"), method="HEAD")
    assert (result.exit_code, site.asked[0].method) == (0, "HEAD")


async def test_a_request_sends_its_body_and_headers(web: Bench, site: Site) -> None:
    site.says("/", b"made", status="201 Created")
    headers = {"Content-Type": "application/json", "User-Agent": "mine"}
    result = await web.step(
        "http_request", url=site.url("/", "a.example"), method="POST", headers=headers, body='{"ä": 1}'
    )
    asked = site.asked[0]
    assert (result.exit_code, asked.method, asked.body.decode()) == (0, "POST", '{"ä": 1}')
    assert (asked.headers["content-type"], asked.headers["user-agent"]) == ("application/json", "mine")
    assert web.changing == ["now"]


async def test_a_request_is_announced_before_it_is_sent(web: Bench, site: Site) -> None:
    async def superseded() -> None:
        raise Superseded("another worker holds the run")

    site.says("/", b"")
    web.context = replace(web.context, about_to_change=superseded)
    with pytest.raises(Superseded):
        await web.step("http_request", url=site.url("/", "a.example"), method="DELETE")
    assert site.asked == []


def test_reading_and_changing_are_tools_of_different_risk() -> None:
    fetch, request = http_tools(OutsidePolicy([]), LIMITS)
    assert (fetch.risk, fetch.repeatable, request.risk, request.repeatable) == (Risk.MEDIUM, True, Risk.HIGH, False)


# --- where it goes ---


async def test_without_hosts_it_says_what_to_set(bench: Bench) -> None:
    with pytest.raises(OutsideRefused, match="OUTSIDE_HOSTS"):
        await reaching(bench).step("http_fetch", url="https://example.org/")


@pytest.mark.parametrize("to", ["http://127.0.0.1:{port}/", "http://169.254.169.254/", "http://metadata.example/"])
async def test_a_redirect_to_where_it_may_not_go_is_not_followed(bench: Bench, site: Site, to: str) -> None:
    web = reaching(bench, f"a.example:{site.port}", "*")
    site.redirects("/", to.format(port=site.port))
    with pytest.raises(OutsideRefused):
        await web.step("http_fetch", url=site.url("/", "a.example"))
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    "to", ["http://a.example@evil.example/", "file:///etc/passwd", "javascript:alert(1)", "http://2130706433/"]
)
async def test_a_redirect_to_what_is_no_plain_url_is_refused(web: Bench, site: Site, to: str) -> None:
    site.redirects("/", to)
    try:
        result = await web.step("http_fetch", url=site.url("/", "a.example"))
    except (InvalidInput, OutsideRefused):
        return
    assert result.error is not None
    assert len(site.asked) == 1


async def test_redirects_are_followed_to_the_limit_and_no_further(web: Bench, site: Site) -> None:
    for number in range(4):
        site.redirects(f"/{number}", f"/{number + 1}")
    site.says("/4", b"there")
    assert (await web.step("http_fetch", url=site.url("/1", "a.example"))).exit_code == 0
    assert web.said.decode().startswith(f"200 OK\nGET http://a.example:{site.port}/4\n")
    result = await web.step("http_fetch", url=site.url("/0", "a.example"))
    assert result.error is not None
    assert result.error.code == "outside_redirects"


@pytest.mark.parametrize(("status", "method", "body"), [("303 See Other", "GET", b""), ("307 Again", "POST", b"x")])
async def test_a_redirected_request_keeps_its_method_only_where_it_must(
    web: Bench, site: Site, status: str, method: str, body: bytes
) -> None:
    site.redirects("/", "/next", status)
    site.says("/next", b"")
    await web.step("http_request", url=site.url("/", "a.example"), method="POST", body="x")
    assert (site.asked[1].method, site.asked[1].body) == (method, body)


# --- secrets ---


async def test_a_secret_goes_to_its_host_and_not_along_with_a_redirect_to_another(web: Bench, site: Site) -> None:
    web.context = replace(web.context, secrets=GivenSecrets())
    site.redirects("/", site.url("/b", "b.example"))
    site.redirects("/b", site.url("/c", "a.example"))
    site.says("/c", b"")
    headers = {"X-Key": "Bearer ${secrets.TOKEN}", "Authorization": "Basic abc", "X-Plain": "1"}
    await web.step("http_fetch", url=site.url("/", "a.example"), headers=headers)
    assert [asked.headers.get("x-key") for asked in site.asked] == ["Bearer the-very-secret", None, None]
    assert [asked.headers.get("authorization") for asked in site.asked] == ["Basic abc", None, None]
    assert [asked.headers.get("x-plain") for asked in site.asked] == ["1", "1", "1"]


async def test_a_secret_stays_with_its_host_along_a_redirect_within_it(web: Bench, site: Site) -> None:
    web.context = replace(web.context, secrets=GivenSecrets())
    site.redirects("/", "/next")
    site.says("/next", b"")
    await web.step("http_fetch", url=site.url("/", "a.example"), headers={"X-Key": "${secrets.TOKEN}"})
    assert site.asked[1].headers["x-key"] == "the-very-secret"


async def test_a_secret_is_not_sent_to_a_host_that_it_is_not_for(web: Bench, site: Site) -> None:
    web.context = replace(web.context, secrets=GivenSecrets())
    with pytest.raises(Forbidden):
        await web.step("http_fetch", url=site.url("/", "b.example"), headers={"X-Key": "${secrets.TOKEN}"})
    assert site.asked == []


async def test_a_secret_goes_by_https_only_unless_private_hosts_are_allowed(bench: Bench, site: Site) -> None:
    web = reaching(bench, "a.example", private=False)
    with pytest.raises(InvalidInput, match="https"):
        await web.step("http_fetch", url="http://a.example/", headers={"X-Key": "${secrets.TOKEN}"})


@pytest.mark.parametrize("value", ["line\r\nX-Injected: 1", "naïve", "nul\0"])
async def test_a_secret_that_would_break_out_of_its_header_is_refused_without_showing_it(
    web: Bench, site: Site, value: str
) -> None:
    web.context = replace(web.context, secrets=GivenSecrets(value))
    with pytest.raises(InvalidInput) as raised:
        await web.step("http_fetch", url=site.url("/", "a.example"), headers={"X-Key": "${secrets.TOKEN}"})
    assert value not in str(raised.value)
    assert site.asked == []


# --- arguments ---


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("url", "http://a.example/?key=${secrets.TOKEN}"),
        ("url", "http://user:pw@a.example/"),
        ("url", "a.example"),
        ("headers", {"X-A": "1\r\nX-B: 2"}),
        ("headers", {"X-A\r\nX-B": "1"}),
        ("headers", {"X A": "1"}),
        ("headers", {"Host": "evil.example"}),
        ("headers", {"Content-Length": "5"}),
        ("headers", {"Transfer-Encoding": "chunked"}),
        ("headers", {"X-A": "1", "x-a": "2"}),
        ("headers", {"X-A": "${secrets.lower}"}),
        ("headers", {"X-A": "x" * 20_000}),
        ("headers", {f"X-{number}": "1" for number in range(51)}),
        ("method", "POST"),
        ("save_as", "../x"),
    ],
)
def test_arguments_that_cannot_be_are_refused_with_the_plan(argument: str, value: Any) -> None:
    tools = builtin_tools().with_tools(http_tools(OutsidePolicy([]), LIMITS))
    with pytest.raises(InvalidPlan):
        tools.resolve("http_fetch", {"url": "http://a.example/", argument: value}, field="plan.steps.0")


# --- what comes back is hostile ---


async def load_what_is_loaded_late(web: Bench, site: Site) -> None:
    """Fetch a page, so that modules that only a fetch needs do not count as memory of the next one."""
    site.says("/first", b"x", "Content-Type: text/plain")
    await web.step("http_fetch", url=site.url("/first", "a.example"))


@pytest.mark.parametrize("how", ["shown", "saved"])
async def test_a_body_without_end_is_cut_at_the_limit_in_bounded_memory(web: Bench, site: Site, how: str) -> None:
    await load_what_is_loaded_late(web, site)
    site.pages["/"] = endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", b"x" * 65536)
    tracemalloc.start()
    try:
        if how == "shown":
            await web.step("http_fetch", url=site.url("/", "a.example"))
            assert "cut here" in web.said.decode()
            assert len(web.said) < 70_000
        else:
            with pytest.raises(TooLarge, match="OUTSIDE_MAX_BYTES"):
                await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
            assert await web.files() == {}
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


async def test_what_is_saved_stays_within_the_workspaces_quota(web: Bench, site: Site) -> None:
    web.context = replace(web.context, quota=replace(web.context.quota, max_bytes=1000))
    site.says("/", b"x" * 1001)
    with pytest.raises(QuotaExceeded):
        await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
    assert await web.files() == {}


@pytest.mark.parametrize("how", ["shown", "saved"])
async def test_what_unpacks_to_a_thousand_times_its_size_is_cut_as_well(web: Bench, site: Site, how: str) -> None:
    # A member is packed 300 times faster than all of them.
    packed = gzip.compress((b"\0" if how == "saved" else b" ") * MIB) * 300
    await load_what_is_loaded_late(web, site)
    site.says("/", packed, "Content-Encoding: gzip", "Content-Type: text/plain")
    tracemalloc.start()
    try:
        if how == "shown":
            await web.step("http_fetch", url=site.url("/", "a.example"))
            assert len(web.said) < 70_000
        else:
            with pytest.raises(TooLarge):
                await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


async def test_gzip_is_unpacked_also_in_several_members(web: Bench, site: Site) -> None:
    site.says("/", gzip.compress(b"one ") + gzip.compress(b"two"), "Content-Encoding: gzip")
    await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
    assert await web.files() == {"a": b"one two"}


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", b"no gzip"), ("br", b"x"), ("gzip", gzip.compress(b"x" * 9999, mtime=0)[:-9]), ("zip", b"")],
)
async def test_a_body_that_is_not_packed_as_it_says_fails(web: Bench, site: Site, encoding: str, body: bytes) -> None:
    site.says("/", body, f"Content-Encoding: {encoding}")
    result = await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
    assert result.error is not None
    assert await web.files() == {}


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"x" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"x" * 1000),
        (b"", b"x" * 1000),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    ],
)
async def test_headers_without_end_are_given_up(bench: Bench, site: Site, head: bytes, piece: bytes) -> None:
    web = reaching(bench, f"a.example:{site.port}", limits=replace(LIMITS, timeout_seconds=1.0))
    site.pages["/"] = endless(head, piece)
    result = await web.step("http_fetch", url=site.url("/", "a.example"))
    assert result.error is not None
    assert result.error.retryable


async def test_an_answer_that_trickles_is_given_up_after_the_whole_time(bench: Bench, site: Site) -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    site.pages["/"] = trickle
    web = reaching(bench, f"a.example:{site.port}", limits=replace(LIMITS, timeout_seconds=0.3))
    result = await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
    assert result.error is not None
    assert (result.error.code, result.error.retryable) == ("outside_timeout", True)
    assert await web.files() == {}


async def test_an_answer_that_breaks_off_is_no_answer(web: Bench, site: Site) -> None:
    async def breaks_off(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    site.pages["/"] = breaks_off
    result = await web.step("http_fetch", url=site.url("/", "a.example"), save_as="a")
    assert result.error is not None
    assert (result.error.code, result.error.retryable) == ("outside_unreachable", True)
    assert await web.files() == {}


@pytest.mark.parametrize("url", ["http://nowhere.example/", "http://a.example:1/"])
async def test_a_request_that_never_left_has_done_nothing(bench: Bench, url: str) -> None:
    web = reaching(bench, "nowhere.example", "a.example:1")
    result = await web.step("http_request", url=url, method="POST")
    assert result.error is not None
    assert (result.error.retryable, result.effect) == (True, Effect.NONE)


async def test_a_request_to_a_server_whose_certificate_is_not_trusted_has_done_nothing(
    bench: Bench, tls_site: tuple[Site, ssl.SSLContext]
) -> None:
    site, _ = tls_site
    web = reaching(bench, f"a.example:{site.port}")
    result = await web.step("http_request", url=site.url("/", "a.example", "https"), method="POST")
    assert result.error is not None
    assert (result.error.code, result.effect) == ("outside_unreachable", Effect.NONE)
    assert site.asked == []


async def test_the_key_is_of_the_run_the_step_and_the_request(web: Bench, site: Site) -> None:
    site.says("/", b"")
    call, url = web.context.call, site.url("/", "a.example")
    keyed: dict[str, Any] = {"url": url, "method": "POST", "body": "pay 10", "idempotency_header": "X-Request-Key"}
    await web.step("http_request", **keyed)
    await web.but(call=replace(call, generation=7, tries=9)).step("http_request", **keyed)
    await web.but(call=replace(call, run_id="other")).step("http_request", **keyed)
    await web.but(call=replace(call, step_id="other")).step("http_request", **keyed)
    await web.step("http_request", **{**keyed, "body": "pay 11"})
    first, again, *others = [asked.headers["x-request-key"] for asked in site.asked]
    assert first == again
    assert len({first, *others}) == 4
    assert all(len(key) == 36 for key in (first, *others))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"idempotency_header": "Idempotency Key"}, "letters, digits"),
        ({"idempotency_header": ""}, "letters, digits"),
        ({"idempotency_header": "Host"}, "set by the tool itself"),
        ({"idempotency_header": "X-Key", "headers": {"x-key": "1"}}, "headers has X-Key too"),
    ],
)
def test_a_header_that_cannot_hold_the_key_is_refused(web: Bench, arguments: dict[str, Any], why: str) -> None:
    given = {"url": "http://a.example/", "method": "POST", **arguments}
    with pytest.raises(InvalidPlan, match=why):
        web.tools.resolve("http_request", given, field="plan.steps.0")


async def test_a_name_that_does_not_resolve_and_a_port_that_is_closed_can_be_tried_again(bench: Bench) -> None:
    web = reaching(bench, "nowhere.example", "a.example:1")
    for url in ("http://nowhere.example/", "http://a.example:1/"):
        result = await web.step("http_fetch", url=url)
        assert result.error is not None
        assert (result.error.code, result.error.retryable) == ("outside_unreachable", True)


@pytest.mark.parametrize("charset", ["zlib", "nonsense", "utf-8\x01", "idna", "rot13"])
async def test_a_charset_that_is_none_is_taken_for_utf_8(web: Bench, site: Site, charset: str) -> None:
    site.says("/", "häppy".encode(), f"Content-Type: text/plain; charset={charset}")
    assert (await web.step("http_fetch", url=site.url("/", "a.example"))).exit_code == 0
    assert "häppy" in web.said.decode()


async def test_what_is_no_text_is_not_printed(web: Bench, site: Site) -> None:
    site.says("/", b"\x7fELF\0\0", "Content-Type: application/octet-stream")
    await web.step("http_fetch", url=site.url("/", "a.example"))
    assert "save_as" in web.said.decode()
    assert b"ELF" not in web.said


@pytest.fixture
async def tls_site() -> AsyncIterator[tuple[Site, ssl.SSLContext]]:
    authority, serving = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("a.example").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with site_on(serving) as site:
        yield site, trusting


@pytest.mark.parametrize(("host", "is_its_own"), [("a.example", True), ("b.example", False)])
async def test_a_certificate_must_be_that_of_the_name(
    bench: Bench, tls_site: tuple[Site, ssl.SSLContext], host: str, is_its_own: bool
) -> None:
    site, trusting = tls_site
    site.says("/", b"hello")
    web = reaching(bench, f"{host}:{site.port}", tls=trusting)
    result = await web.step("http_fetch", url=site.url("/", host, "https"))
    assert (result.exit_code == 0) is is_its_own
    assert len(site.asked) == is_its_own


PAGES = {
    "meta": ('<meta charset="shift_jis"><p>漢字'.encode("cp932"), "text/html", "漢字"),
    "a mark": ("\ufeff<p>grüße".encode("utf-16-le"), "text/html", "grüße"),
    "a mark of a type that is no text": ('\ufeff{"a": "ü"}'.encode("utf-16-le"), "application/json", '{"a": "ü"}'),
    "XML": ('<?xml version="1.0" encoding="koi8-r"?><a>текст</a>'.encode("koi8-r"), "application/atom+xml", "текст"),
}


@pytest.mark.parametrize(("body", "type", "text"), PAGES.values(), ids=PAGES.keys())
async def test_a_page_is_read_in_the_encoding_that_it_names_itself(
    web: Bench, site: Site, body: bytes, type: str, text: str
) -> None:
    site.says("/", body, f"Content-Type: {type}")
    assert (await web.step("http_fetch", url=site.url("/", "a.example"))).exit_code == 0
    assert text in web.said.decode()
