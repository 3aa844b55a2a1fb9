"""What runs ask, through the API: listed, answered once, by whoever they belong to."""

from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.runs import RunError, new_run_id
from backplane.domain.users import Tier
from tests.integration.api.requests.test_errors import problem
from tests.integration.api.running import Api, Person
from tests.queues import finish

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED: dict[DecisionKind, dict[str, Any]] = {
    DecisionKind.APPROVAL: {
        "tool": "shell",
        "arguments": {"script": "true"},
        "reason": "its risk is high",
        "schema": {"type": "object", "properties": {"script": {"type": "string"}}, "required": ["script"]},
    },
    DecisionKind.QUESTION: {"question": "red or blue?"},
    DecisionKind.BUDGET: {"resource": "tokens", "account": "run:1:tokens", "needed": 10, "left": 3},
}


async def waiting(api: Api, person: Person, *kinds: DecisionKind) -> tuple[str, list[str]]:
    """A run that waits for these, and their ids."""
    run_id = await person.make()
    holder = await api.worker()
    assert holder.run_id == run_id
    run = await api.resources.store.runs.find(run_id)
    assert run is not None
    asked = [
        Decision(new_run_id(), run_id, run.user_id, "a", kind, ASKED[kind], DecisionStatus.PENDING, datetime.now(UTC))
        for kind in kinds
    ]

    def wait(transaction: Any) -> None:
        for decision in asked:
            transaction.ask(decision)
        transaction.wait_for_person(RunError("approval_required", "it is asked"), [decision.id for decision in asked])

    await api.resources.store.running_runs.write(run_id, holder.claim.generation, wait)
    await finish(api.resources.queue, holder.claim, 1.0)
    return run_id, [decision.id for decision in asked]


async def decide(person: Person, run_id: str, decision_id: str, **body: Any) -> Any:
    return await person.http.post(f"/agent/runs/{run_id}/decisions/{decision_id}", json=body)


@pytest.mark.parametrize(
    ("kind", "body", "status", "answer"),
    [
        (DecisionKind.APPROVAL, {"decision": "approve"}, "approved", {}),
        (
            DecisionKind.APPROVAL,
            {"decision": "approve", "arguments": {"script": "ls"}},
            "approved",
            {"arguments": {"script": "ls"}},
        ),
        (DecisionKind.APPROVAL, {"decision": "reject", "reason": "no"}, "rejected", {"reason": "no"}),
        (DecisionKind.QUESTION, {"decision": "answer", "text": "blue"}, "answered", {"text": "blue"}),
        (DecisionKind.BUDGET, {"decision": "reject"}, "rejected", {"reason": ""}),
    ],
)
async def test_a_decision_is_listed_made_and_queues_the_run(
    api: Api, person: Person, kind: DecisionKind, body: dict[str, Any], status: str, answer: dict[str, Any]
) -> None:
    run_id, [decision_id] = await waiting(api, person, kind)
    [listed] = (await person.http.get("/agent/decisions?status=pending")).json()["decisions"]
    assert (listed["decision_id"], listed["run_id"], listed["asked"]) == (decision_id, run_id, ASKED[kind])
    made = await decide(person, run_id, decision_id, **body)
    assert (made.status_code, made.json()["status"], made.json()["answer"]) == (200, status, answer)
    assert (await person.show(run_id))["status"] == "queued"
    assert (await person.http.get("/agent/decisions?status=pending")).json()["decisions"] == []
    [kept] = (await person.http.get(f"/agent/runs/{run_id}/decisions")).json()["decisions"]
    assert kept == made.json()
    again = await api.worker()
    assert again.run_id == run_id


@pytest.mark.parametrize(
    ("kind", "body", "status", "says"),
    [
        (DecisionKind.APPROVAL, {"decision": "answer", "text": "x"}, 409, "approve or reject"),
        (DecisionKind.QUESTION, {"decision": "approve"}, 409, "answer or reject"),
        (DecisionKind.QUESTION, {"decision": "answer"}, 422, "text"),
        (DecisionKind.APPROVAL, {"decision": "maybe"}, 422, "decision: send one of approve, reject, answer"),
        (DecisionKind.APPROVAL, {}, 422, "decision: send one of"),
        (DecisionKind.APPROVAL, {"decision": "approve", "extra": 1}, 422, "extra"),
        (DecisionKind.APPROVAL, {"decision": "approve", "arguments": {"a": "x" * 300_000}}, 413, "arguments"),
        (DecisionKind.APPROVAL, {"decision": "approve", "arguments": {}}, 422, "'script' is a required property"),
        (DecisionKind.APPROVAL, {"decision": "approve", "arguments": {"script": 1}}, 422, "nothing is decided yet"),
        (DecisionKind.BUDGET, {"decision": "approve", "budget": {"usd": "1"}}, 422, "budget.usd"),
        (DecisionKind.BUDGET, {"decision": "approve", "budget": {"tokens": 5}}, 422, "no limit of its own"),
        (DecisionKind.BUDGET, {"decision": "approve", "budget": {}}, 422, "by how much"),
    ],
)
async def test_what_does_not_fit_is_refused_with_what_would(
    api: Api, person: Person, kind: DecisionKind, body: dict[str, Any], status: int, says: str
) -> None:
    run_id, [decision_id] = await waiting(api, person, kind)
    refused = await decide(person, run_id, decision_id, **body)
    assert refused.status_code == status, refused.text
    assert says in problem(refused)["detail"]
    assert (await person.show(run_id))["status"] == "waiting"


