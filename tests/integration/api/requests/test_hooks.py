"""Hooks as their users and as those who post to them see them."""

import hashlib
import hmac
import time
from typing import Any

import httpx
import pytest

from backplane.domain.bus import EVENT_MAX_BYTES
from backplane.domain.webhooks import new_secret, sign
from backplane.sealing import new_key
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOOKS = "/api/v1/hooks"
JSON = "application/json"


async def made(person: Person, name: str = "ci", **body: Any) -> Any:
    answer = await person.http.put(f"{HOOKS}/{name}", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def standard(
    api: Api, path: str, secret: str, body: bytes = b"{}", kind: str = JSON, id: str = "m1", age: int = 0
) -> httpx.Response:
    at = int(time.time()) - age
    headers = {"Webhook-Id": id, "Webhook-Timestamp": str(at), "Webhook-Signature": sign([secret], id, at, body)}
    return await api.client().post(path, content=body, headers={**headers, "Content-Type": kind})


async def github(api: Api, path: str, secret: str, body: bytes, delivery: str = "d1") -> httpx.Response:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Event": "push", "X-GitHub-Delivery": delivery}
    return await api.client().post(path, content=body, headers={**headers, "Content-Type": JSON})


async def events(person: Person) -> list[Any]:
    found: list[Any] = (await person.http.get("/api/v1/events")).json()["events"]
    return found


async def test_what_is_posted_and_signed_becomes_an_event_of_the_hooks_user_once(keeping: Api, ada: Person) -> None:
    hook = await made(ada, type="ci.done")
    for duplicate in (False, True):
        answer = await standard(keeping, hook["path"], hook["secret"], b'{"ok": true}')
        assert (answer.status_code, answer.json()) == (202, {"id": "m1", "duplicate": duplicate})
    [event] = await events(ada)
    time = event.pop("time")
    assert time.endswith("+00:00")
    assert event == {
        "specversion": "1.0",
        "id": "m1",
        "source": "/api/v1/hooks/ci",
        "type": "ci.done",
        "datacontenttype": JSON,
        "data": {"ok": True},
    }


async def test_what_github_sends_again_under_another_name_is_the_same_event(keeping: Api, ada: Person) -> None:
    hook = await made(ada, "gh", kind="github")
    first = await github(keeping, hook["path"], hook["secret"], b'{"ref": "main"}')
    again = await github(keeping, hook["path"], hook["secret"], b'{"ref": "main"}', delivery="d2")
    assert [each.json()["duplicate"] for each in (first, again)] == [False, True]
    [event] = await events(ada)
    assert (event["type"], event["subject"], event["data"]) == ("hook.gh", "push", {"ref": "main"})


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"plain text", "text/plain", {"data": "plain text"}),
        (b"a=1&b=2", "application/x-www-form-urlencoded", {"data": "a=1&b=2"}),
        (b"\xff", "application/octet-stream", {"data_base64": "/w=="}),
    ],
)
async def test_what_is_no_json_is_kept_as_text_or_bytes(
    keeping: Api, ada: Person, body: bytes, kind: str, expected: dict[str, Any]
) -> None:
    hook = await made(ada)
    assert (await standard(keeping, hook["path"], hook["secret"], body, kind)).status_code == 202
    [event] = await events(ada)
    assert expected.items() <= event.items()


async def test_a_wrong_signature_and_an_unknown_address_say_nothing_more(keeping: Api, ada: Person) -> None:
    hook = await made(ada)
    wrong = [
        await standard(keeping, hook["path"], new_secret()),
        await standard(keeping, hook["path"], hook["secret"], age=301),
        await standard(keeping, hook["path"], hook["secret"], age=-310),
        await github(keeping, hook["path"], hook["secret"], b"{}"),
        await keeping.client().post(hook["path"], content=b"{}"),
    ]
    assert {(each.status_code, each.json()["detail"]) for each in wrong} == {(401, "the signature is missing or wrong")}
    unknown = [
        await standard(keeping, f"{HOOKS}/{'x' * 32}", hook["secret"]),
        await keeping.client().post(f"{HOOKS}/{'x' * 32}", content=b"{}"),
        await ada.http.post(f"{HOOKS}/{'y' * 32}", content=b"{}"),
    ]
    assert {(each.status_code, each.json()["detail"]) for each in unknown} == {
        (404, "there is no hook at this address")
    }
    assert await events(ada) == []


async def test_a_name_is_no_address(keeping: Api, ada: Person) -> None:
    hook = await made(ada, "n" * 32)
    assert (await standard(keeping, f"{HOOKS}/{'n' * 32}", hook["secret"])).status_code == 404
    assert (await standard(keeping, f"{HOOKS}/ci", hook["secret"])).status_code == 422


