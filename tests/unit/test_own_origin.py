"""Which requests with a session's cookie were made by a page of the API's own origin."""

from typing import Any

import pytest

from app.edge.connections import TrustedProxies
from app.edge.own_origin import check_own, cookie_name, cookie_path, normalised, own_origin, session_value
from backplane.errors import ForeignOrigin

PROXY = "10.0.0.1"
OWN = "http://agents.test:8000"


def request(method: str = "GET", peer: str = "10.0.0.9", scheme: str = "http", **headers: str) -> dict[str, Any]:
    """The scope of a request to agents.test:8000."""
    sent = {"host": "agents.test:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "type": "http",
        "method": method,
        "path": "/agent/me",
        "scheme": scheme,
        "client": (peer, 1),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }


def is_own(scope: dict[str, Any]) -> bool:
    try:
        check_own(scope, own_origin(scope, TrustedProxies(PROXY)))
    except ForeignOrigin:
        return False
    return True


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("HTTPS://Agents.Test:443", "https://agents.test"),
        ("http://agents.test:8000", "http://agents.test:8000"),
        ("http://[::1]:80", "http://[::1]"),
        ("null", ""),
        ("", ""),
        ("file://", ""),
        ("http://", ""),
        ("http://agents.test/", ""),
        ("http://agents.test?", ""),
        ("http://a@agents.test", ""),
        ("http://agents.test:99999", ""),
        ("http://[::1", ""),
    ],
)
def test_an_origin_is_a_scheme_and_a_host_and_nothing_else(origin: str, expected: str) -> None:
    assert normalised(origin) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": OWN},
        {"origin": OWN, "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "same-origin"},
        {"x_agent_console": "1"},
    ],
)
def test_a_page_of_ones_own_reads(headers: dict[str, str]) -> None:
    assert is_own(request(**headers))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_what_changes_something_needs_an_origin_of_ones_own(method: str) -> None:
    assert is_own(request(method, origin=OWN))
    assert not is_own(request(method))
    assert not is_own(request(method, sec_fetch_site="same-origin"))
    assert not is_own(request(method, x_agent_console="1"))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "http://evil.test"},
        {"origin": "http://sub.agents.test:8000"},
        {"origin": "http://agents.test:8001"},
        {"origin": "https://agents.test:8000"},
        {"origin": "http://agents.test.evil.test:8000"},
        {"origin": OWN, "sec_fetch_site": "same-site"},
        {"origin": OWN, "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "same-site", "x_agent_console": "1"},
        {"origin": "http://evil.test", "x_agent_console": "1", "sec_fetch_site": "same-origin"},
        {"referer": f"{OWN}/console/"},
    ],
)
def test_another_origin_neither_reads_nor_changes(headers: dict[str, str]) -> None:
    assert not is_own(request(**headers))
    assert not is_own(request("POST", **headers))


def test_a_refusal_says_how_a_proxy_is_to_be_set_up() -> None:
    with pytest.raises(ForeignOrigin, match=r"API_TRUSTED_PROXIES.*X-Forwarded-Host"):
        check_own(request(origin="http://evil.test"), OWN)


def test_two_origins_are_none() -> None:
    scope = request(origin=OWN)
    scope["headers"].append((b"origin", OWN.encode()))
    with pytest.raises(ForeignOrigin):
        check_own(scope, OWN)


@pytest.mark.parametrize("hosts", [0, 2])
def test_without_one_host_there_is_no_own_origin(hosts: int) -> None:
    scope = request(origin=OWN)
    others = [header for header in scope["headers"] if header[0] != b"host"]
    scope["headers"] = [*others, *[(b"host", b"agents.test:8000")] * hosts]
    assert not is_own(scope)


def test_a_name_that_leads_here_is_no_own_origin_of_another_name() -> None:
    assert not is_own(request(origin="http://rebound.test:8000"))
    assert not is_own(request(host="rebound.test:8000", origin=OWN))


def test_a_named_proxy_says_what_the_browser_sees_and_a_stranger_does_not() -> None:
    seen = {"x_forwarded_host": "agents.example.org", "x_forwarded_proto": "https"}
    browser = {"origin": "https://agents.example.org"}
    assert is_own(request("POST", peer=PROXY, **seen, **browser))
    assert not is_own(request("POST", **seen, **browser))


def test_a_proxy_that_hides_tls_is_made_up_for_by_the_browser_alone() -> None:
    hidden = {"host": "agents.example.org", "origin": "https://agents.example.org"}
    assert is_own(request("POST", **hidden, sec_fetch_site="same-origin"))
    assert not is_own(request("POST", **hidden))
    assert not is_own(request("POST", **hidden, sec_fetch_site="cross-site"))
    plain = {"host": "agents.example.org", "origin": "http://agents.example.org", "scheme": "https"}
    assert not is_own(request("POST", **plain, sec_fetch_site="same-origin"))


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        ("agent_session=a", "a"),
        ("other=b; agent_session=a", "a"),
        ("agent_session=a; agent_session=b", None),
        ("agent_session=a; agent_session=a", None),
        ("__Host-agent_session=a; agent_session=b", "a"),
        ("agent_session=", None),
        ("xagent_session=a", None),
        ("", None),
    ],
)
def test_of_two_cookies_none_counts_but_the_one_that_no_other_host_can_set(cookies: str, value: str | None) -> None:
    assert session_value(request(cookie=cookies), OWN) == value


def test_over_https_a_cookie_that_another_host_may_have_set_does_not_count() -> None:
    assert session_value(request(cookie="agent_session=a"), "https://agents.test") is None
    assert session_value(request(cookie="__Host-agent_session=a"), "https://agents.test") == "a"
    below = {**request(cookie="agent_session=a"), "agent.path": "/agents/agent/me"}
    assert session_value(below, "https://agents.test") == "a"


def test_a_cookie_is_for_the_path_below_which_the_browser_sees_the_api() -> None:
    assert cookie_path(request()) == "/"
    assert cookie_path({**request(), "agent.path": "/agents/agent/me"}) == "/agents"
    assert cookie_name(is_https=True, path="/") == "__Host-agent_session"
    assert cookie_name(is_https=True, path="/agents") == cookie_name(is_https=False, path="/") == "agent_session"
