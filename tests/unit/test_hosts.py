"""Which hosts a list of patterns allows."""

import httpx
import pytest

from backplane.errors import InvalidInput
from backplane.net.hosts import HostRules, host_and_port, normal_host


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("example.org", ["example.org", "EXAMPLE.org.", "example.org:80"], ["www.example.org", "example.org:8080"]),
        (
            "*.example.org",
            ["a.example.org", "a.b.example.org:443"],
            ["example.org", "notexample.org", "example.org.evil"],
        ),
        ("*", ["anything.example", "1.2.3.4"], ["anything.example:22"]),
        ("example.org:8080", ["example.org:8080"], ["example.org", "a.example.org:8080"]),
        ("*.example.org:8443", ["a.example.org:8443"], ["a.example.org"]),
        ("[::1]:9000", ["[::1]:9000", "[0:0::1]:9000"], ["::1"]),
        ("::1", ["::1", "[::1]", "[::1]:443"], ["[::2]"]),
        ("bücher.example", ["xn--bcher-kva.example", "BÜCHER.example"], ["bucher.example"]),
        ("10.0.0.1", ["10.0.0.1"], ["10.0.0.2", "0x0a000001", "167772161"]),
    ],
)
def test_a_pattern_allows_these_hosts_and_no_others(pattern: str, allowed: list[str], refused: list[str]) -> None:
    rules = HostRules.of([pattern])
    assert [host for host in allowed if not rules.allow_host(host)] == []
    assert [host for host in refused if rules.allow_host(host)] == []


def test_no_pattern_allows_nothing() -> None:
    assert not HostRules.of([]).allow_host("example.org")


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "*.", "a b", "https://example.org", "example.org/", "user@example.org", "a.*.b", "example.org:0"),
        *("example.org:x", "example.org:99999", "[::1", "**", "*example.org", "2130706433", "x" * 301, "a:b:c", "a..b"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput):
        HostRules.of([pattern])


def test_only_a_pattern_with_a_name_names_a_host() -> None:
    assert not HostRules.of(["*"]).name("example.org", 80)
    assert HostRules.of(["*", "*.org"]).name("example.org", 80)


def test_an_address_in_a_form_that_only_some_programs_know_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"write 127\.0\.0\.1"):
        normal_host("0x7f.1")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/", "example.org"),
        ("http://example.org:443/", "example.org"),
        ("http://example.org:81/", "example.org:81"),
        ("http://[::1]:81/", "[::1]:81"),
        ("http://[::1]/", "::1"),
    ],
)
def test_a_host_is_reported_with_its_port_where_that_is_no_standard_one(url: str, expected: str) -> None:
    assert host_and_port(httpx.URL(url)) == expected
