"""Webhooks and what retention leaves, as the API's users see them."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backplane.domain.retention import Expired
from backplane.store.tables import runs
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "https://example.org/hook?team=1"


@pytest.mark.parametrize("action", ["create", "run"])
async def test_a_run_names_its_webhook_and_shows_it(person: Person, action: str) -> None:
    shown = await person.show(await person.make(action, webhook_url=URL))
    assert shown["webhook"] == {
        "url": URL, "event": None, "status": None, "attempts": 0, "last_error": None, "response_code": None,
        "next_at": None,
    }  # fmt: skip
    assert (await person.show(await person.make(action)))["webhook"] is None


@pytest.mark.parametrize(
    "url",
    [
        "", "example.org", "ftp://example.org/", "http://user:secret@example.org/", "http://127.0.0.1/",
        "http://localhost:8000/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://0x7f.1/", "http://2130706433/",
        "http://169.254.169.254/latest/meta-data", "https://example.org/" + "a" * 2048, "http://a\0b/",
    ],
)  # fmt: skip
async def test_a_url_that_is_not_taken_is_answered_422_with_its_field(person: Person, url: str) -> None:
    answer = await person.act("create", prompt="say hello", webhook_url=url)
    assert (answer.status_code, answer.json()["field"]) == (422, "webhook_url")
    assert "secret" not in answer.text


async def test_private_addresses_are_taken_where_the_operator_allows_it(start_api: StartApi) -> None:
    api = await start_api(webhook_allow_private=True)
    person = await api.person()
    await person.make("create", webhook_url="http://127.0.0.1:8080/hook")


async def test_what_became_of_a_webhook_is_shown_with_the_run(api: Api, person: Person) -> None:
    run_id = await person.make("create", webhook_url=URL)
    assert (await person.act("cancel", run_id)).status_code == 200
    shown = (await person.show(run_id))["webhook"]
    assert (shown["event"], shown["status"], shown["attempts"]) == ("run.cancelled", "pending", 0)
    assert shown["next_at"]
    outbox = api.resources.store.webhooks
    [delivery] = await outbox.claim(1, lease_seconds=60.0, user_limit=1, sending={})
    await outbox.failed(delivery, "it answered 410", 410, None)
    shown = (await person.show(run_id))["webhook"]
    assert (shown["status"], shown["attempts"], shown["last_error"], shown["response_code"], shown["next_at"]) == (
        "given_up", 1, "it answered 410", 410, None,
    )  # fmt: skip


async def test_the_secret_is_each_users_own_and_stays_until_it_is_rotated(api: Api, person: Person) -> None:
    answer = await person.http.get("/agent/webhook-secret")
    assert answer.headers["cache-control"] == "no-store"
    secret = answer.json()["secret"]
    assert secret.startswith("whsec_")
    assert (await person.http.get("/agent/webhook-secret")).json() == {"secret": secret, "previous_signs_until": None}
    other = await api.person()
    assert (await other.http.get("/agent/webhook-secret")).json()["secret"] != secret
    rotated = (await person.http.post("/agent/webhook-secret/rotate")).json()
    assert rotated["secret"] != secret
    until = datetime.fromisoformat(rotated["previous_signs_until"])
    assert timedelta(hours=23) < until - datetime.now(UTC) < timedelta(hours=25)
    assert (await person.http.get("/agent/webhook-secret")).json() == rotated


async def ended_long_ago(api: Api, person: Person, lines: int) -> str:
    run_id = await person.make("run")
    worker = await api.worker()
    await worker.say(*["x"] * lines)
    await worker.end()
    ended = update(runs).where(runs.c.id == run_id).values(finished_at=datetime.now(UTC) - timedelta(days=31))
    await api.resources.store.database.write(lambda connection: connection.execute(ended))
    return run_id


async def test_the_stream_of_a_run_whose_events_are_gone_sends_the_gap_and_ends(api: Api, person: Person) -> None:
    run_id = await ended_long_ago(api, person, lines=5)
    whole = await person.watch(run_id)
    assert whole[-1].event == "end"
    retention = api.resources.store.retention
    before = datetime.now(UTC) - timedelta(days=30)
    [leased] = await retention.lease(Expired.EVENTS, before, 10, seconds=60.0)
    await retention.delete_events(await retention.spans([leased.id]))
    frames = await person.watch(run_id)
    assert [frame.event for frame in frames] == ["gap", "end"]
    assert frames[-1].id == whole[-1].id
    assert frames[0].data == {"after": 0, "before": whole[-1].id, "reason": "not kept"}
    # Whoever had seen some of it goes on to the end, too.
    assert [frame.event for frame in await person.watch(run_id, last_event_id=3)] == ["gap", "end"]
    page = (await person.http.get(f"/agent/logs/{run_id}")).json()
    assert ([event["type"] for event in page["events"]], page["ended"]) == (["end"], True)


async def test_a_run_that_is_gone_is_not_found(api: Api, person: Person) -> None:
    run_id = await ended_long_ago(api, person, lines=1)
    retention = api.resources.store.retention
    before = datetime.now(UTC) - timedelta(days=30)
    [leased] = await retention.lease(Expired.RUN, before, 10, seconds=60.0)
    assert (await person.show(run_id))["files_expired_at"]
    put = await person.http.put(f"/agent/runs/{run_id}/files/late.txt", content=b"x")
    assert (put.status_code, put.json()["code"]) == (409, "conflict")
    await retention.delete_runs([leased.id])
    for path in (f"/agent/runs/{run_id}", f"/agent/logs/{run_id}", f"/agent/logs/{run_id}/stream"):
        assert (await person.http.get(path)).status_code == 404
