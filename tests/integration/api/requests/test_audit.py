"""The audit log: who changed what, and how it ended. And what users prefer."""

from typing import Any

import pytest

from app.edge.audit import NOT_WRITTEN_DOWN
from backplane.domain.users import Tier
from backplane.errors import Unavailable
from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def entries(person: Person, **asked: Any) -> list[Any]:
    answer = await person.http.get("/agent/audit", params=asked)
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["entries"]
    return found


async def test_a_change_is_written_down_with_who_asked_by_what_and_how_it_ended(person: Person) -> None:
    me = (await person.http.get("/agent/me")).json()
    assert (await person.http.put("/agent/secrets/TOKEN", json={"value": "a long secret"})).status_code < 500
    [entry] = await entries(person)
    assert (entry["user"], entry["user_id"], entry["token_id"]) == (me["name"], me["user_id"], person.token_id)
    assert (entry["action"], entry["target"], entry["session_id"]) == ("put_secret", "/agent/secrets/TOKEN", None)
    assert entry["outcome"] in ("done", "refused")
    assert "a long secret" not in str(entry)


async def test_what_was_refused_is_there_too_and_what_only_reads_is_not(person: Person) -> None:
    assert (await person.http.delete("/agent/secrets/MISSING")).status_code == 404
    await person.http.get("/agent/secrets")
    await person.make("create")
    [entry] = await entries(person)
    assert (entry["action"], entry["outcome"], entry["status"]) == ("delete_secret", "refused", 404)


async def test_what_an_administrator_chose_is_there(api: Api, person: Person) -> None:
    admin = await api.person(Tier.ADMIN)
    name = (await person.http.get("/agent/me")).json()["name"]
    await admin.http.post(f"/agent/accounts/user:{name}:tokens/top-up", json={"amount": "5", "note": "for May"})
    entry = (await entries(admin, user=(await admin.http.get("/agent/me")).json()["name"]))[0]
    assert (entry["action"], entry["details"]) == ("top_up_account", {"amount": "5", "note": "for May"})
    assert entry["outcome"] == "done"


async def test_sessions_and_tokens_are_there(api: Api) -> None:
    admin = await api.person(Tier.ADMIN)
    page = api.client({"Origin": api.url})
    assert (await page.post("/console/session", json={"token": admin.token})).status_code == 200
    assert (await page.delete("/agent/secrets/MISSING")).status_code == 404
    assert (await page.delete("/console/session")).status_code == 204
    name = (await admin.http.get("/agent/me")).json()["name"]
    found = (await entries(admin, user=name))[::-1]
    assert [entry["action"] for entry in found] == ["session.begin", "delete_secret", "session.end"]
    assert len({entry["session_id"] for entry in found}) == 1
    await api.resources.store.users.revoke_token((await api.person()).token_id)
    made = [entry["action"] for entry in await entries(admin) if entry["user"] == "operator"]
    assert made[:2] == ["token.revoke", "token.create"]


async def test_users_see_what_they_did_and_administrators_what_everybody_did(api: Api, person: Person) -> None:
    admin, other = await api.person(Tier.ADMIN), await api.person()
    await other.http.delete("/agent/secrets/THEIRS")
    assert await entries(person) == []
    name = (await other.http.get("/agent/me")).json()["name"]
    assert [entry["target"] for entry in await entries(admin, user=name)] == ["/agent/secrets/THEIRS"]
    refused = await person.http.get("/agent/audit", params={"user": name})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


async def test_pages_have_every_entry_once_in_both_directions(person: Person) -> None:
    for number in range(5):
        await person.http.delete(f"/agent/secrets/S{number}")
    newest = [entry["seq"] for entry in await entries(person)]
    seen, cursor = list[int](), None
    while True:
        asked = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
        page = (await person.http.get("/agent/audit", params=asked)).json()
        seen += [entry["seq"] for entry in page["entries"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == newest
    seen, after = [], 0
    while page := await entries(person, after=after, limit=2):
        seen += [entry["seq"] for entry in page]
        after = seen[-1]
    assert seen == newest[::-1]


async def test_nothing_is_changed_that_cannot_be_written_down(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> int:
        raise Unavailable("the database does not answer", part="database")

    hook = {"source": "/ci", "type": "build.done"}
    with monkeypatch.context() as patched:
        patched.setattr(api.resources.store.audit, "begin", away)
        assert (await person.http.put("/api/v1/hooks/ci", json=hook)).status_code == 503
    assert (await person.http.get("/api/v1/hooks")).json()["hooks"] == []


async def test_no_request_changes_an_entry(person: Person) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await person.http.request(method, "/agent/audit")).status_code == 405


async def test_what_is_not_written_down_are_operations_that_there_are(api: Api) -> None:
    paths = api.app.openapi()["paths"]
    there = {operation["operationId"] for methods in paths.values() for operation in methods.values()}
    assert there >= NOT_WRITTEN_DOWN


# --- preferences ---


async def test_preferences_are_given_back_as_they_were_put(person: Person) -> None:
    empty = await person.http.get("/agent/preferences")
    assert (empty.json(), empty.headers["etag"]) == ({}, '"0"')
    value = {"theme": "dark", "views": [{"name": "mine", "status": ["failed"]}]}
    put = await person.http.put("/agent/preferences", json=value, headers={"If-Match": '"0"'})
    assert (put.status_code, put.headers["etag"]) == (200, '"1"')
    found = await person.http.get("/agent/preferences")
    assert (found.json(), found.headers["etag"]) == (value, '"1"')


async def test_preferences_that_were_changed_meanwhile_are_not_overwritten(person: Person) -> None:
    for value in ({"a": 1}, {"a": 2}):
        await person.http.put("/agent/preferences", json=value)
    late = await person.http.put("/agent/preferences", json={"a": 3}, headers={"If-Match": '"1"'})
    assert (late.status_code, late.json()["code"]) == (409, "conflict")
    assert (await person.http.get("/agent/preferences")).json() == {"a": 2}


@pytest.mark.parametrize(("chars", "status"), [(16 * 1024 - 8, 200), (16 * 1024 - 7, 413)])
async def test_preferences_have_a_size(person: Person, chars: int, status: int) -> None:
    answer = await person.http.put("/agent/preferences", json={"a": "x" * chars})
    assert answer.status_code == status


@pytest.mark.parametrize(("content", "headers"), [("[]", {}), ('{"a": NaN}', {}), ("{}", {"If-Match": "x"})])
async def test_preferences_that_cannot_be_are_refused(person: Person, content: str, headers: dict[str, str]) -> None:
    sent = {"Content-Type": "application/json", **headers}
    assert (await person.http.put("/agent/preferences", content=content, headers=sent)).status_code == 422


async def test_preferences_are_each_users_own(api: Api, person: Person) -> None:
    await person.http.put("/agent/preferences", json={"a": 1})
    assert (await (await api.person()).http.get("/agent/preferences")).json() == {}
