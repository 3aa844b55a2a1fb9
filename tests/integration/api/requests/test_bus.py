"""The event bus as the API's users see it: what is taken, what is given back, and to whom."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from backplane.domain.bus import BATCH_MAX, EVENT_MAX_BYTES
from backplane.store.bus.events import EventBus
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENTS = "/api/v1/events"
STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


def event(id: str = "1", **more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id, "source": "/shop", "type": "order.created", **more}


async def post(person: Person, body: Any, kind: str = STRUCTURED, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await person.http.post(EVENTS, content=content, headers={"Content-Type": kind, **headers})


async def listed(person: Person, **parameters: Any) -> Any:
    answer = await person.http.get(EVENTS, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_event_is_stored_and_given_back_as_it_was(person: Person) -> None:
    whole = event(subject="42", time="2026-01-31T09:00:00Z", data={"total": 19.5, "name": "Zoë"}, traceid="ab", n=1)
    answer = await post(person, whole)
    assert (answer.status_code, answer.json()) == (
        201,
        {"id": "1", "source": "/shop", "cursor": 1, "duplicate": False},
    )
    assert await listed(person) == {"events": [whole], "cursor": 1, "has_more": False, "missing": False}


async def test_an_event_that_comes_again_is_answered_with_its_place(person: Person) -> None:
    await post(person, event())
    again = await post(person, event(data="something else"))
    assert (again.status_code, again.json()["cursor"], again.json()["duplicate"]) == (200, 1, True)
    assert (await listed(person))["events"] == [event()]


async def test_plain_json_may_leave_the_version_out(person: Person) -> None:
    whole = event()
    del whole["specversion"]
    assert (await post(person, whole, "application/json; charset=utf-8")).status_code == 201
    assert (await post(person, {**whole, "id": "2"}, STRUCTURED)).status_code == 422
    assert (await listed(person))["events"] == [event()]


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("application/json", b'{"a": [1]}', {"data": {"a": [1]}}),
        ("application/vnd.shop+json", b"null", {"data": None}),
        ("text/plain", "Zoë".encode(), {"data": "Zoë"}),
        ("application/octet-stream", b"\xff\x00", {"data_base64": "/wA="}),
        ("text/plain", b"", {}),
    ],
)
async def test_attributes_may_be_headers_and_the_data_the_body(
    person: Person, kind: str, body: bytes, expected: dict[str, Any]
) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "order.created"}
    answer = await post(person, body, kind, **headers, **{"ce-subject": quote("Zoë 1"), "ce-traceid": "ab"})
    assert answer.status_code == 201, answer.text
    expected = {**event(subject="Zoë 1", traceid="ab", datacontenttype=kind), **expected}
    assert (await listed(person))["events"] == [expected]


async def test_a_batch_is_stored_as_a_whole_or_not_at_all(person: Person) -> None:
    refused = await post(person, [event("1"), event("2", type="no type")], BATCH)
    assert (refused.status_code, refused.json()["field"]) == (422, "events.1.type")
    assert (await listed(person))["events"] == []
    answer = await post(person, [event("1"), event("2"), event("1")], BATCH)
    assert answer.status_code == 201
    assert [(each["cursor"], each["duplicate"]) for each in answer.json()["events"]] == [
        (1, False),
        (2, False),
        (1, True),
    ]


async def test_a_list_of_plain_json_is_a_batch(person: Person) -> None:
    events = [{"id": str(number), "source": "/plain", "type": "list.sent"} for number in range(2)]
    answer = await person.http.post("/api/v1/events", json=events)
    assert answer.status_code == 201, answer.text
    assert [event["id"] for event in answer.json()["events"]] == ["0", "1"]


async def test_a_list_with_the_attributes_in_headers_is_the_data_of_one_event(person: Person) -> None:
    headers = {"ce-id": "1", "ce-source": "/plain", "ce-type": "list.sent", "ce-specversion": "1.0"}
    answer = await person.http.post("/api/v1/events", json=[1, 2], headers=headers)
    assert answer.status_code == 201, answer.text
    [event] = (await person.http.get("/api/v1/events", params={"source": "/plain"})).json()["events"]
    assert event["data"] == [1, 2]


async def test_a_batch_has_as_many_events_as_may_be_and_no_more(person: Person) -> None:
    events = [event(str(number)) for number in range(BATCH_MAX + 1)]
    assert (await post(person, events[:-1], BATCH)).status_code == 201
    bodies: list[Any] = [events, [], {}, "x"]
    for body in bodies:
        refused = await post(person, body, BATCH)
        assert (refused.status_code, refused.json()["field"]) == (422, "body")


@pytest.mark.parametrize(
    ("body", "kind", "status", "field"),
    [
        (b"", STRUCTURED, 422, "body"),
        (b"{", STRUCTURED, 422, "body"),
        (b"[" * 300_000, STRUCTURED, 413, None),
        (b"[" * 10_000, STRUCTURED, 422, "body"),
        (b"\xff", STRUCTURED, 422, "body"),
        (b'{"id": "1", "id": "2"}', STRUCTURED, 422, "id"),
        (b"[]", STRUCTURED, 422, "body"),
        (event(type="run.completed"), STRUCTURED, 422, "type"),
        (event(data="\0"), STRUCTURED, 422, "data"),
        (b'{"specversion":"1.0","id":"1","source":"/a","type":"b","data":1e400}', STRUCTURED, 422, "data"),
        (b'{"specversion":"1.0","id":"1","source":"/a","type":"b","data":"\\ud800"}', STRUCTURED, 422, "data"),
        (b'{"specversion":"1.0","id":"\\ud800","source":"/a","type":"b"}', STRUCTURED, 422, "id"),
        (event(data="x" * EVENT_MAX_BYTES), STRUCTURED, 413, None),
        (event(), "text/plain", 422, "Content-Type"),
        (event(), "", 422, "Content-Type"),
    ],
)
async def test_what_is_no_event_is_refused_with_its_place(
    person: Person, body: Any, kind: str, status: int, field: str | None
) -> None:
    refused = await post(person, body, kind)
    assert (refused.status_code, refused.json().get("field")) == (status, field), refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert (await listed(person))["events"] == []


@pytest.mark.parametrize(
    "headers", [{"ce-type": "%ff"}, {"ce-datacontenttype": "text/plain"}, {"ce-data": "x"}, {"ce-a-b": "x"}]
)
async def test_headers_that_are_no_attributes_are_refused(person: Person, headers: dict[str, str]) -> None:
    whole = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "order.created"}
    assert (await post(person, b"{}", "application/json", **{**whole, **headers})).status_code == 422


async def test_pages_are_filtered_and_go_on_behind_their_cursor(person: Person) -> None:
    made = [event(str(number), type=type) for number, type in enumerate(["a.b", "a.c", "b", "a.b.c"], 1)]
    await post(person, made, BATCH)
    page = await listed(person, type="a.*", limit=2)
    assert ([each["id"] for each in page["events"]], page["cursor"], page["has_more"]) == (["1", "2"], 2, True)
    page = await listed(person, type="a.*", after=page["cursor"])
    assert ([each["id"] for each in page["events"]], page["cursor"], page["has_more"]) == (["4"], 4, False)
    page = await listed(person, type=["b", "a.c"])
    assert [each["id"] for each in page["events"]] == ["2", "3"]
    assert (await listed(person, source="/other"))["events"] == []
    assert len((await listed(person, source=["/other", "/shop"]))["events"]) == 4


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"after": -1}, "after"),
        ({"after": 2**63}, "after"),
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"type": "*.a"}, "type"),
        ({"type": ["a"] * 11}, "type"),
        ({"source": "x" * 513}, "source"),
        ({"subject": "\0"}, "subject"),
        ({"subject": ["a"] * 11}, "subject"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(person: Person, parameters: dict[str, Any], field: str) -> None:
    answer = await person.http.get(EVENTS, params=parameters)
    assert (answer.status_code, answer.json()["field"].split(".")[0]) == (422, field)


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9" * 20, "²"])
async def test_a_stream_begins_behind_no_cursor_that_is_no_number(person: Person, cursor: str) -> None:
    answer = await person.http.get(f"{EVENTS}/stream", params={"after": cursor})
    assert (answer.status_code, answer.json()["field"]) == (422, "after")


async def test_a_cursor_that_was_never_given_is_reported(person: Person) -> None:
    await post(person, event())
    assert await listed(person, after=9) == {"events": [], "cursor": 1, "has_more": False, "missing": True}


async def test_nobody_sees_events_of_another(api: Api, person: Person) -> None:
    other = await api.person()
    await post(person, event())
    assert await listed(other) == {"events": [], "cursor": 0, "has_more": False, "missing": False}
    assert (await post(other, event())).json()["cursor"] == 1


async def test_the_user_may_keep_as_many_events_as_the_setting_says(start_api: StartApi) -> None:
    api = await start_api(user_max_bus_events=2)
    ada, eve = await api.person(), await api.person()
    assert (await post(ada, [event("1"), event("2")], BATCH)).status_code == 201
    refused = await post(ada, event("3"))
    assert (refused.status_code, refused.json()["code"]) == (413, "storage_quota_exceeded")
    assert (await post(ada, event("2"))).status_code == 200
    assert (await post(eve, event("3"))).status_code == 201


async def test_each_event_of_a_batch_counts_as_a_call(start_api: StartApi) -> None:
    api = await start_api(api_rate_per_second=1, api_rate_burst=5)
    ada, bob = await api.person(), await api.person()
    four = [event(str(number)) for number in range(4)]
    assert (await post(ada, four, BATCH)).status_code == 201
    refused = await post(ada, four, BATCH)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert (await post(bob, event())).status_code == 201


async def test_metrics_count_what_was_posted(start_api: StartApi) -> None:
    api = await start_api()
    ada = await api.person()
    await post(ada, [event("1"), event("1")], BATCH)
    text = (await ada.http.get("/metrics")).text
    assert 'agent_bus_events_posted_total{by="user",result="stored"} 1.0' in text
    assert 'agent_bus_events_posted_total{by="user",result="duplicate"} 1.0' in text
    assert 'agent_bus_announcements_total{result="published"} 1.0' in text


async def test_a_call_whose_commit_is_lost_may_be_sent_again(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = EventBus.publish

    async def lost(*arguments: Any) -> Any:
        await publish(*arguments)
        raise ConnectionResetError

    with monkeypatch.context() as patched:
        patched.setattr(EventBus, "publish", lost)
        assert (await post(person, event())).status_code == 500
    assert (await post(person, event())).json()["duplicate"]
    assert len((await listed(person))["events"]) == 1
