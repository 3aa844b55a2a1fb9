"""Attacks on agents: names, states, messages and cursors that nobody means, and mailboxes that somebody fills.

Each gets a refusal that says why; nothing of it is kept, and nobody else is held up."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pytest

from backplane.domain.users import Tier
from backplane.errors import Unavailable
from backplane.settings import fixed
from tests.integration.api.live_agents import AGENTS, POOL, act, agent_stream, process, send, show, spawn
from tests.integration.api.running import Api, Person, StartApi
from tests.waiting import wait_until

SPAWN = f"{AGENTS}/pools/{POOL}/agents"
MIB = 1024 * 1024


def refusal(answer: Any) -> tuple[int, str]:
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert body["detail"], answer.text
    return answer.status_code, body["code"]


@pytest.mark.slow
async def test_a_name_that_is_none_makes_no_agent(api: Api, person: Person) -> None:
    names: list[Any] = [
        "",
        " ",
        "Ada",
        "a b",
        "../a",
        "a/b",
        "a\0b",
        "-a",
        "ä",
        "a\n",
        "a" * 65,
        "\ud800",
        None,
        1,
        ["a"],
    ]
    for name in names:
        body = json.dumps({"name": name}).encode()
        answer = await person.http.post(SPAWN, content=body, headers={"Content-Type": "application/json"})
        assert refusal(answer)[0] == 422, name
    for pool in ("Pool", "..", "a%00b", "%2e%2e", "x" * 65):
        answer = await person.http.post(f"{AGENTS}/pools/{pool}/agents", json={"name": "ada"})
        assert answer.status_code in (404, 405, 422), pool
    assert refusal(await person.http.post(f"{AGENTS}/pools/nowhere/agents", json={"name": "ada"})) == (404, "not_found")
    assert (await person.http.get(AGENTS)).json()["agents"] == []


@pytest.mark.slow
async def test_ids_that_are_none_are_refused_and_find_nothing(person: Person) -> None:
    for wrong in ("1", "pools", "..", "%00", "a" * 2000, "01936F7E-9F5C-7B3A-8C41-3D5E0F9A2B6C"):
        answer = await person.http.get(f"{AGENTS}/{wrong}/explain")
        assert answer.status_code in (404, 414, 422), wrong


async def test_a_state_of_ten_megabytes_is_refused_and_the_one_before_stays(api: Api, person: Person) -> None:
    agent_id = await spawn(person, state={"kept": True})
    path = f"{AGENTS}/{agent_id}/state"
    # The API reads no more of it than it takes, and closes the connection.
    once = api.client({"Authorization": f"Bearer {person.token}"})
    assert refusal(await once.put(path, json={"state": {"a": "x" * (10 * MIB)}})) == (413, "too_large")
    too_large = {"a": "x" * fixed.AGENT_STATE_MAX_BYTES}
    assert refusal(await person.http.put(path, json={"state": too_large})) == (413, "too_large")
    assert refusal(await person.http.post(SPAWN, json={"name": "b", "state": too_large})) == (413, "too_large")
    assert (await person.http.get(path)).json() == {"state": {"kept": True}, "version": 0}
    fits = {"a": "x" * (fixed.AGENT_STATE_MAX_BYTES - len('{"a": ""}'))}
    assert (await person.http.put(path, json={"state": fits})).status_code == 200


STATES = (
    '{"a": "\\u0000"}',
    '{"a": "\\ud800"}',
    '{"\\u0000": 1}',
    '{"a": NaN}',
    '{"a": 1e999}',
    '{"a": 1, "a": 2}',
    "[]",
    "null",
    '"text"',
    "{" + '"a":{' * 200 + "}" * 200 + "}",
    '{"a": [' + ",".join("1" * 60_000) + "]}",
)


@pytest.mark.slow
async def test_a_state_that_not_every_database_takes_is_refused(person: Person) -> None:
    path = f"{AGENTS}/{await spawn(person)}/state"
    for state in STATES:
        body = f'{{"state": {state}}}'.encode()
        answer = await person.http.put(path, content=body, headers={"Content-Type": "application/json"})
        assert refusal(answer)[0] in (413, 422), state[:80]
    assert (await person.http.get(path)).json() == {"state": {}, "version": 0}


@pytest.mark.slow
async def test_a_message_that_is_none_is_refused_and_takes_no_turn(person: Person) -> None:
    agent_id = await spawn(person)
    wrong: list[dict[str, Any]] = [
        {},
        {"text": ""},
        {"text": None},
        {"text": "a\0b"},
        {"text": "x" * (fixed.PROMPT_MAX_CHARS + 1)},
        {"text": "a", "data": "x" * (fixed.HANDLER_VALUE_MAX_BYTES + 1)},
        {"text": "a", "data": {"b": "\0"}},
        {"text": "a", "priority": "urgent"},
        {"text": "a", "ttl_seconds": 0},
        {"text": "a", "ttl_seconds": 10**9},
        {"text": "a", "ttl_seconds": "60"},
        {"text": "a", "wait_seconds": -1},
        {"text": "a", "wait_seconds": 61},
        {"text": "a", "turn": 7},
        {"text": "a", "agent_id": "x"},
    ]
    for body in wrong:
        answer = await person.http.post(f"{AGENTS}/{agent_id}/messages", json=body)
        assert refusal(answer) == (422, "invalid_input"), str(body)[:80]
    assert (await show(person, agent_id))["turns"] == 0


@pytest.mark.slow
async def test_cursors_of_the_conversation_that_are_none_are_refused(person: Person) -> None:
    agent_id = await spawn(person)
    for cursor in ("-1", "x", "1.5", str(2**31), "9" * 100, "\0"):
        answer = await person.http.get(f"{AGENTS}/{agent_id}/messages", params={"cursor": cursor})
        assert refusal(answer) == (422, "invalid_input"), cursor
    for cursor in ("x", "0", "' OR 1=1 --"):
        assert refusal(await person.http.get(AGENTS, params={"cursor": cursor}))[0] == 422


@pytest.mark.slow
async def test_no_run_can_be_put_into_the_queue_of_an_agent_by_its_name(person: Person) -> None:
    agent_id = await spawn(person)
    for queue in (f"agent:{agent_id}", "agent:*", "agent:"):
        assert (await person.act("run", prompt="x", queue=queue)).status_code == 422


async def test_a_full_mailbox_says_so_and_leaves_other_agents_alone(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "AGENT_MAILBOX_MAX", 3)
    full, other = await spawn(person), await spawn(person, "other")
    for _ in range(3):
        await send(person, full)
    refused = await person.http.post(f"{AGENTS}/{full}/messages", json={"text": "one more"})
    assert refusal(refused) == (429, "mailbox_full")
    assert int(refused.headers["Retry-After"]) > 0
    assert full in refused.json()["detail"]
    assert (await show(person, full))["turns"] == 3
    await send(person, other)
    page = (await person.http.get(f"{AGENTS}/{full}/messages")).json()
    await person.act("cancel", page["messages"][0]["run_id"])
    await send(person, full)


@pytest.mark.slow
async def test_a_hundred_thousand_messages_to_one_agent_fill_its_mailbox_and_nothing_else(start_api: StartApi) -> None:
    """As many as a few clients send in some seconds: what they would send for hours is refused in the same way."""
    api = await start_api()
    hostile, other = await api.person(), await api.person()
    await process(api)
    agent_id, theirs = await spawn(hostile), await spawn(other)
    answers = Counter[int]()

    async def flood(count: int) -> None:
        for _ in range(count):
            answer = await hostile.http.post(f"{AGENTS}/{agent_id}/messages", json={"text": "x"})
            answers[answer.status_code] += 1
            if answer.status_code == 429:
                assert answer.json()["code"] == "mailbox_full"

    # The first fill it; what comes then is refused, and the more slowly the faster it comes.
    await asyncio.gather(*(flood(130) for _ in range(8)))
    assert answers.keys() == {202, 429}
    assert answers[202] == fixed.AGENT_MAILBOX_MAX + 1  # and the one that is open
    flooding = [asyncio.create_task(flood(100_000)) for _ in range(8)]
    try:
        began = time.monotonic()
        for _ in range(10):
            await send(other, theirs)
        assert time.monotonic() - began < 10
        assert answers[202] == fixed.AGENT_MAILBOX_MAX + 1
    finally:
        for task in flooding:
            task.cancel()
        await asyncio.wait(flooding)
    assert (await act(hostile, agent_id, "pause")).status_code == 200


@pytest.mark.slow
async def test_names_that_come_at_the_same_moment_make_one_agent(person: Person) -> None:
    answers = await asyncio.gather(*(person.http.post(SPAWN, json={"name": "ada"}) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["agent_id"] for answer in answers}) == 1


@pytest.mark.slow
async def test_messages_that_come_at_the_same_moment_have_turns_without_holes(person: Person) -> None:
    agent_id = await spawn(person)
    sent = await asyncio.gather(*(send(person, agent_id, str(number)) for number in range(20)))
    assert sorted(message["turn"] for message in sent) == list(range(1, 21))


@pytest.mark.slow
async def test_callers_that_wait_for_answers_hold_up_no_other_call_of_their_user(person: Person) -> None:
    agent_id = await spawn(person)
    body = {"text": "x", "wait_seconds": 60}
    waiting = [asyncio.create_task(person.http.post(f"{AGENTS}/{agent_id}/messages", json=body)) for _ in range(12)]

    async def all_sent() -> bool:
        turns: int = (await show(person, agent_id))["turns"]
        return turns == 12

    try:
        await wait_until(all_sent)
    finally:
        await act(person, agent_id, "terminate", remove_messages=True)
        answers = await asyncio.gather(*waiting)
    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "cancelled")}


# --- other users' agents ---


@pytest.mark.slow
async def test_another_users_agent_is_found_by_no_call(start_api: StartApi) -> None:
    api = await start_api()
    owner, stranger = await api.person(), await api.person(Tier.ADMIN)
    await process(api)
    agent_id = await spawn(owner, state={"kept": True})
    run_id = (await send(owner, agent_id, "mine"))["run_id"]
    waiting_id = (await send(owner, agent_id, "mine too"))["run_id"]
    agent, run = f"{AGENTS}/{agent_id}", f"/agent/runs/{run_id}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", agent, None),
        ("PATCH", agent, {"metadata": {}}),
        ("DELETE", agent, None),
        ("GET", f"{agent}/explain", None),
        ("GET", f"{agent}/state", None),
        ("PUT", f"{agent}/state", {"state": {}}),
        ("PUT", f"{agent}/state", {"state": {}, "version": 0}),
        ("GET", f"{agent}/messages", None),
        ("POST", f"{agent}/messages", {"text": "hello"}),
        ("POST", f"{agent}/messages", {"text": "hello", "wait_seconds": 1}),
        ("GET", f"{agent}/stream", None),
        ("GET", f"{agent}/stream?after=now", None),
        ("GET", f"{agent}/stream?after=1-1", None),
        ("POST", f"{agent}/pause", None),
        ("POST", f"{agent}/resume", None),
        ("POST", f"{agent}/terminate?force=true&remove_messages=true", None),
        *(
            ("GET", f"/agent/runs/{one}{path}", None)
            for one in (run_id, waiting_id)
            for path in ("", "/explain", "/files")
        ),
        ("GET", f"{run}/files/a.txt", None),
        ("GET", f"{run}/plans", None),
        ("GET", f"{run}/model-calls", None),
        ("GET", f"{run}/decisions", None),
        ("DELETE", run, None),
        ("GET", f"/agent/logs/{run_id}", None),
        ("GET", f"/agent/logs/{run_id}/stream", None),
        *(
            ("POST", "/agent/execute", {"action": action, "run_id": one})
            for one in (run_id, waiting_id)
            for action in ("start", "cancel", "retry", "replay")
        ),
        ("POST", "/agent/execute", {"action": "fork", "run_id": run_id}),
        ("POST", f"{run}/export", {}),
    ]
    for method, path, body in calls:
        answer = await stranger.http.request(method, path, json=body, headers={"Idempotency-Key": "same"})
        assert answer.status_code == 404, (method, path, answer.text)
        assert "mine" not in answer.text
    for path in (AGENTS, f"{AGENTS}?terminated=true&name=ada", f"{AGENTS}?id_beginning={agent_id}"):
        assert (await stranger.http.get(path)).json()["agents"] == [], path
    for path in ("/agent/runs", f"/agent/runs?id_beginning={run_id}"):
        assert (await stranger.http.get(path)).json()["runs"] == [], path
    after_ones_own = await stranger.http.get(f"{AGENTS}?cursor={agent_id}")
    assert after_ones_own.json()["agents"] == []
    shown = await show(owner, agent_id)
    assert (shown["turns"], shown["status"], shown["paused_at"]) == (2, "working", None)
    assert (await owner.http.get(f"{agent}/state")).json() == {"state": {"kept": True}, "version": 0}


# --- many at once ---


@pytest.mark.slow
async def test_of_a_hundred_who_put_a_state_of_one_version_one_succeeds(person: Person) -> None:
    path = f"{AGENTS}/{await spawn(person)}/state"
    bodies = [{"state": {"by": number}, "version": 0} for number in range(100)]
    answers = await asyncio.gather(*(person.http.put(path, json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 99
    [put] = [answer.json() for answer in answers if answer.status_code == 200]
    assert (await person.http.get(path)).json() == put == {"state": put["state"], "version": 1}


@pytest.mark.slow
async def test_a_name_that_two_users_spawn_a_hundred_times_at_once_is_two_agents(api: Api) -> None:
    people = [await api.person(), await api.person()]
    answers = await asyncio.gather(
        *(people[number % 2].http.post(SPAWN, json={"name": "ada"}) for number in range(100))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 98 + [201] * 2
    assert len({answer.json()["agent_id"] for answer in answers}) == 2
    assert {answer.json()["number"] for answer in answers} == {1, 2}


@pytest.mark.slow
async def test_a_pool_that_is_deleted_while_agents_are_spawned_has_them_or_is_gone(api: Api, person: Person) -> None:
    admin = await api.person(Tier.ADMIN)
    for number in range(10):
        pool = f"pool-{number}"
        made = await admin.http.post(f"{AGENTS}/pools", json={"name": pool, "role": "developer"})
        assert made.status_code == 201
        spawning = (person.http.post(f"{AGENTS}/pools/{pool}/agents", json={"name": f"a{one}"}) for one in range(5))
        deleted, *spawned = await asyncio.gather(admin.http.delete(f"{AGENTS}/pools/{pool}"), *spawning)
        there = [answer.status_code for answer in spawned].count(201)
        assert {answer.status_code for answer in spawned} <= {201, 404}
        assert (deleted.status_code, there) in ((204, 0), *((409, count) for count in range(1, 6)))


@pytest.mark.slow
async def test_whoever_waits_without_room_for_a_stream_is_told_that_the_message_was_taken(start_api: StartApi) -> None:
    """Refused, it would be sent again, and be there twice."""
    api = await start_api(stream_watchers_user_max=1)
    person = await api.person()
    agent_id = await spawn(person)
    async with agent_stream(person, agent_id):
        await wait_until(lambda: api.app.state.context.hub.watchers == 1)
        message = await send(person, agent_id, "hello", wait_seconds=30)
    assert (message["turn"], (await show(person, agent_id))["turns"]) == (1, 1)


@pytest.mark.slow
async def test_whoever_waits_while_redis_is_away_is_told_that_the_message_was_taken(start_api: StartApi) -> None:
    api = await start_api(redis_url="redis://127.0.0.1:1/0")
    person = await api.person()
    agent_id = await spawn(person)
    message = await send(person, agent_id, "hello", wait_seconds=30)
    assert (message["turn"], (await show(person, agent_id))["turns"]) == (1, 1)


@pytest.mark.slow
async def test_a_page_of_the_largest_messages_is_cut_and_goes_on(api: Api, person: Person) -> None:
    agent_id = await spawn(person)
    data = [["x"] * 100 for _ in range(450)]
    for number in range(40):
        await send(person, agent_id, "y" * 100_000, data={"number": number, "data": data})
    found, cursor, largest = list[int](), None, 0
    while True:
        parameters = {"limit": 200, "oldest_first": True, **({} if cursor is None else {"cursor": cursor})}
        answer = await person.http.get(f"{AGENTS}/{agent_id}/messages", params=parameters)
        page = answer.json()
        largest = max(largest, len(answer.content))
        found += [message["data"]["number"] for message in page["messages"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == list(range(40))
    assert largest < 6 * MIB


@pytest.mark.slow
async def test_an_agent_whose_files_cannot_be_removed_now_is_deleted_later(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its row nobody would find its files."""
    agent_id = await spawn(person)
    await act(person, agent_id, "terminate")

    async def away(user_id: str, run_id: str) -> None:
        raise Unavailable("the store does not answer", part="workspace")

    with monkeypatch.context() as patched:
        patched.setattr(api.resources.workspaces, "remove", away)
        assert refusal(await person.http.delete(f"{AGENTS}/{agent_id}"))[0] == 503
    assert (await show(person, agent_id))["status"] == "terminated"
    assert (await person.http.delete(f"{AGENTS}/{agent_id}")).status_code == 204
