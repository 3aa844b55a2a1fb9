"""The settings of Redis's REST API: what fits together, and what a fault of them does not show."""

from typing import Any

import pytest

from backplane.configuration import read_settings
from backplane.errors import InvalidInput
from backplane.redis_access import rest_is_set, rq_is_reached
from tests.settings import settings_of

URL, TOKEN = "https://eu1-some-name.example.com", "AYNgASQgOTdm-token="


def rest(url: str = URL, token: str = TOKEN, **others: Any) -> dict[str, Any]:
    return {"upstash_redis_rest_url": url, "upstash_redis_rest_token": token, **others}


@pytest.mark.parametrize(
    "url", [URL, f"{URL}/", f"{URL}:8443/redis", "http://127.0.0.1:8079", "http://[::1]:80", "http://localhost"]
)
def test_an_address_is_taken(url: str) -> None:
    assert rest_is_set(settings_of(**rest(url)))


def test_without_them_the_api_has_a_connection() -> None:
    assert not rest_is_set(settings_of())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (rest(token=""), "go together"),
        (rest(url=""), "go together"),
        (rest(token="two words"), "UPSTASH_REDIS_REST_TOKEN has a character"),
        (rest(token="line\nX-Header: a"), "UPSTASH_REDIS_REST_TOKEN has a character"),
        (rest(token="héslo"), "UPSTASH_REDIS_REST_TOKEN has a character"),
        (rest("redis://host:6379"), "set https://host"),
        (rest("eu1-some-name.example.com"), "set https://host"),
        (rest("https://"), "set https://host"),
        (rest("https://host:99999"), "set https://host"),
        (rest("https://ho st"), "set https://host"),
        (rest("https://user:password@host"), "no login, query or fragment"),
        (rest(f"{URL}?_token=secret"), "no login, query or fragment"),
        (rest(f"{URL}#secret"), "no login, query or fragment"),
        (rest("http://10.0.0.1:8079"), "UPSTASH_REDIS_REST_PLAIN_HTTP"),
        (rest("http://127.0.0.1.example.com"), "UPSTASH_REDIS_REST_PLAIN_HTTP"),
    ],
)
def test_what_does_not_fit_is_named_without_its_value(
    values: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name.upper(), value)
    with pytest.raises(InvalidInput, match=reason) as refused:
        read_settings()
    for secret in (TOKEN, "password@", "secret", "X-Header"):
        assert secret not in refused.value.message


def test_plain_http_to_another_machine_is_for_who_says_so() -> None:
    assert rest_is_set(settings_of(**rest("http://10.0.0.1:8079", upstash_redis_rest_plain_http=True)))


def test_neither_url_nor_token_is_shown() -> None:
    shown = repr(settings_of(**rest()))
    assert TOKEN not in shown
    assert URL not in shown


@pytest.mark.parametrize(("jobs", "reached"), [("", False), ("redis://jobs:6379/0", True)])
def test_jobs_are_put_into_their_queue_only_where_that_has_a_connection(jobs: str, reached: bool) -> None:
    assert rq_is_reached(settings_of(**rest(jobs_redis_url=jobs))) == reached
    assert rq_is_reached(settings_of())
