"""What the operator lets tools reach. The resolver is played; the connections are real."""

from collections.abc import Sequence
from ipaddress import ip_address

import httpx
import pytest

from backplane.errors import InvalidInput
from backplane.net.addresses import Address
from backplane.net.egress import OutsidePolicy, OutsideRefused, parse_url
from tests.integration.tools.site import site_on

EVERYTHING = ["*", "127.0.0.1"]


def names(**hosts: str) -> "Names":
    return Names({host.replace("_", "."): address for host, address in hosts.items()})


class Names:
    def __init__(self, hosts: dict[str, str]) -> None:
        self.hosts = hosts
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        return [ip_address(self.hosts[host])]


@pytest.mark.parametrize(
    "url",
    [
        "http://allowed.example@evil.example/",
        "http://allowed.example:pw@evil.example/",
        "http://allowed.example\\@evil.example/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://allowed.example../",
        "http://allowed%2eexample/",
        "http://allowed.example%00.evil/",
        "http://allowed.example\r\nHost: evil/",
        "http://allowed.example/\r\nX-Injected: 1",
        "http://[fe80::1%25eth0]/",
        "http://allowed.example:0/",
        "http://allowed.example:99999/",
        "ftp://allowed.example/",
        "file:///etc/passwd",
        "//allowed.example/",
        "http:///path",
        "",
        "http://allowed.example/" + "x" * 8000,
    ],
)
def test_what_is_no_plain_url_is_refused_before_anything_is_looked_up(url: str) -> None:
    with pytest.raises(InvalidInput):
        OutsidePolicy(EVERYTHING).check(url)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://ALLOWED.example./a", "http://allowed.example/a"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("http://a。example/", "http://a.example/"),
        ("http://[0:0:0::1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_a_host_is_brought_into_its_normal_form(url: str, normal: str) -> None:
    assert str(parse_url(url)) == normal


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://allowed.example.evil.example/",
        "http://notallowed.example/",
        "http://allowed.example:8080/",
        "http://xn--llowed-8ve.example/",
        "http://\u0430llowed.example/",
    ],
)
def test_a_host_that_is_not_named_is_refused(url: str) -> None:
    with pytest.raises(OutsideRefused, match="OUTSIDE_HOSTS"):
        OutsidePolicy(["allowed.example"]).check(url)


def test_without_hosts_it_says_what_to_set() -> None:
    with pytest.raises(OutsideRefused, match="OUTSIDE_HOSTS"):
        OutsidePolicy([]).check("https://example.org/")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fd00::1"),
        *("fe80::1", "::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "ff02::1"),
    ],
)
async def test_a_name_with_a_private_address_is_refused_even_where_it_is_named(address: str) -> None:
    with pytest.raises(OutsideRefused, match="not public"):
        await OutsidePolicy(["inside.example"], resolver=names(inside_example=address)).resolve("inside.example", 80)


async def test_private_addresses_are_for_hosts_that_are_named_not_for_all() -> None:
    resolver = names(inside_example="10.0.0.1")
    with pytest.raises(OutsideRefused, match="name the host"):
        await OutsidePolicy(["*"], allow_private=True, resolver=resolver).resolve("inside.example", 80)
    found = await OutsidePolicy(["*", "inside.example"], allow_private=True, resolver=resolver).resolve(
        "inside.example", 80
    )
    assert found == [ip_address("10.0.0.1")]


async def test_resolving_asks_the_policy_about_the_host_too() -> None:
    resolver = names(evil_example="8.8.8.8")
    with pytest.raises(OutsideRefused):
        await OutsidePolicy(["allowed.example"], resolver=resolver).resolve("evil.example", 80)
    assert resolver.asked == []


async def test_the_connection_goes_to_the_address_that_was_checked_and_its_name_is_asked_for_once() -> None:
    async with site_on() as site:
        site.says("/", b"hello")
        resolver = names(inside_example="127.0.0.1")
        policy = OutsidePolicy([f"inside.example:{site.port}"], allow_private=True, resolver=resolver)
        async with policy.client(5.0) as client:
            response = await client.get(site.url("/", "inside.example"))
        assert response.text == "hello"
        assert site.asked[0].headers["host"] == f"inside.example:{site.port}"
        assert resolver.asked == ["inside.example"]


async def test_a_client_that_follows_redirects_is_checked_at_each() -> None:
    async with site_on() as site:
        site.redirects("/", site.url("/", "evil.example"))
        policy = OutsidePolicy(
            [f"inside.example:{site.port}"],
            allow_private=True,
            resolver=names(inside_example="127.0.0.1", evil_example="127.0.0.1"),
        )
        async with httpx.AsyncClient(transport=policy.transport(), follow_redirects=True, trust_env=False) as client:
            with pytest.raises(OutsideRefused):
                await client.get(site.url("/", "inside.example"))
        assert len(site.asked) == 1
