"""Agents, their pools and their messages as users of the API see them."""

import asyncio
from typing import Any

import httpx
import pytest

from backplane.domain.runs import RunStatus
from backplane.domain.users import Tier
from backplane.settings import fixed
from tests.integration.api.live_agents import (
    AGENTS,
    POOL,
    act,
    explain,
    process,
    send,
    show,
    spawn,
    turn,
)
from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOLS = f"{AGENTS}/pools"
NEW_POOL = {"name": "research_pool", "role": "researcher"}


def codes(explanation: Any) -> list[str]:
    return [reason["code"] for reason in explanation["reasons"]]


async def pool_of(person: Person, name: str) -> Any:
    pools = (await person.http.get(POOLS)).json()["pools"]
    return next(pool for pool in pools if pool["pool_name"] == name)


async def made_pool(api: Api, name: str, **sizes: Any) -> str:
    admin = await api.person(Tier.ADMIN)
    answer = await admin.http.post(POOLS, json={**NEW_POOL, "name": name, **sizes})
    assert answer.status_code == 201, answer.text
    return name


# --- pools ---


async def test_the_four_pools_that_come_along_are_listed_with_their_roles(person: Person) -> None:
    pools = (await person.http.get(POOLS)).json()["pools"]
    roles = {pool["pool_name"]: pool["role"] for pool in pools}
    assert roles.items() >= {
        ("team_leader_pool", "team_leader"),
        ("business_analyst_pool", "business_analyst"),
        ("developer_pool", "developer"),
        ("tester_pool", "tester"),
    }


async def test_a_pool_shows_its_processes_its_places_and_its_agents(api: Api, person: Person) -> None:
    name = await made_pool(api, "counted_pool")
    for _ in range(2):
        await process(api, name)
    for number in range(11):
        await spawn(person, f"agent-{number}", name)
    shown = await pool_of(person, name)
    wanted = {
        "pool_name": name,
        "process_count": 2,
        "total_capacity": 20,
        "used_capacity": 11,
        "available_capacity": 9,
        "agent_count": 11,
        "utilization": 0.55,
        "active_worker_processes": 2,
    }
    assert {key: shown[key] for key in wanted} == wanted


async def test_a_pool_without_processes_is_empty_and_its_agents_are_counted(api: Api, person: Person) -> None:
    name = await made_pool(api, "quiet_pool")
    await spawn(person, "ada", name)
    shown = await pool_of(person, name)
    assert (shown["process_count"], shown["total_capacity"], shown["utilization"]) == (0, 0, 0.0)
    assert (shown["agent_count"], shown["used_capacity"]) == (1, 0)


async def test_an_administrator_makes_changes_and_deletes_a_pool(api: Api) -> None:
    admin = await api.person(Tier.ADMIN)
    made = (await admin.http.post(POOLS, json={**NEW_POOL, "max_processes": 2})).json()
    assert (made["role"], made["agents_per_process"], made["max_processes"]) == ("researcher", 10, 2)
    changed = (await admin.http.patch(f"{POOLS}/research_pool", json={"max_processes": 8})).json()
    assert (changed["max_processes"], changed["role"]) == (8, "researcher")
    assert (await admin.http.delete(f"{POOLS}/research_pool")).status_code == 204
    assert (await admin.http.delete(f"{POOLS}/research_pool")).status_code == 404


@pytest.mark.slow
async def test_a_pool_that_is_there_is_not_made_again(api: Api) -> None:
    name = await made_pool(api, "twice_pool", max_processes=2)
    admin = await api.person(Tier.ADMIN)
    answer = await admin.http.post(POOLS, json={"name": name, "role": "other"})
    assert (answer.status_code, (await pool_of(admin, name))["role"]) == (409, "researcher")