async def test_a_secret_is_shown_once_and_never_again(keeping: Api, ada: Person) -> None:
    hook = await made(ada)
    assert hook["secret"].startswith("whsec_")
    for answer in (await ada.http.get(HOOKS), await ada.http.get(f"{HOOKS}/ci")):
        assert answer.status_code == 200
        assert hook["secret"] not in answer.text
        assert "sealed" not in answer.text
    assert (await made(ada, type="other"))["secret"] is None
    assert (await standard(keeping, hook["path"], hook["secret"])).status_code == 202
    own = "whsec_" + "A" * 32
    assert (await made(ada, secret=own))["secret"] is None
    assert (await standard(keeping, hook["path"], own)).status_code == 202


async def test_a_new_secret_ends_the_old_one(keeping: Api, ada: Person) -> None:
    hook = await made(ada)
    new = (await made(ada, rotate=True))["secret"]
    assert (await standard(keeping, hook["path"], hook["secret"])).status_code == 401
    assert (await standard(keeping, hook["path"], new)).status_code == 202


async def test_a_hook_is_its_users_alone(keeping: Api, ada: Person) -> None:
    eve = await keeping.person()
    hook = await made(ada)
    for method in ("GET", "DELETE"):
        assert (await eve.http.request(method, f"{HOOKS}/ci")).status_code == 404
    assert (await eve.http.get(HOOKS)).json() == {"hooks": []}
    other = await made(eve)
    assert (await standard(keeping, other["path"], hook["secret"])).status_code == 401
    assert (await standard(keeping, other["path"], other["secret"])).status_code == 202
    assert await events(ada) == []


async def test_what_is_posted_to_a_hook_that_is_deleted_is_not_taken(keeping: Api, ada: Person) -> None:
    hook = await made(ada)
    assert (await ada.http.delete(f"{HOOKS}/ci")).status_code == 204
    assert (await standard(keeping, hook["path"], hook["secret"])).status_code == 404
    assert (await made(ada))["path"] != hook["path"]


@pytest.mark.parametrize(
    ("name", "body", "status", "field"),
    [
        ("CI", {}, 422, "name"),
        ("a" * 65, {}, 422, "name"),
        ("ci", {"kind": "gitlab"}, 422, "kind"),
        ("ci", {"type": "run.completed"}, 422, "type"),
        ("ci", {"secret": "short"}, 422, "secret"),
        ("ci", {"secret": "whsec_" + "A" * 32, "rotate": True}, 422, "rotate"),
        ("ci", {"tyype": "a"}, 422, "tyype"),
    ],
)
async def test_a_hook_that_cannot_be_is_refused(
    ada: Person, name: str, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await ada.http.put(f"{HOOKS}/{name}", json=body)
    assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text


async def test_no_more_of_a_strangers_body_is_read_than_an_event_may_have(keeping: Api, ada: Person) -> None:
    hook = await made(ada)
    large = await standard(keeping, hook["path"], new_secret(), b"x" * (EVENT_MAX_BYTES + 1), "text/plain")
    assert (large.status_code, large.json()["code"]) == (413, "too_large")
    fitting = await standard(keeping, hook["path"], hook["secret"], b"x" * (EVENT_MAX_BYTES - 1000), "text/plain")
    assert fitting.status_code == 202


async def test_what_is_signed_and_no_json_is_refused_as_such(keeping: Api, ada: Person) -> None:
    hook = await made(ada)
    answer = await standard(keeping, hook["path"], hook["secret"], b"{")
    assert (answer.status_code, answer.json()["code"]) == (422, "malformed_json")


async def test_a_platform_without_a_key_makes_no_hooks(person: Person) -> None:
    answer = await person.http.put(f"{HOOKS}/ci", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "secrets_not_kept")


@pytest.mark.slow
async def test_a_hook_is_called_as_often_as_a_token_may(start_api: StartApi) -> None:
    api = await start_api(api_rate_per_second=0.1, api_rate_burst=2, secrets_key=new_key())
    ada = await api.person()
    hook = await made(ada)
    answers = [await standard(api, hook["path"], hook["secret"], id=f"m{number}") for number in range(3)]
    assert [each.status_code for each in answers] == [202, 202, 429]


@pytest.mark.slow
async def test_strangers_at_one_address_post_as_often_as_other_requests_without_a_token(start_api: StartApi) -> None:
    api = await start_api(api_anonymous_rate_per_second=0.1, api_anonymous_rate_burst=1, secrets_key=new_key())
    answers = [await api.client().post(f"{HOOKS}/{'x' * 32}", content=b"{}") for _ in range(2)]
    assert [each.status_code for each in answers] == [404, 429]
