"""`agentctl events publish|list|watch` and `agentctl hooks` as scripts rely on them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_api import answer, event_stream, problem, raw
from tests.unit.conftest import Agentctl, Script

SECRET = "whsec_" + "A" * 32
HOOK = {
    "name": "ci",
    "path": "/api/v1/hooks/abc",
    "kind": "github",
    "type": "ci.pushed",
    "created_at": "2026-01-01T00:00:00+00:00",
    "updated_at": "2026-01-02T00:00:00+00:00",
}


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": str(number), "source": "/shop", "type": "order.created", **more}


def stream(*frames: tuple[str, str, dict[str, Any]]) -> bytes:
    text = "".join(f"id: {id}\nevent: {type}\ndata: {json.dumps(data)}\n\n" for id, type, data in frames).encode()
    return event_stream(text)


@pytest.mark.parametrize(("duplicate", "says"), [(False, "is published"), (True, "was there already")])
def test_an_event_is_published_as_a_cloud_event(script: Script, agentctl: Agentctl, duplicate: bool, says: str) -> None:
    api = script(answer(201, {"id": "7", "source": "/ci", "cursor": 3, "duplicate": duplicate}))
    given = ("--data", '{"a": 1}', "--source", "/ci", "--id", "7", "--subject", "main")
    code, printed, _ = agentctl("events", "publish", "build.done", *given)
    [asked] = api.requests
    sent = json.loads(asked.body)
    assert (code, says in printed) == (0, True)
    assert asked.path == "/api/v1/events"
    assert asked.headers["Content-Type"] == "application/cloudevents+json"
    assert sent.pop("time")
    assert sent == {
        "specversion": "1.0",
        "id": "7",
        "source": "/ci",
        "type": "build.done",
        "subject": "main",
        "datacontenttype": "application/json",
        "data": {"a": 1},
    }


def test_an_event_gets_an_id_which_stays_when_it_is_sent_again(script: Script, agentctl: Agentctl) -> None:
    published = {"id": "x", "source": "agentctl", "cursor": 1, "duplicate": False}
    api = script(problem(503, "part_unavailable", "away"), answer(201, published))
    assert agentctl("events", "publish", "a.b", "--json")[0] == 0
    first, again = (json.loads(request.body)["id"] for request in api.requests)
    assert first == again
    assert len(first) == 36


def test_data_that_is_no_json_is_not_sent(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(201, {}))
    code, _, noted = agentctl("events", "publish", "a.b", "--data", "hello")
    assert (code, "--data is no JSON" in noted, api.requests) == (2, True, [])


def test_events_are_listed_page_by_page(script: Script, agentctl: Agentctl) -> None:
    first = {"events": [event(1, data={"a": "\x1b[2J"})], "cursor": 1, "has_more": True, "missing": True}
    second = {"events": [event(2, subject="42")], "cursor": 2, "has_more": False, "missing": False}
    api = script(answer(200, first), answer(200, second))
    code, printed, noted = agentctl("events", "list", "--type", "order.*", "--type", "till")
    assert code == 0
    assert "type=order.%2A" in api.requests[0].path or "type=order.*" in api.requests[0].path
    assert "type=till" in api.requests[1].path
    assert "after=1" in api.requests[1].path
    assert "order.created" in printed
    assert "\x1b[2J" not in printed
    assert "not kept any more" in noted
    script(answer(200, first), answer(200, second))
    _, printed, _ = agentctl("events", "list", "--json")
    assert [each["id"] for each in json.loads(printed)["events"]] == ["1", "2"]


def test_no_more_events_are_listed_than_asked_for(script: Script, agentctl: Agentctl) -> None:
    page = {"events": [event(1)], "cursor": 1, "has_more": True, "missing": False}
    api = script(answer(200, page))
    code, _, noted = agentctl("events", "list", "--limit", "1")
    assert (code, len(api.requests), "--after 1" in noted) == (0, 1, True)


def test_events_are_shown_as_they_come_and_missing_ones_are_reported(script: Script, agentctl: Agentctl) -> None:
    gap = ("5", "gap", {"type": "gap", "after": 1, "before": 6, "reason": "not kept"})
    frames = stream(gap, ("6", "order.created", event(6, data="\x1b[2J", subject="42")))
    refused = problem(401, "unauthenticated", "no")
    api = script(frames, refused)
    code, printed, noted = agentctl("events", "watch", "--after", "1", "--type", "order.*")
    assert code != 0
    assert api.requests[0].headers["Last-Event-ID"] == "1"
    assert api.requests[1].headers["Last-Event-ID"] == "6"
    assert "order.created  /shop  42" in printed
    assert "\x1b[2J" not in printed
    assert "Events are missing here: not kept" in noted
    api = script(frames, refused)
    _, printed, _ = agentctl("events", "watch", "--json")
    assert "after=now" in api.requests[0].path
    assert [json.loads(line)["cursor"] for line in printed.splitlines()] == [5, 6]


def test_a_hook_is_made_and_its_secret_shown_with_its_whole_url(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {**HOOK, "secret": SECRET}))
    code, printed, _ = agentctl("hooks", "create", "ci", "--kind", "github", "--type", "ci.pushed")
    assert code == 0
    assert (api.requests[0].method, api.requests[0].path) == ("PUT", "/api/v1/hooks/ci")
    assert json.loads(api.requests[0].body) == {"kind": "github", "rotate": False, "type": "ci.pushed"}
    assert f"{api.url}/api/v1/hooks/abc" in printed
    assert SECRET in printed


def test_a_senders_own_secret_is_read_from_a_file_and_not_shown(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    api = script(answer(200, {**HOOK, "secret": None}))
    (tmp_path / "secret.txt").write_text(f"{SECRET}\n")
    code, printed, noted = agentctl("hooks", "create", "ci", "--secret-from-file", "secret.txt")
    assert code == 0
    assert json.loads(api.requests[0].body)["secret"] == SECRET
    assert SECRET not in printed + noted


def test_a_hook_is_not_made_twice_where_the_first_answer_may_be_lost(script: Script, agentctl: Agentctl) -> None:
    api = script(raw(200, b"", length=10), answer(200, {**HOOK, "secret": SECRET}))
    assert agentctl("hooks", "create", "ci")[0] != 0
    assert len(api.requests) == 1


def test_hooks_are_listed_and_deleted(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"hooks": [HOOK]}))
    code, printed, _ = agentctl("hooks", "list")
    assert (code, "ci.pushed" in printed) == (0, True)
    api = script(raw(204, b""))
    assert agentctl("hooks", "delete", "ci")[0] == 0
    assert (api.requests[0].method, api.requests[0].path) == ("DELETE", "/api/v1/hooks/ci")


def test_an_option_of_the_group_is_refused_when_it_is_given_twice(agentctl: Agentctl) -> None:
    code, _, noted = agentctl("events", "--after", "all", "--after", "now")
    assert (code, "given twice" in noted) == (2, True)