@pytest.mark.slow
async def test_a_pool_with_agents_is_not_deleted(api: Api, person: Person) -> None:
    name = await made_pool(api, "full_pool")
    agent_id = await spawn(person, "ada", name)
    admin = await api.person(Tier.ADMIN)
    assert (await admin.http.delete(f"{POOLS}/{name}")).status_code == 409
    await act(person, agent_id, "terminate")
    assert (await person.http.delete(f"{AGENTS}/{agent_id}")).status_code == 204
    assert (await admin.http.delete(f"{POOLS}/{name}")).status_code == 204


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"agents_per_process": 0}, "agents_per_process"),
        ({"agents_per_process": 10**6}, "agents_per_process"),
        ({"max_processes": 0}, "max_processes"),
        ({"min_processes": -1}, "min_processes"),
        ({"min_processes": 3, "max_processes": 2}, "min_processes"),
        ({"sleep_after_seconds": 0}, "sleep_after_seconds"),
        ({"name": "Research Pool"}, "name"),
        ({"role": "../developer"}, "role"),
        ({"role": None}, "role"),
        ({"size": 3}, "size"),
    ],
)
async def test_a_pool_of_an_impossible_size_or_name_is_refused(api: Api, sizes: Any, field: str) -> None:
    admin = await api.person(Tier.ADMIN)
    answer = await admin.http.post(POOLS, json={**NEW_POOL, **sizes})
    assert (answer.status_code, answer.json().get("field")) == (422, field), answer.text


@pytest.mark.slow
async def test_a_change_that_leaves_less_at_most_than_at_least_is_refused(api: Api) -> None:
    name = await made_pool(api, "sized_pool", min_processes=2, max_processes=4)
    admin = await api.person(Tier.ADMIN)
    answer = await admin.http.patch(f"{POOLS}/{name}", json={"max_processes": 1})
    assert (answer.status_code, answer.json()["field"]) == (422, "min_processes")


# --- agents ---


async def test_the_same_name_again_is_the_same_agent(person: Person) -> None:
    agent_id = await spawn(person, "ada", model="ollama/a", metadata={"team": 7})
    again = await person.http.post(f"{POOLS}/{POOL}/agents", json={"name": "ada", "model": "ollama/b"})
    assert (again.status_code, again.json()["agent_id"], again.json()["model"]) == (200, agent_id, "ollama/a")


@pytest.mark.slow
async def test_two_users_have_agents_of_the_same_name(api: Api, person: Person) -> None:
    other = await api.person()
    assert await spawn(person, "ada") != await spawn(other, "ada")


@pytest.mark.slow
async def test_an_agent_begins_with_the_state_that_it_is_given(person: Person) -> None:
    agent_id = await spawn(person, state={"language": "en"})
    assert (await person.http.get(f"{AGENTS}/{agent_id}/state")).json() == {"state": {"language": "en"}, "version": 0}


@pytest.mark.slow
async def test_agents_are_listed_in_pages_by_pool_and_by_name(api: Api, person: Person) -> None:
    ids = [await spawn(person, f"a{number}") for number in range(3)] + [await spawn(person, "a1", "tester_pool")]

    async def listed(**query: Any) -> list[str]:
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await person.http.get(AGENTS, params={"limit": 2, **query, **({"cursor": cursor} if cursor else {})})
            found += [agent["agent_id"] for agent in page.json()["agents"]]
            cursor = page.json()["next_cursor"]
        return found

    assert await listed() == ids
    assert await listed(pool="tester_pool") == ids[3:]
    assert await listed(name="a1") == [ids[1], ids[3]]
    assert await listed(id_beginning=ids[2][:35]) == [one for one in ids if one.startswith(ids[2][:35])]
    await act(person, ids[0], "terminate")
    assert await listed() == ids[1:]
    assert await listed(terminated="true") == ids


async def test_an_agent_changes_its_model_and_its_metadata(person: Person) -> None:
    agent_id = await spawn(person, metadata={"a": 1})
    path = f"{AGENTS}/{agent_id}"
    changed = (await person.http.patch(path, json={"model": "ollama/b", "metadata": {"b": 2}})).json()
    assert (changed["model"], changed["metadata"]) == ("ollama/b", {"b": 2})
    assert (await person.http.patch(path, json={"model": None})).json()["model"] is None
    assert (await person.http.patch(path, json={})).json()["metadata"] == {"b": 2}


async def test_a_state_is_put_by_who_has_read_its_version(person: Person) -> None:
    path = f"{AGENTS}/{await spawn(person)}/state"
    assert (await person.http.put(path, json={"state": {"a": 1}, "version": 0})).json()["version"] == 1
    late = await person.http.put(path, json={"state": {"a": 2}, "version": 0})
    assert (late.status_code, late.json()["code"]) == (409, "conflict")
    assert (await person.http.put(path, json={"state": {"a": 3}})).json() == {"state": {"a": 3}, "version": 2}


