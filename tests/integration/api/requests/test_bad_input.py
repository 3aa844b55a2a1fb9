"""What nobody should send, sent: each is an answer that names the value at fault, and none makes a run."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from app.edge.body_limit import VALUES_MAX
from app.schemas.fields import MAX_VALUES
from tests.integration.api.running import PLAN, Api, Person, StartApi, StartWorker
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"


def steps(count: int, **changes: Any) -> dict[str, Any]:
    return {"steps": [{"id": f"s{number}", "tool": "shell", **changes} for number in range(count)]}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"in": value}
    return value


async def send(person: Person, body: bytes, content_type: str = "application/json") -> httpx.Response:
    return await person.http.post("/agent/execute", content=body, headers={"Content-Type": content_type})


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and field."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    return answer.status_code, body["code"], body.get("field")


async def runs_of(person: Person) -> list[Any]:
    listed: list[Any] = (await person.http.get("/agent/runs")).json()["runs"]
    return listed


@pytest.mark.parametrize(("length", "status"), [(0, 422), (1, 201), (100_000, 201), (100_001, 422)])
async def test_a_prompt_has_1_to_100_000_characters(person: Person, length: int, status: int) -> None:
    # Four bytes each: it is characters that are counted.
    answer = await person.act("create", prompt="🦉" * length)
    assert answer.status_code == status
    if status == 422:
        assert refusal(answer) == (422, "invalid_input", "prompt")
    else:
        assert (await person.show(answer.json()["run_id"]))["prompt"] == "🦉" * length


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt"),
    "a prompt that is a number": ({"prompt": 7}, "prompt"),
    "NUL in the prompt": ({"prompt": "a\0b"}, "prompt"),
    "a lone surrogate in the prompt": ({"prompt": "a\ud800b"}, "prompt"),
    "NUL in the metadata": ({"metadata": {"a": "\0"}}, "metadata"),
    "NUL as a name in the metadata": ({"metadata": {"\0": 1}}, "metadata"),
    "a lone surrogate in the metadata": ({"metadata": {"a": ["\udfff"]}}, "metadata"),
    "a lone surrogate in the plan": ({"plan": steps(1, title="\ud800")}, "plan"),
    "NaN in the metadata": ({"metadata": {"a": float("nan")}}, "metadata"),
    "an infinite number in the plan": ({"plan": steps(1, arguments={"a": float("inf")})}, "plan"),
    "metadata too deep": ({"metadata": nested(65)}, "metadata"),
    "a plan too deep": ({"plan": steps(1, arguments=nested(65))}, "plan"),
    "metadata that is a list": ({"metadata": []}, "metadata"),
    "an unknown field": ({"max_retires": 3}, "max_retires"),
    "a field with an endless name": ({"x" * 100_000: 3}, "x" * 200),
    "timeout 0": ({"timeout_seconds": 0}, "timeout_seconds"),
    "timeout over a day": ({"timeout_seconds": 86_401}, "timeout_seconds"),
    "timeout of 64 bits": ({"timeout_seconds": 2**64}, "timeout_seconds"),
    "timeout as text": ({"timeout_seconds": "60"}, "timeout_seconds"),
    "timeout as truth": ({"timeout_seconds": True}, "timeout_seconds"),
    "fewer than no retries": ({"max_retries": -1}, "max_retries"),
    "too many retries": ({"max_retries": 21}, "max_retries"),
}


@pytest.mark.parametrize(("fields", "field"), FIELDS.values(), ids=FIELDS.keys())
async def test_a_value_that_is_not_accepted_is_named(person: Person, fields: dict[str, Any], field: str) -> None:
    body = json.dumps({"action": "run", "prompt": "say hello", **fields}).encode()
    assert refusal(await send(person, body)) == (422, "invalid_input", field)
    assert await runs_of(person) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout_seconds": 1},
        {"timeout_seconds": 86_400},
        {"max_retries": 0},
        {"max_retries": 20},
        {"metadata": nested(60)},
        {"plan": steps(200)},
    ],
    ids=str,
)
async def test_the_last_value_within_each_limit_is_accepted(person: Person, fields: dict[str, Any]) -> None:
    shown = await person.show(await person.make("create", **fields))
    [(name, value)] = fields.items()
    assert len(shown["plan"]["steps"]) == 200 if name == "plan" else shown[name] == value


PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "no steps": ({"steps": []}, "plan.steps"),
    "201 steps": (steps(201), "plan.steps"),
    "an unknown field": (steps(1, argument={}), "plan.steps.0.argument"),
    "no tool": ({"steps": [{"id": "a"}]}, "plan.steps.0.tool"),
    "an id with a space": ({"steps": [{"id": "a b", "tool": "shell"}]}, "plan.steps.0.id"),
    "two steps of one id": ({"steps": [{"id": "a", "tool": "shell"}] * 2}, "plan.steps.1.id"),
    "a need that is no step": (steps(1, needs=["nowhere"]), "plan.steps.0.needs"),
    "a step that needs itself": (steps(1, needs=["s0"]), "plan.steps"),
    "a circle": ({"steps": [{"id": a, "tool": "shell", "needs": [b]} for a, b in ("ab", "bc", "ca")]}, "plan.steps"),
    "a timeout of nothing": (steps(1, timeout_seconds=0), "plan.steps.0.timeout_seconds"),
    "tries without end": (steps(1, retry={"max_attempts": 21}), "plan.steps.0.retry.max_attempts"),
}


@pytest.mark.parametrize(("plan", "field"), PLANS.values(), ids=PLANS.keys())
async def test_a_plan_that_cannot_be_carried_out_is_refused(person: Person, plan: dict[str, Any], field: str) -> None:
    answer = await person.act("create", prompt="x", plan=plan)
    assert refusal(answer) == (422, "invalid_plan", field)


@pytest.mark.parametrize(("values", "status"), [(MAX_VALUES - 20, 201), (MAX_VALUES, 422)])
async def test_a_plan_holds_so_many_values_at_most(person: Person, values: int, status: int) -> None:
    plan = {"steps": [{"id": "a", "tool": "shell", "arguments": {"x": [[]] * values}}]}
    answer = await person.act("create", prompt="x", plan=plan)
    assert answer.status_code == status
    assert status == 201 or f"more than {MAX_VALUES:,} values" in answer.text


@pytest.mark.parametrize(("values", "code"), [(VALUES_MAX - 10, "invalid_input"), (VALUES_MAX, "too_large")])
async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(person: Person, values: int, code: str) -> None:
    body = b'{"action":"create","prompt":"x","metadata":{"a":[' + b"1," * values + b"1]}}"
    answer = await send(person, body)
    assert (answer.status_code, answer.json()["code"]) == (422 if code == "invalid_input" else 413, code)
    assert f"more than {VALUES_MAX if code == 'too_large' else MAX_VALUES:,}" in answer.json()["detail"]


async def test_what_looks_like_values_in_a_text_is_text(person: Person) -> None:
    text = '[1,{"a":2},' * (VALUES_MAX // 10)
    step = {"id": "a", "tool": "file_write", "arguments": {"path": "a", "content": text}}
    answer = await person.act("create", prompt="x", plan={"steps": [step]})
    assert answer.status_code == 201


async def test_a_circle_is_spelt_out(person: Person) -> None:
    answer = await person.act("create", prompt="x", plan=PLANS["a circle"][0])
    assert {"a", "b", "c"} <= set(answer.json()["detail"].split("circle: ")[1].split(" → "))


async def test_an_unknown_tool_that_no_worker_was_there_to_refuse_fails_the_run_at_once(
    api: Api, person: Person, start_worker: StartWorker
) -> None:
    run_id = await person.make(plan=steps(1) | {"steps": [{"id": "a", "tool": "teleport"}]})
    start_worker(api.settings)
    ended = await person.watch(run_id)
    assert ended[-1].data["status"] == "failed"
    shown = await person.show(run_id)
    assert (shown["status"], shown["error"]["code"], shown["attempt"]) == ("failed", "invalid_plan", 1)
    assert "plan.steps.0.tool" in shown["error"]["message"]
    await wait_until(lambda: _nothing_is_running(api))


async def _nothing_is_running(api: Api) -> bool:
    return (await api.resources.queue.statistics()).running == 0


BODIES: dict[str, tuple[bytes, str, str | None]] = {
    "nothing": (b"", "invalid_input", "body"),
    "null": (b"null", "invalid_input", "body"),
    "a list": (b"[]", "invalid_input", "body"),
    "a text": (b'"create"', "invalid_input", "body"),
    "an empty object": (b"{}", "invalid_input", "action"),
    "an unknown action": (b'{"action":"destroy"}', "invalid_input", "action"),
    "an action that is no text": (b'{"action":["create"]}', "invalid_input", "action"),
    "a run id that is none": (b'{"action":"start","run_id":"../x"}', "invalid_input", "run_id"),
    "no run id": (b'{"action":"cancel"}', "invalid_input", "run_id"),
    "half an object": (b'{"action":"create",', "malformed_json", None),
    "two objects": (b"{}{}", "malformed_json", None),
    "invalid UTF-8": (b'{"action":"create","prompt":"\xff\xfe"}', "malformed_json", None),
    "100,000 brackets": (b"[" * 100_000, "malformed_json", None),
    "100,000 objects": (b'{"a":' * 100_000, "malformed_json", None),
    "a number of 5,000 digits": (b'{"action":"start","run_id":' + b"9" * 5000 + b"}", "malformed_json", None),
}


@pytest.mark.parametrize(("body", "code", "field"), BODIES.values(), ids=BODIES.keys())
async def test_a_body_that_is_no_request_is_refused(person: Person, body: bytes, code: str, field: str | None) -> None:
    assert refusal(await send(person, body)) == (422, code, field)


async def test_a_body_that_is_not_sent_as_json_is_refused_with_how_to_send_it(person: Person) -> None:
    answer = await send(person, b'{"action":"create","prompt":"x"}', "text/plain")
    assert refusal(answer) == (422, "invalid_input", "body")
    assert "Content-Type: application/json" in answer.json()["detail"]


async def test_what_was_sent_is_not_repeated_in_the_answer(person: Person) -> None:
    secret = "hunter2-hunter2"
    for fields in (
        {"action": secret},
        {"action": "start", "run_id": secret},
        {"action": "create", "prompt": "x", "metadata": secret},
        {"action": "create", "prompt": "x", "timeout_seconds": secret},
        {"action": "create", "prompt": "x", "plan": {"steps": secret}},
        {"action": "create", "prompt": f"{secret}\0"},
    ):
        answer = await person.http.post("/agent/execute", json=fields)
        assert answer.status_code == 422
        assert secret not in answer.text


async def test_metadata_over_its_limit_is_too_large(person: Person) -> None:
    answer = await person.act("create", prompt="x", metadata={"a": "x" * 16_384})
    assert refusal(answer) == (413, "too_large", None)
    assert "metadata: at most 16384 bytes" in answer.json()["detail"]


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(api: Api, person: Person) -> None:
    head, body = await api.answer_to(
        f"POST /agent/execute HTTP/1.1\r\nHost: x\r\n{bearer(person)}Content-Length: 5000000000\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["code"] == "too_large"


async def test_a_body_that_turns_out_too_large_is_refused_while_it_comes(
    start_api: StartApi,
) -> None:
    api = await start_api(request_max_bytes=65_536)
    person = await api.person()
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"action":"create","prompt":"'
        while sent < 64 * 1024 * 1024:
            sent += 65_536
            yield b"x" * 65_536

    # A client that reads while it writes sees the 413; one that only writes, that nobody listens any more.
    with suppress(httpx.WriteError, httpx.ReadError):
        answer = await person.http.post("/agent/execute", content=endless())
        assert refusal(answer) == (413, "too_large", None)
    assert sent < 64 * 1024 * 1024
    assert await runs_of(person) == []


def bearer(person: Person) -> str:
    return f"Authorization: Bearer {person.token}\r\n"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/agent/runs/nothing", "run_id"),
        (f"/agent/runs/{RUN_ID}x", "run_id"),
        (f"/agent/runs/{RUN_ID.upper()}", "run_id"),
        (f"/agent/runs/{RUN_ID}%0A", "run_id"),
        ("/agent/runs/%00", "run_id"),
        ("/agent/runs?cursor=x", "cursor"),
        ("/agent/runs?status=lost", "status.0"),
        ("/agent/runs?limit=0", "limit"),
        ("/agent/runs?limit=201", "limit"),
        (f"/agent/logs/{RUN_ID}?after=-1", "after"),
        (f"/agent/logs/{RUN_ID}?after=2147483648", "after"),
        (f"/agent/logs/{RUN_ID}?after=x", "after"),
        (f"/agent/logs/{RUN_ID}?limit=501", "limit"),
        (f"/agent/logs/{RUN_ID}/stream?after=-1", "after"),
        (f"/agent/runs/{RUN_ID}/files?prefix={'x' * 901}", "prefix"),
    ],
)
async def test_a_value_in_the_address_that_is_not_accepted_is_named(person: Person, path: str, field: str) -> None:
    assert refusal(await person.http.get(path)) == (422, "invalid_input", field)


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "1e3", "٣", "9" * 11, "0x10"])
async def test_a_last_event_id_that_is_no_number_is_refused(person: Person, cursor: str) -> None:
    run_id = await person.make("create")
    answer = await person.http.get(f"/agent/logs/{run_id}/stream", headers={b"Last-Event-ID": cursor.encode()})
    assert refusal(answer) == (422, "invalid_input", "Last-Event-ID")


# --- Idempotency-Key ---


async def keyed(person: Person, key: str, **fields: Any) -> httpx.Response:
    body = {"action": "run", "prompt": "say hello", "plan": PLAN, **fields}
    return await person.http.post("/agent/execute", json=body, headers={"Idempotency-Key": key})


async def test_the_same_key_and_body_answer_the_same_run(person: Person) -> None:
    first, second = await keyed(person, "key"), await keyed(person, "key")
    assert first.json()["run_id"] == second.json()["run_id"]
    assert len(await runs_of(person)) == 1


async def test_twenty_requests_at_once_with_one_key_make_one_run(api: Api, person: Person) -> None:
    answers = await asyncio.gather(*(keyed(person, "key") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    assert len(await runs_of(person)) == 1
    assert sum((await api.resources.queue.statistics()).queued.values()) == 1


@pytest.mark.parametrize("change", [{"prompt": "another"}, {"action": "create"}, {"metadata": {"a": 1}}], ids=str)
async def test_the_same_key_with_another_body_is_a_conflict(person: Person, change: dict[str, Any]) -> None:
    assert (await keyed(person, "key")).status_code == 201
    assert refusal(await keyed(person, "key", **change)) == (409, "idempotency_key_reused", None)
    assert len(await runs_of(person)) == 1


async def test_a_key_belongs_to_one_user(api: Api, person: Person) -> None:
    other = await api.person()
    first, second = await keyed(person, "key"), await keyed(other, "key")
    assert first.json()["run_id"] != second.json()["run_id"]


@pytest.mark.parametrize(("length", "status"), [(0, 422), (1, 201), (255, 201), (256, 422)])
async def test_a_key_has_1_to_255_characters(person: Person, length: int, status: int) -> None:
    answer = await keyed(person, "k" * length)
    assert answer.status_code == status
    if status == 422:
        assert refusal(answer) == (422, "invalid_input", "idempotency-key")


NAMES_TWICE = {
    "of the request": ('{"action": "run", "action": "create", "prompt": "x"}', "action"),
    "of a step": (
        '{"action": "run", "prompt": "x", "plan": {"steps": [{"id": "a", "tool": "shell", "approval": true, '
        '"arguments": {"script": "true"}, "approval": false}]}}',
        "plan.steps.0.approval",
    ),
    "of a step's arguments": (
        '{"action": "run", "prompt": "x", "plan": {"steps": [{"id": "a", "tool": "shell", '
        '"arguments": {"script": "true", "script": "false"}}]}}',
        "plan.steps.0.arguments.script",
    ),
    "of a fork's plan": (
        f'{{"action": "fork", "run_id": "{RUN_ID}", "plan": {{"steps": 1, "steps": 2}}}}',
        "plan.steps",
    ),
    "of metadata": ('{"action": "run", "prompt": "x", "metadata": {"a": {"b": 1, "b": 2}}}', "metadata.a.b"),
}


@pytest.mark.parametrize(("body", "field"), NAMES_TWICE.values(), ids=NAMES_TWICE.keys())
async def test_a_name_that_stands_twice_in_a_body_is_refused_with_its_place(
    person: Person, body: str, field: str
) -> None:
    answer = await send(person, body.encode())
    assert refusal(answer) == (422, "duplicate_name", field)
    assert await runs_of(person) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PUT", "/agent/secrets/NAME", '{"value": "a", "value": "b"}', "value"),
        ("POST", f"/agent/runs/{RUN_ID}/decisions/x", '{"decision": "reject", "decision": "approve"}', "decision"),
    ],
)
async def test_a_name_that_stands_twice_in_another_body_is_refused(
    person: Person, method: str, path: str, body: str, field: str
) -> None:
    answer = await person.http.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert refusal(answer) == (422, "duplicate_name", field)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/agent/execute"), ("PUT", "/agent/secrets/ABC"), ("POST", "/mcp")]
)
async def test_a_name_that_is_no_text_and_stands_twice_is_refused_escaped(
    person: Person, method: str, path: str
) -> None:
    body = b'{"\\ud800":1,"\\ud800":2}'
    answer = await person.http.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "ud800: this name stands twice" in answer.text
    if path != "/mcp":
        assert refusal(answer) == (422, "duplicate_name", "\\ud800")


@pytest.mark.parametrize("action", ["create", "validate"])
async def test_an_unknown_field_whose_name_is_no_text_is_named_escaped(person: Person, action: str) -> None:
    answer = await send(person, b'{"action":"%s","prompt":"x","\\ud800":1}' % action.encode())
    assert refusal(answer) == (422, "invalid_input", "\\ud800")
    assert "lone surrogate" in answer.json()["detail"]


@pytest.mark.parametrize(("names", "field"), [(100, "x0"), (101, "body")])
async def test_a_body_has_100_names_at_most(person: Person, names: int, field: str) -> None:
    others = {f"x{at}": 1 for at in range(names - 2)}
    answer = await send(person, json.dumps({"action": "create", "prompt": "x", **others}).encode())
    assert refusal(answer) == (422, "invalid_input", field)


@pytest.mark.parametrize(("names", "field"), [(100, "budget.x0"), (101, "budget")])
async def test_a_budget_has_100_names_at_most(person: Person, names: int, field: str) -> None:
    answer = await person.act("create", prompt="x", budget={f"x{at}": 1 for at in range(names)})
    assert refusal(answer) == (422, "invalid_input", field)


async def test_a_large_body_in_which_a_name_stands_twice_is_refused_with_its_place(person: Person) -> None:
    long = b"m" * 100_000
    answer = await send(person, b'{"action":"create","metadata":{"%s":[{},{"q":1,"q":2}]}}' % long)
    assert refusal(answer) == (422, "duplicate_name", ("metadata." + "m" * 200)[:200])