async def test_another_s_decision_is_not_there_even_for_an_admin(api: Api, person: Person) -> None:
    run_id, [decision_id] = await waiting(api, person, DecisionKind.APPROVAL)
    stranger = await api.person(Tier.ADMIN)
    for body in ({}, {"arguments": {"wrong": 1}}):
        refused = await decide(stranger, run_id, decision_id, decision="approve", **body)
        assert (refused.status_code, problem(refused)["code"]) == (404, "not_found")
    assert (await stranger.http.get("/agent/decisions")).json()["decisions"] == []


async def test_an_answer_that_was_given_is_not_taken_back(api: Api, person: Person) -> None:
    run_id, [decision_id] = await waiting(api, person, DecisionKind.APPROVAL)
    first = await decide(person, run_id, decision_id, decision="approve")
    again = await decide(person, run_id, decision_id, decision="approve")
    assert (again.status_code, again.json()) == (200, first.json())
    other = await decide(person, run_id, decision_id, decision="reject")
    assert (other.status_code, problem(other)["code"]) == (409, "conflict")


async def test_an_explanation_names_what_is_asked_and_the_decisions(api: Api, person: Person) -> None:
    run_id, ids = await waiting(api, person, *ASKED)
    reasons = (await person.http.get(f"/agent/runs/{run_id}/explain")).json()["reasons"]
    assert {reason["code"] for reason in reasons} == {"waits_for_person"}
    text = " ".join(reason["text"] for reason in reasons)
    for expected in (*ids, "red or blue?", "because its risk is high", "3 left"):
        assert expected in text


async def test_decisions_come_in_pages(api: Api, person: Person) -> None:
    _, ids = await waiting(api, person, *[DecisionKind.APPROVAL] * 3)
    first = (await person.http.get("/agent/decisions?limit=2")).json()
    second = (await person.http.get(f"/agent/decisions?limit=2&cursor={first['next_cursor']}")).json()
    found = [decision["decision_id"] for page in (first, second) for decision in page["decisions"]]
    assert (found, second["next_cursor"]) == (sorted(ids, reverse=True), None)


# --- what `create` takes ---


async def test_a_run_says_what_it_was_made_with(person: Person) -> None:
    run_id = await person.make(
        "create", agent="helper", model="ollama/qwen2.5:7b", planner="model", budget={"usd": 0.5, "tokens": 1000}
    )
    shown = await person.show(run_id)
    assert (shown["agent"], shown["model"], shown["budget"]) == (
        "helper",
        "ollama/qwen2.5:7b",
        {"usd": 0.5, "tokens": 1000},
    )
    assert (shown["plan_version"], shown["result"], shown["origin"], shown["mcp_servers"]) == (1, None, None, [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent", "Über"),
        ("agent", "../x"),
        ("model", "no-server"),
        ("model", "a/" + "x" * 300),
        ("planner", "guess"),
        ("budget", {"usd": -1}),
        ("budget", {"euros": 1}),
        ("budget", {"tokens": "many"}),
        ("mcp_servers", ["not-configured"]),
        ("mcp_servers", ["x"] * 11),
    ],
)
async def test_what_no_run_can_be_made_with_is_refused(person: Person, field: str, value: Any) -> None:
    refused = await person.act("create", prompt="x", **{field: value})
    assert refused.status_code == 422, refused.text
    assert problem(refused)["field"].startswith(field)


async def test_a_model_server_that_is_not_known_is_refused(start_api: Any) -> None:
    api = await start_api(model_servers={"gpu": {"kind": "openai", "url": "http://127.0.0.1:1/v1"}})
    person = await api.person()
    refused = await person.act("create", prompt="x", model="other/m")
    assert (refused.status_code, problem(refused)["field"]) == (422, "model")
    assert (await person.act("create", prompt="x", model="gpu/m")).status_code == 201


# --- plans and model calls ---


async def test_a_run_without_a_plan_has_no_plans_and_no_calls(person: Person) -> None:
    run_id = await person.make("create")
    assert (await person.http.get(f"/agent/runs/{run_id}/plans")).json() == {"plans": []}
    calls = (await person.http.get(f"/agent/runs/{run_id}/model-calls")).json()
    assert calls == {"calls": [], "next_cursor": None}


async def test_forks_and_replays_are_made_once_for_one_key(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    for body in ({"action": "fork", "run_id": run_id, "start": False},):
        made = [
            await person.http.post("/agent/execute", json=body, headers={"Idempotency-Key": "one"}) for _ in range(2)
        ]
        assert [answer.status_code for answer in made] == [201, 201]
        assert made[0].json() == made[1].json()
    refused = await person.act("replay", run_id)
    assert (refused.status_code, problem(refused)["code"]) == (409, "transition_not_allowed")