async def test_a_state_is_not_put_while_a_turn_is_open(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    await send(person, agent_id)
    answer = await person.http.put(f"{AGENTS}/{agent_id}/state", json={"state": {}})
    assert (answer.status_code, answer.json()["code"]) == (409, "agent_busy")


# --- messages ---


async def test_a_message_to_a_free_agent_is_queued_at_once_and_the_next_ones_wait(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    sent = [await send(person, agent_id, text) for text in "abc"]
    assert [(one["turn"], one["status"], one["in_mailbox"]) for one in sent] == [
        (1, "queued", False),
        (2, "waiting", True),
        (3, "waiting", True),
    ]
    assert (await show(person, agent_id))["open_run_id"] == sent[0]["run_id"]


async def test_messages_are_answered_one_after_another_in_their_order(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    for text in "abc":
        await send(person, agent_id, text)
    for text in "ABC":
        await (await turn(api, agent_id)).answer(text)
    page = (await person.http.get(f"{AGENTS}/{agent_id}/messages", params={"oldest_first": "true"})).json()
    said = [(one["text"], one["answer"], one["status"]) for one in page["messages"]]
    assert said == [("a", "A", "completed"), ("b", "B", "completed"), ("c", "C", "completed")]
    assert page["next_cursor"] is None


async def test_a_message_to_an_agent_without_a_process_waits_until_there_is_one(api: Api, person: Person) -> None:
    name = await made_pool(api, "sleeping_pool")
    agent_id = await spawn(person, "ada", name)
    sent = await send(person, agent_id)
    assert (sent["status"], (await show(person, agent_id))["status"]) == ("waiting", "waiting")
    await process(api, name)
    second = await send(person, agent_id)
    assert (second["in_mailbox"], (await show(person, agent_id))["open_run_id"]) == (True, sent["run_id"])


@pytest.mark.slow
async def test_the_conversation_comes_in_pages_from_either_end(api: Api, person: Person) -> None:
    agent_id = await spawn(person, pool="tester_pool")
    for number in range(5):
        await send(person, agent_id, str(number))

    async def read(**query: Any) -> tuple[list[str], int | None]:
        page = (await person.http.get(f"{AGENTS}/{agent_id}/messages", params={"limit": 2, **query})).json()
        return [one["text"] for one in page["messages"]], page["next_cursor"]

    assert await read() == (["4", "3"], 4)
    assert await read(cursor=4) == (["2", "1"], 2)
    assert await read(cursor=2) == (["0"], None)
    assert await read(oldest_first="true") == (["0", "1"], 2)
    assert await read(oldest_first="true", cursor=4) == (["4"], None)


async def test_a_message_has_its_data_and_an_answer_that_is_no_text_is_a_value(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    sent = await send(person, agent_id, data={"issue": 7})
    await (await turn(api, agent_id)).answer({"found": [1]})
    page = (await person.http.get(f"{AGENTS}/{agent_id}/messages")).json()
    [message] = page["messages"]
    assert (message["run_id"], message["data"], message["sender"]["kind"]) == (sent["run_id"], {"issue": 7}, "user")
    assert (message["answer"], message["value"]) == (None, {"found": [1]})


async def test_the_same_key_and_body_are_one_message(person: Person) -> None:
    agent_id = await spawn(person)
    path = f"{AGENTS}/{agent_id}/messages"

    async def keyed(text: str, **fields: Any) -> httpx.Response:
        return await person.http.post(path, json={"text": text, **fields}, headers={"Idempotency-Key": "k"})

    first, again = await asyncio.gather(keyed("a"), keyed("a", wait_seconds=0))
    assert first.json()["run_id"] == again.json()["run_id"]
    other = await keyed("b")
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    assert (await show(person, agent_id))["turns"] == 1


async def test_whoever_waits_gets_the_answer_in_the_same_call(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    body = {"text": "hello", "wait_seconds": 20}
    asking = asyncio.create_task(person.http.post(f"{AGENTS}/{agent_id}/messages", json=body))
    await (await turn(api, agent_id)).answer("here you are")
    answer = await asking
    assert (answer.status_code, answer.json()["answer"]) == (200, "here you are")


@pytest.mark.slow
async def test_who_waits_behind_another_message_gets_the_own_answer(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    await send(person, agent_id, "first")
    first = await turn(api, agent_id)
    body = {"text": "second", "wait_seconds": 20}
    asking = asyncio.create_task(person.http.post(f"{AGENTS}/{agent_id}/messages", json=body))
    await first.answer("of the first")
    await (await turn(api, agent_id)).answer("of the second")
    assert (await asking).json()["answer"] == "of the second"


async def test_who_has_waited_for_too_long_gets_the_runs_id(person: Person) -> None:
    agent_id = await spawn(person, pool="tester_pool")
    answer = await person.http.post(f"{AGENTS}/{agent_id}/messages", json={"text": "hello", "wait_seconds": 0.05})
    assert (answer.status_code, answer.json()["status"]) == (202, "waiting")


async def test_a_message_is_a_run_that_can_be_shown_and_cancelled(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    first, second = await send(person, agent_id, "a"), await send(person, agent_id, "b")
    assert (await person.show(second["run_id"]))["error"]["code"] == "in_mailbox"
    assert (await person.act("cancel", first["run_id"])).json()["status"] == "cancelled"
    assert (await show(person, agent_id))["open_run_id"] == second["run_id"]
    assert (await person.show(second["run_id"]))["status"] == "queued"


@pytest.mark.slow
async def test_a_message_has_at_most_the_priority_of_its_users_tier(api: Api) -> None:
    person = await api.person(Tier.BETA)
    agent_id = await spawn(person)
    assert (await send(person, agent_id))["priority"] == "high"
    assert (await send(person, agent_id, priority="low"))["priority"] == "low"
    answer = await person.http.post(f"{AGENTS}/{agent_id}/messages", json={"text": "x", "priority": "critical"})
    assert (answer.status_code, answer.json()["field"]) == (422, "priority")


@pytest.mark.slow
async def test_a_message_with_a_time_limit_says_when_it_expires(person: Person) -> None:
    sent = await send(person, await spawn(person), ttl_seconds=60)
    assert sent["created_at"] < sent["expires_at"]


# --- what changes an agent ---


async def test_a_paused_agent_takes_messages_and_begins_none_until_it_is_resumed(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    assert (await act(person, agent_id, "pause")).json()["status"] == "paused"
    sent = await send(person, agent_id)
    assert sent["in_mailbox"] is True
    resumed = (await act(person, agent_id, "resume")).json()
    assert (resumed["status"], resumed["open_run_id"]) == ("working", sent["run_id"])
    await (await turn(api, agent_id)).answer()


@pytest.mark.slow
async def test_an_agent_that_slept_while_it_was_paused_is_placed_when_it_is_resumed(api: Api, person: Person) -> None:
    name = await made_pool(api, "paused_pool")
    agent_id = await spawn(person, "ada", name)
    await act(person, agent_id, "pause")
    sent = await send(person, agent_id)
    first = await process(api, name)
    resumed = (await act(person, agent_id, "resume")).json()
    assert (resumed["process"], resumed["open_run_id"]) == (first, sent["run_id"])


async def test_a_terminated_agent_takes_no_message_and_keeps_those_that_wait(api: Api, person: Person) -> None:
    agent_id = await spawn(person, pool="tester_pool")
    sent = await send(person, agent_id)
    ended = (await act(person, agent_id, "terminate")).json()
    assert ended["status"] == "terminated"
    refused = await person.http.post(f"{AGENTS}/{agent_id}/messages", json={"text": "more"})
    assert (refused.status_code, refused.json()["code"]) == (409, "agent_terminated")
    assert (await person.show(sent["run_id"]))["status"] == "waiting"
    assert (await person.http.delete(f"{AGENTS}/{agent_id}")).status_code == 409
    await act(person, agent_id, "terminate", remove_messages=True)
    assert (await person.show(sent["run_id"]))["status"] == "cancelled"
    assert (await person.http.delete(f"{AGENTS}/{agent_id}")).status_code == 204
    assert (await person.http.get(f"{AGENTS}/{agent_id}")).status_code == 404
    assert (await person.show(sent["run_id"]))["status"] == "cancelled"


@pytest.mark.slow
async def test_a_turn_that_no_process_has_begun_ends_with_its_agent(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    sent = await send(person, agent_id)
    await act(person, agent_id, "terminate")
    assert (await person.show(sent["run_id"]))["status"] == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
async def test_a_turn_that_is_under_way_is_cancelled_by_force_alone(api: Api, person: Person, force: bool) -> None:
    await process(api)
    agent_id = await spawn(person)
    sent = await send(person, agent_id)
    await turn(api, agent_id)
    await act(person, agent_id, "terminate", force=force)
    run = await person.show(sent["run_id"])
    assert (run["status"], run["cancel_requested"]) == ("running", force)


@pytest.mark.slow
async def test_an_agent_that_lives_is_not_deleted(person: Person) -> None:
    agent_id = await spawn(person)
    assert (await person.http.delete(f"{AGENTS}/{agent_id}")).status_code == 409


@pytest.mark.slow
async def test_a_terminated_agents_name_may_be_given_to_another(person: Person) -> None:
    agent_id = await spawn(person, "ada")
    await act(person, agent_id, "terminate")
    assert await spawn(person, "ada") != agent_id


async def test_a_user_has_no_more_agents_than_may_be(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "AGENTS_MAX_PER_USER", 2)
    for name in ("a", "b"):
        await spawn(person, name)
    answer = await person.http.post(f"{POOLS}/{POOL}/agents", json={"name": "c"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


# --- explanations ---


async def test_an_agent_says_what_it_does(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    assert codes(await explain(person, agent_id)) == ["idle"]
    sent = await send(person, agent_id)
    await send(person, agent_id)
    working = await turn(api, agent_id)
    found = await explain(person, agent_id)
    assert (codes(found), found["status"], found["waiting_messages"]) == (
        ["turn_open", "running", "messages_wait"],
        "working",
        1,
    )
    assert sent["run_id"] in found["text"]
    await working.answer(status=RunStatus.FAILED)
    assert (await explain(person, agent_id))["status"] == "working"


async def test_a_message_in_the_mailbox_says_behind_which_run_and_how_many_it_is(api: Api, person: Person) -> None:
    await process(api)
    agent_id = await spawn(person)
    first = await send(person, agent_id)
    last = [await send(person, agent_id) for _ in range(3)][-1]
    found = (await person.http.get(f"/agent/runs/{last['run_id']}/explain")).json()
    assert codes(found) == ["agent_busy", "messages_ahead"]
    assert first["run_id"] in found["text"]
    assert "2 messages of the mailbox come before it" in found["text"]


async def test_why_no_process_comes_is_shown_by_the_pool_the_agent_and_its_message(api: Api, person: Person) -> None:
    name = await made_pool(api, "short_pool")
    agent_id = await spawn(person, "ada", name)
    sent = await send(person, agent_id)
    await api.resources.agent_registry.write_shortages({name: "pod a has no node"}, keep_seconds=30)
    assert (await pool_of(person, name))["shortage"] == "pod a has no node"
    for path in (f"{AGENTS}/{agent_id}/explain", f"/agent/runs/{sent['run_id']}/explain"):
        found = (await person.http.get(path)).json()
        assert codes(found) == ["no_process"]
        assert "none can be started: pod a has no node" in found["text"]


async def test_a_message_says_that_no_process_takes_its_agents_number(api: Api, person: Person) -> None:
    name = await made_pool(api, "ranged_pool")
    await process(api, name, ranges="2-5")
    agent_id = await spawn(person, "ada", name)
    sent = await send(person, agent_id)
    found = (await person.http.get(f"/agent/runs/{sent['run_id']}/explain")).json()
    assert codes(found) == ["number_not_served"]
    assert "2-5" in found["text"]
    assert codes(await explain(person, agent_id)) == ["number_not_served", "ranges_missing"]


@pytest.mark.slow
async def test_an_open_message_whose_process_is_lost_says_that_there_is_none(api: Api, person: Person) -> None:
    name = await made_pool(api, "lost_pool")
    lost = await process(api, name)
    agent_id = await spawn(person, "ada", name)
    sent = await send(person, agent_id)
    await api.resources.store.agent_processes.deregister(lost)
    found = (await person.http.get(f"/agent/runs/{sent['run_id']}/explain")).json()
    assert codes(found) == ["no_process"]
    assert codes(await explain(person, agent_id)) == ["turn_open", "no_process"]
