"""What may be done with a run in which state; anything else is a conflict that changes nothing."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from backplane.domain.plans import Plan
from backplane.domain.runs import RunError, RunStatus
from backplane.domain.steps import StepRecord, StepStatus
from backplane.domain.users import Tier
from backplane.store.run_transaction import RunTransaction
from tests.integration.api.running import Api, Person
from tests.queues import finish
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ERROR = RunError("command_failed", "no", step="two")
PLAN = {"steps": [{"id": "one", "tool": "shell"}, {"id": "two", "tool": "shell"}, {"id": "three", "tool": "shell"}]}


async def created(_: Api, person: Person) -> str:
    return await person.make("create", plan=PLAN)


async def queued(_: Api, person: Person) -> str:
    return await person.make(plan=PLAN)


async def running(api: Api, person: Person) -> str:
    await person.make(plan=PLAN)
    return (await api.worker()).run_id


async def waiting(api: Api, person: Person) -> str:
    return await _after_second_step(api, person, StepStatus.UNCERTAIN)


async def failed(api: Api, person: Person) -> str:
    return await _after_second_step(api, person, StepStatus.FAILED)


async def completed(api: Api, person: Person) -> str:
    await person.make(plan=PLAN)
    worker = await api.worker()
    await worker.end()
    return worker.run_id


async def cancelled(_: Api, person: Person) -> str:
    run_id = await person.make("create", plan=PLAN)
    await person.act("cancel", run_id)
    return run_id


async def _after_second_step(api: Api, person: Person, status: StepStatus) -> str:
    """The first step is done, the second one is in this state, and the run is as a worker leaves it then."""
    await person.make(plan=PLAN)
    worker = await api.worker()
    plan = Plan.model_validate(PLAN)

    def write(transaction: RunTransaction) -> None:
        transaction.save_plan(plan, journal_of(plan))
        for step in ("one", "two"):
            transaction.begin_step(step, 1)
        transaction.end_step("one", StepStatus.COMPLETED, {"exit_code": 0})
        transaction.end_step("two", status, {"error": ERROR.as_dict()})
        if status is StepStatus.UNCERTAIN:
            transaction.wait_for_person(ERROR)
        else:
            transaction.skip_pending_steps()
            transaction.finish(RunStatus.FAILED, ERROR)

    await api.resources.store.running_runs.write(worker.run_id, worker.claim.generation, write)
    await finish(api.resources.queue, worker.claim)
    return worker.run_id


def journal_of(plan: Plan) -> list[StepRecord]:
    return [
        StepRecord(step.id, place, step.title, step.tool, StepStatus.PENDING, 0, None, None, None)
        for place, step in enumerate(plan.ordered())
    ]


STATES: dict[str, Callable[[Api, Person], Awaitable[str]]] = {
    state.__name__: state for state in (created, queued, running, waiting, failed, completed, cancelled)
}

TABLE = {
    # action → what becomes of a run in each state; None: a conflict
    "start": {
        "created": "queued",
        "queued": "queued",
        "running": "running",
        "waiting": None,
        "failed": None,
        "completed": None,
        "cancelled": None,
    },
    "cancel": {
        "created": "cancelled",
        "queued": "cancelled",
        "running": "running",
        "waiting": "cancelled",
        "failed": None,
        "completed": None,
        "cancelled": "cancelled",
    },
    "retry": {
        "created": None,
        "queued": None,
        "running": None,
        "waiting": "queued",
        "failed": "queued",
        "completed": None,
        "cancelled": None,
    },
}
CASES = [(action, before, after) for action, row in TABLE.items() for before, after in row.items()]


@pytest.mark.parametrize(("action", "before", "after"), CASES)
async def test_an_action_changes_the_state_as_drawn_or_not_at_all(
    api: Api, person: Person, action: str, before: str, after: str | None
) -> None:
    run_id = await STATES[before](api, person)
    events = len((await person.http.get(f"/agent/logs/{run_id}")).json()["events"])
    shown = await person.show(run_id)
    assert shown["status"] == before
    said = {"uncertain_step": "repeat"} if (action, before) == ("retry", "waiting") else {}
    answer = await person.act(action, run_id, **said)
    if after is None:
        assert (answer.status_code, answer.json()["code"]) == (409, "transition_not_allowed")
        assert await person.show(run_id) == shown
        assert len((await person.http.get(f"/agent/logs/{run_id}")).json()["events"]) == events
    else:
        assert (answer.status_code, answer.json()["status"]) == (200, after)
        assert (await person.show(run_id))["status"] == after


async def test_starting_twice_queues_once_with_one_event(api: Api, person: Person) -> None:
    run_id = await person.make("create")
    for _ in range(2):
        assert (await person.act("start", run_id)).json()["status"] == "queued"
    assert [claim.run_id for claim in await api.resources.queue.claim("by-hand", 10)] == [run_id]
    events = (await person.http.get(f"/agent/logs/{run_id}")).json()["events"]
    assert [event["data"]["status"] for event in events] == ["created", "queued"]


async def test_a_cancelled_run_is_taken_by_no_worker(api: Api, person: Person) -> None:
    await person.act("cancel", await queued(api, person))
    assert await api.resources.queue.claim("by-hand", 10) == []


async def test_a_cancel_that_comes_between_claim_and_start_of_work_holds(api: Api, person: Person) -> None:
    run_id = await queued(api, person)
    [claim] = await api.resources.queue.claim("by-hand", 1)
    await person.act("cancel", run_id)
    assert await api.resources.store.running_runs.take(run_id, claim.generation) is None


async def test_a_running_run_is_asked_to_end_and_shows_that_it_was(api: Api, person: Person) -> None:
    run_id = await running(api, person)
    redis = api.resources.redis.commands

    async def listened_to() -> bool:
        return (await redis.pubsub_numsub(api.resources.redis.keys.cancels))[0][1] == 1

    async with api.resources.queue.cancels() as announced:
        hearing = asyncio.ensure_future(anext(announced))
        await wait_until(listened_to)
        assert (await person.act("cancel", run_id)).json()["status"] == "running"
        assert await hearing == run_id
    assert (await person.show(run_id))["cancel_requested"] is True
    rights = await api.resources.store.running_runs.rights({run_id: 1})
    assert rights.cancelled == {run_id}


async def test_a_failed_run_that_is_tried_again_keeps_what_was_completed(api: Api, person: Person) -> None:
    run_id = await failed(api, person)
    await person.act("retry", run_id)
    shown = await person.show(run_id)
    assert {step["id"]: step["status"] for step in shown["steps"]} == {
        "one": "completed",
        "two": "pending",
        "three": "pending",
    }
    assert (shown["attempt"], shown["error"], shown["finished_at"]) == (1, None, None)
    assert (await api.worker()).run_id == run_id


async def test_a_waiting_run_does_not_go_on_before_its_person_has_said_what_becomes_of_its_step(
    api: Api, person: Person
) -> None:
    run_id = await waiting(api, person)
    answer = await person.act("retry", run_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "step 'two'" in answer.json()["detail"]
    assert 'uncertain_step "done" or "repeat"' in answer.json()["detail"]
    assert (await person.show(run_id))["status"] == "waiting"


@pytest.mark.parametrize(("decision", "status"), [("repeat", "pending"), ("done", "completed")])
async def test_a_waiting_run_goes_on_as_its_person_decides(
    api: Api, person: Person, decision: str, status: str
) -> None:
    run_id = await waiting(api, person)
    answer = await person.act("retry", run_id, uncertain_step=decision)
    assert answer.status_code == 200
    shown = await person.show(run_id)
    assert {step["id"]: step["status"] for step in shown["steps"]} == {
        "one": "completed",
        "two": status,
        "three": "pending",
    }
    assert (await api.worker()).run_id == run_id


async def test_a_decision_that_does_not_exist_is_refused(api: Api, person: Person) -> None:
    run_id = await waiting(api, person)
    answer = await person.act("retry", run_id, uncertain_step="guess")
    assert (answer.status_code, answer.json()["field"]) == (422, "uncertain_step")


async def test_a_queued_run_shows_where_it_stands(api: Api, person: Person) -> None:
    await person.make()
    await api.resources.queue.renew("worker", 1, await api.resources.queue.claim("worker", 1))
    first, second = await person.make(), await person.make()
    for run_id, position in ((first, 1), (second, 2)):
        answer = (await person.act("status", run_id)).json()
        assert answer["position"] == position
        assert answer["estimated_wait_seconds"] == 120.0 * position
        assert (await person.show(run_id))["position"] == position


async def test_higher_tiers_stand_further_in_front(api: Api) -> None:
    people = {tier: await api.person(tier) for tier in (Tier.FREE, Tier.STANDARD, Tier.BETA, Tier.ADMIN)}
    runs = {tier: await person.make() for tier, person in people.items()}
    positions = {tier: (await people[tier].show(run_id))["position"] for tier, run_id in runs.items()}
    assert positions == {Tier.ADMIN: 1, Tier.BETA: 2, Tier.STANDARD: 3, Tier.FREE: 4}


async def test_the_queue_shows_its_length_by_priority(api: Api, person: Person) -> None:
    await person.make()
    await (await api.person(Tier.FREE)).make()
    await running(api, await api.person(Tier.ADMIN))
    queue = (await person.http.get("/agent/queue")).json()
    assert (queue["queued"], queue["running"]) == (2, 1)
    assert queue["queued_by_priority"] == {"critical": 0, "high": 0, "normal": 1, "low": 1}
