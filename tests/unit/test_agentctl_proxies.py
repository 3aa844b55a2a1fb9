"""Proxies of the environment: what leads where, and what is said of those that cannot be used."""

import pytest

from agentctl.api.address import find_url
from agentctl.api.proxies import client_of, proxy_of
from agentctl.exit_codes import CommandError

API = "http://api.example.org:8000"
PROXY = "http://proxy.example.org:3128"


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        (API, {}, ""),
        (API, {"HTTP_PROXY": PROXY}, PROXY),
        (API, {"HTTPS_PROXY": PROXY}, ""),
        ("https://api.example.org", {"HTTPS_PROXY": PROXY}, PROXY),
        (API, {"ALL_PROXY": PROXY}, PROXY),
        (API, {"ALL_PROXY": "other", "http_proxy": "proxy.example.org:3128"}, PROXY),
        (API, {"HTTP_PROXY": " ", "ALL_PROXY": PROXY}, PROXY),
        (API, {"HTTP_PROXY": PROXY, "NO_PROXY": "api.example.org"}, ""),
        (API, {"HTTP_PROXY": PROXY, "NO_PROXY": "example.org"}, ""),
        (API, {"HTTP_PROXY": PROXY, "no_proxy": ".example.org, x"}, ""),
        (API, {"HTTP_PROXY": PROXY, "NO_PROXY": "*"}, ""),
        (API, {"HTTP_PROXY": PROXY, "NO_PROXY": "i.example.org"}, PROXY),
        (API, {"HTTP_PROXY": PROXY, "NO_PROXY": "[::1], ,localhost,10.0.0.0/8,http://x:y,[broken"}, PROXY),
        ("http://10.1.2.3", {"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, ""),
        ("http://11.1.2.3", {"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, PROXY),
        ("http://[fd00::1]:80", {"HTTP_PROXY": PROXY, "NO_PROXY": "[fd00::1]"}, ""),
        ("http://[fd00::1]:80", {"HTTP_PROXY": PROXY, "NO_PROXY": "[::1]"}, PROXY),
        ("http://127.0.0.1:8000", {"HTTP_PROXY": PROXY}, ""),
        ("http://[::1]:8000", {"HTTP_PROXY": PROXY}, ""),
    ],
)
def test_the_proxy_is_the_one_that_curl_would_take(url: str, environment: dict[str, str], proxy: str) -> None:
    assert proxy_of(url, environment)[1] == proxy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("HTTP_PROXY", "foo://proxy"),
        ("http_proxy", "http://[::1"),
        ("HTTP_PROXY", "http://proxy:port"),
        ("HTTP_PROXY", "http://\udcff"),
        ("HTTP_PROXY", "http://user:hush-hush@proxy:port"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(name: str, value: str) -> None:
    with pytest.raises(CommandError) as refused:
        client_of(API, {name: value})
    assert name in refused.value.message
    assert "hush-hush" not in refused.value.message


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://h:99999", "ftp://h", "http://", "http://\udcff", "http://x\x00y"]
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(CommandError, match="AGENT_URL"):
        find_url({"AGENT_URL": url})
