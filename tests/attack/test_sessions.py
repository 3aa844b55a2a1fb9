"""Sessions under attack: by pages of other origins, by cookies that others set, by what outlives a token."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from backplane.domain.users import Tier
from tests.attack.raw_http import RawConnection
from tests.integration.api.conftest import api, person, settings_with, start_api
from tests.integration.api.running import Api, Person, StartApi, frames
from tests.waiting import wait_until

__all__ = ["api", "person", "settings_with", "start_api"]

COOKIE = "agent_session"


class Page:
    """A page of the console in a browser that has signed in."""

    def __init__(self, api: Api, origin: str = "") -> None:
        self.origin = origin or api.url
        self.http = api.client()

    async def sign_in(self, token: str) -> httpx.Response:
        return await self.http.post("/console/session", json={"token": token}, headers={"Origin": self.origin})

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Origin": self.origin, **options.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **options)


@pytest.fixture
async def page(api: Api, person: Person) -> Page:
    page = Page(api)
    assert (await page.sign_in(person.token)).status_code == 200
    return page


def the_cookie(answer: httpx.Response) -> tuple[str, list[str]]:
    """Its value and its attributes."""
    [header] = answer.headers.get_list("set-cookie")
    pair, *attributes = header.split("; ")
    name, _, value = pair.partition("=")
    assert name.removeprefix("__Host-") == COOKIE
    return value, [attribute.lower() for attribute in attributes]


# --- signing in and out ---


async def test_a_person_signs_in_works_and_signs_out(api: Api, person: Person) -> None:
    page = Page(api)
    answer = await page.sign_in(person.token)
    me = (await person.http.get("/agent/me")).json()
    assert answer.json()["user"] == {"id": me["user_id"], "name": me["name"], "tier": me["tier"]}
    assert (answer.json()["is_read_only"], answer.headers["cache-control"]) == (False, "no-store")
    assert person.token not in answer.text
    assert (await page.ask("GET", "/console/session")).json()["user"] == answer.json()["user"]
    made = await page.ask("POST", "/agent/execute", json={"action": "create", "prompt": "say hello"})
    assert made.status_code == 201
    gone = await page.ask("DELETE", "/console/session")
    assert (gone.status_code, the_cookie(gone)[0]) == (204, '""')
    for path in ("/console/session", "/agent/me"):
        assert (await page.ask("GET", path)).status_code == 401


async def test_the_cookie_is_kept_from_pages_other_sites_and_other_hosts(api: Api, person: Person) -> None:
    value, attributes = the_cookie(await Page(api).sign_in(person.token))
    assert len(value) >= 43
    assert {"httponly", "samesite=strict", "path=/"} <= set(attributes)
    assert not any(attribute.startswith("domain") for attribute in attributes)
    assert "secure" not in attributes
    secure = await api.client().post(
        "/console/session",
        json={"token": person.token},
        headers={"Origin": api.url.replace("http", "https", 1), "Sec-Fetch-Site": "same-origin"},
    )
    assert "secure" in the_cookie(secure)[1]
    assert secure.headers["set-cookie"].startswith("__Host-")


async def test_below_a_path_of_a_proxy_the_cookie_is_for_that_path(start_api: StartApi) -> None:
    api = await start_api(api_root_path="/agents")
    person = await api.person()
    answer = await api.client().post("/agents/console/session", json={"token": person.token})
    assert "path=/agents" in the_cookie(answer)[1]


@pytest.mark.parametrize("token", ["agt_wrong", "x" * 200, "\u0000"])
async def test_a_wrong_token_is_refused_without_a_cookie_and_is_not_repeated(api: Api, token: str) -> None:
    answer = await Page(api).sign_in(token)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "set-cookie" not in answer.headers
    assert token not in answer.text


async def test_wrong_tokens_are_counted_by_the_address_that_they_come_from(start_api: StartApi) -> None:
    api = await start_api(api_anonymous_rate_per_second=0.001, api_anonymous_rate_burst=3)
    page = Page(api)
    statuses = [(await page.sign_in(f"agt_wrong{number}")).status_code for number in range(4)]
    assert statuses == [401, 401, 401, 429]


async def test_a_session_is_not_refused_for_what_strangers_at_its_address_do(start_api: StartApi) -> None:
    api = await start_api(api_anonymous_rate_per_second=0.001, api_anonymous_rate_burst=3)
    page, person = Page(api), await api.person()
    await page.sign_in(person.token)
    await page.ask("GET", "/agent/me")
    for number in range(4):
        await api.client({"Authorization": f"Bearer wrong{number}"}).get("/agent/me")
    assert (await page.ask("GET", "/agent/me")).status_code == 200


async def test_what_all_sessions_of_a_token_ask_counts_as_the_tokens(start_api: StartApi) -> None:
    api = await start_api(api_rate_per_second=0.001, api_rate_burst=4)
    person, page = await api.person(), Page(api)
    await page.sign_in(person.token)
    statuses = [(await page.ask("GET", "/agent/me")).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert (await person.http.get("/agent/me")).status_code == 429


# --- pages of others ---


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "http://127.0.0.1:1", "http://sub.localhost"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/agent/runs"),
        ("HEAD", "/agent/runs"),
        ("POST", "/agent/execute"),
        ("PUT", "/agent/secrets/NAME"),
        ("DELETE", "/console/session"),
        ("GET", "/console/session"),
        ("POST", "/mcp"),
        ("POST", "/api/v1/events"),
        ("OPTIONS", "/agent/runs"),
    ],
)
async def test_a_page_of_another_origin_gets_nothing_by_a_cookie(
    page: Page, origin: str, method: str, path: str
) -> None:
    answer = await page.ask(method, path, headers={"Origin": origin})
    assert answer.status_code == 403
    assert method == "HEAD" or answer.json()["code"] == "foreign_origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await page.ask("GET", "/console/session")).status_code == 200


async def test_a_page_of_another_origin_signs_nobody_in(api: Api, person: Person) -> None:
    for headers in ({"Origin": "https://evil.test"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await api.client().post("/console/session", json={"token": person.token}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")
        assert "set-cookie" not in answer.headers


async def test_a_form_signs_nobody_in(api: Api, person: Person) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await api.client().post(
            "/console/session", content=f'{{"token":"{person.token}"}}', headers={"Content-Type": kind}
        )
        assert (answer.status_code, "set-cookie" in answer.headers) == (422, False)


async def test_a_request_without_the_headers_of_a_browser_changes_nothing_by_a_cookie(page: Page) -> None:
    for method, path in (("POST", "/agent/execute"), ("DELETE", "/console/session"), ("GET", "/agent/me")):
        answer = await page.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")
    assert (await page.http.get("/agent/me", headers={"X-Agent-Console": "1"})).status_code == 200
    assert (await page.http.get("/agent/me", headers={"Sec-Fetch-Site": "same-origin"})).status_code == 200
    assert (await page.http.get("/agent/me", headers={"Sec-Fetch-Site": "none"})).status_code == 403


async def test_a_name_that_was_made_to_lead_here_is_another_origin(api: Api, page: Page) -> None:
    host = "rebound.test:8000"
    own_page = await page.ask("POST", "/agent/execute", headers={"Host": host})
    rebound = await page.ask("POST", "/agent/execute", headers={"Origin": f"http://{host}"})
    assert [own_page.status_code, rebound.status_code] == [403, 403]


async def test_what_a_stranger_says_of_a_proxy_is_not_believed(start_api: StartApi) -> None:
    forwarded = {"X-Forwarded-Host": "evil.test", "X-Forwarded-Proto": "https", "Origin": "https://evil.test"}
    for trusted, status in (("", 403), ("127.0.0.1", 200)):
        api = await start_api(api_trusted_proxies=trusted)
        person, page = await api.person(), Page(api)
        value, _ = the_cookie(await page.sign_in(person.token))
        # Over https, a browser sends the cookie by the name that no other host can set.
        jar = {"Cookie": f"__Host-{COOKIE}={value}"}
        assert (await api.client().get("/agent/me", headers={**forwarded, **jar})).status_code == status


# --- cookies and tokens beside each other ---


async def test_beside_a_header_of_authorization_the_cookie_does_not_count(api: Api, page: Page) -> None:
    other = await api.person()
    mine = (await other.http.get("/agent/me")).json()["user_id"]
    found = await page.http.get("/agent/me", headers={"Authorization": f"Bearer {other.token}"})
    assert found.json()["user_id"] == mine
    for wrong in ("Bearer agt_wrong", "Basic YTpi", "Bearer", ""):
        answer = await page.ask("GET", "/agent/me", headers={"Authorization": wrong})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_a_token_is_no_cookie_and_a_session_no_token(api: Api, person: Person) -> None:
    value, _ = the_cookie(await Page(api).sign_in(person.token))
    cookie = {"Cookie": f"{COOKIE}={person.token}", "Origin": api.url}
    bearer = {"Authorization": f"Bearer {value}"}
    for headers in (cookie, bearer):
        assert (await api.client().get("/agent/me", headers=headers)).status_code == 401


async def test_a_token_alone_is_no_session(person: Person) -> None:
    for method in ("GET", "DELETE"):
        answer = await person.http.request(method, "/console/session")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_nobody_is_led_into_a_session_whose_value_another_knows(api: Api, person: Person) -> None:
    planted = "a" * 43
    browser = {"Cookie": f"{COOKIE}={planted}", "Origin": api.url}
    answer = await api.client().post("/console/session", json={"token": person.token}, headers=browser)
    assert the_cookie(answer)[0] != planted
    assert (await api.client().get("/agent/me", headers=browser)).status_code == 401


async def test_a_cookie_that_another_host_added_makes_neither_count(api: Api, page: Page) -> None:
    theirs, _ = the_cookie(await Page(api).sign_in((await api.person()).token))
    [own] = [cookie.value for cookie in page.http.cookies.jar]
    for both in (f"{COOKIE}={theirs}; {COOKIE}={own}", f"{COOKIE}={own}; {COOKIE}={theirs}"):
        answer = await api.client().get("/agent/me", headers={"Cookie": both, "Origin": api.url})
        assert answer.status_code == 401


async def test_signing_in_again_ends_the_session_before(api: Api, page: Page, person: Person) -> None:
    [before] = [cookie.value for cookie in page.http.cookies.jar]
    assert (await page.ask("GET", "/agent/me")).status_code == 200
    await page.sign_in(person.token)
    answer = await api.client().get("/agent/me", headers={"Cookie": f"{COOKIE}={before}", "Origin": api.url})
    assert answer.status_code == 401
    assert (await page.ask("GET", "/agent/me")).status_code == 200


# --- what outlives a token ---


async def test_a_revoked_token_ends_its_sessions_and_their_streams(start_api: StartApi) -> None:
    api = await start_api(token_cache_seconds=0.5)
    person, page = await api.person(), Page(api)
    await page.sign_in(person.token)
    run_id = await person.make("create")
    async with (
        asyncio.timeout(30),
        page.http.stream("GET", f"/agent/logs/{run_id}/stream", headers={"Origin": api.url}) as answer,
    ):
        assert answer.status_code == 200
        await api.resources.store.users.revoke_token(person.token_id)
        last = [frame async for frame in frames(answer)][-1]
    assert "its token was revoked" in last.comment
    await wait_until(lambda: is_refused(page.http, Origin=api.url), what="the session is over")


async def test_signing_out_ends_the_streams_of_the_session_and_not_the_tokens(start_api: StartApi) -> None:
    api = await start_api(token_cache_seconds=0.5)
    person, page = await api.person(), Page(api)
    await page.sign_in(person.token)
    run_id = await person.make("create")
    async with (
        asyncio.timeout(30),
        page.http.stream("GET", f"/agent/logs/{run_id}/stream", headers={"Origin": api.url}) as answer,
    ):
        assert (await page.ask("DELETE", "/console/session")).status_code == 204
        assert "this stream ends" in [frame async for frame in frames(answer)][-1].comment
    assert (await person.http.get("/agent/me")).status_code == 200


async def test_a_token_that_is_over_is_refused_at_its_moment_though_it_was_just_checked(start_api: StartApi) -> None:
    api = await start_api(token_cache_seconds=600)
    _, plain = await api.resources.store.users.create_token("eve", Tier.STANDARD, valid_for=timedelta(seconds=1))
    client, page = api.client({"Authorization": f"Bearer {plain}"}), Page(api)
    assert (await client.get("/agent/me")).status_code == 200
    assert (await page.sign_in(plain)).status_code == 200
    await wait_until(lambda: is_refused(client), what="the token is over")
    assert (await page.ask("GET", "/agent/me")).status_code == 401
    assert (await page.sign_in(plain)).status_code == 401


async def is_refused(client: httpx.AsyncClient, **headers: str) -> bool:
    return (await client.get("/agent/me", headers=headers)).status_code == 401


# --- where no cookie counts ---


async def test_a_cookie_opens_no_socket(api: Api, page: Page) -> None:
    [value] = [cookie.value for cookie in page.http.cookies.jar]
    head = (
        f"GET /agent/events HTTP/1.1\r\nHost: {api.url.removeprefix('http://')}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Origin: https://evil.test\r\nCookie: {COOKIE}={value}\r\n\r\n"
    )
    async with RawConnection(api.url) as connection:
        answer = await connection.ask(head.encode())
        assert answer is not None
        assert answer.status == 403


async def test_a_hook_takes_what_is_signed_and_no_session(page: Page) -> None:
    answer = await page.ask("POST", "/api/v1/hooks/nobody", json={}, headers={"Origin": "https://evil.test"})
    assert answer.status_code in (401, 404, 422)


async def test_a_session_is_not_kept_from_what_needs_no_token(page: Page) -> None:
    for path in ("/health/live", "/openapi.json"):
        assert (await page.ask("GET", path, headers={"Origin": "https://evil.test"})).status_code == 200
