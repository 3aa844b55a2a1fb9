"""What runs ask people: asked once, decided once, and never lost between the two."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import update

from backplane.domain.decisions import Decided, Decision, DecisionKind, DecisionMade, DecisionStatus
from backplane.domain.runs import Run, RunError, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.errors import Conflict, InvalidInput, NotFound, TransitionNotAllowed
from backplane.store import Store
from backplane.store.tables import runs
from tests.event_data import data_of
from tests.submitted import new_run, together

WAITS = RunError("waits_for_person", "it needs an answer")
APPROVED, REJECTED, ANSWERED = DecisionStatus.APPROVED, DecisionStatus.REJECTED, DecisionStatus.ANSWERED


def question(run: Run, kind: DecisionKind = DecisionKind.APPROVAL, **asked: Any) -> Decision:
    return Decision(
        new_run_id(), run.id, run.user_id, "a", kind, asked or {"tool": "shell"}, DecisionStatus.PENDING,
        datetime.now(UTC),
    )  # fmt: skip


@pytest.fixture
async def run(store: Store, user: User) -> Run:
    """Held in generation 1; its last event has the number 2."""
    made = await store.runs.create(new_run(user, webhook_url="https://example.org/hook"), start=True)
    assert await store.running_runs.take(made.id, 1)
    return made


async def asked(store: Store, run: Run, kind: DecisionKind = DecisionKind.APPROVAL, **what: Any) -> Decision:
    """By a run that waits for it then."""
    decision = question(run, kind, **what)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.ask(decision),
            lambda transaction: transaction.wait_for_person(WAITS, [decision.id]),
        ),
    )
    return decision


async def decide(
    store: Store, run: Run, decision: Decision, status: DecisionStatus = APPROVED, **answer: Any
) -> Decided:
    return await store.decisions.decide(run.user_id, run.id, decision.id, status, answer, run.user_id)


async def test_a_question_is_asked_once_however_often_it_is_written(store: Store, run: Run) -> None:
    decision = await asked(store, run)
    await decide(store, run, decision)
    assert await store.running_runs.take(run.id, 2)
    await store.running_runs.write(run.id, 2, lambda transaction: transaction.ask(decision))
    [found] = await store.decisions.of_run(run.id)
    assert found.status is APPROVED


async def test_the_answer_queues_a_run_that_waits_with_an_event_of_each(store: Store, run: Run) -> None:
    decision = await asked(store, run)
    decided = await decide(store, run, decision, arguments={"script": "true"})
    assert (decided.run.status, decided.run.attempt, decided.run.error) == (RunStatus.QUEUED, 1, None)
    assert decided.run.started_at is None
    events = await store.events.after(run.id, 2, 10)
    assert events == decided.events
    assert [(event.id, event.type) for event in events] == [(3, "decision"), (4, "status")]
    assert data_of(events[0]) == {
        "decision": decision.id,
        "step": "a",
        "kind": "approval",
        "status": "approved",
        "answer": {"arguments": {"script": "true"}},
    }
    [kept] = await store.decisions.of_run(run.id)
    assert kept == decided.decision
    assert (kept.answer, kept.decided_by) == ({"arguments": {"script": "true"}}, run.user_id)


async def test_an_answer_while_the_run_is_running_is_kept_and_published_by_its_worker(store: Store, run: Run) -> None:
    decision = question(run)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.ask(decision))
    decided = await decide(store, run, decision)
    assert (decided.run.status, decided.events) == (RunStatus.RUNNING, [])
    assert await store.events.last_id(run.id) == 2


async def test_a_run_does_not_wait_for_what_has_been_decided_meanwhile(store: Store, run: Run) -> None:
    decision = question(run)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.ask(decision))
    await decide(store, run, decision)
    with pytest.raises(DecisionMade, match=decision.id):
        await store.running_runs.write(run.id, 1, lambda transaction: transaction.wait_for_person(WAITS, [decision.id]))
    found = await store.runs.find(run.id)
    assert found is not None
    assert found.status is RunStatus.RUNNING


async def test_a_run_that_waits_for_another_decision_may_wait(store: Store, run: Run) -> None:
    first, second = question(run), question(run)
    await store.running_runs.write(
        run.id, 1, together(lambda transaction: transaction.ask(first), lambda transaction: transaction.ask(second))
    )
    await decide(store, run, first)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.wait_for_person(WAITS, [second.id]))
    assert (await store.runs.get(run.user_id, run.id)).status is RunStatus.WAITING


async def test_of_an_answer_and_a_run_that_begins_to_wait_at_once_neither_is_lost(store: Store, run: Run) -> None:
    decision = question(run)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.ask(decision))
    waiting = store.running_runs.write(run.id, 1, lambda transaction: transaction.wait_for_person(WAITS, [decision.id]))
    outcomes = await asyncio.gather(waiting, decide(store, run, decision), return_exceptions=True)
    status = (await store.runs.get(run.user_id, run.id)).status
    went_on = isinstance(outcomes[0], DecisionMade) and status is RunStatus.RUNNING
    assert went_on or status is RunStatus.QUEUED


async def test_a_second_answer_is_published_while_the_run_is_queued_and_queues_nothing(store: Store, run: Run) -> None:
    first, second = question(run), question(run)
    await store.running_runs.write(
        run.id,
        1,
        together(
            lambda transaction: transaction.ask(first),
            lambda transaction: transaction.ask(second),
            lambda transaction: transaction.wait_for_person(WAITS, [first.id, second.id]),
        ),
    )
    assert (await decide(store, run, first)).goes_on
    decided = await decide(store, run, second)
    assert (decided.run.status, decided.goes_on) == (RunStatus.QUEUED, False)
    assert [(event.id, event.type) for event in decided.events] == [(5, "decision")]


async def test_the_webhook_says_what_is_asked(store: Store, run: Run) -> None:
    decision = await asked(store, run)
    [delivery] = await store.webhooks.claim(5, lease_seconds=60, user_limit=5, sending={})
    body = json.loads(delivery.body)
    assert (body["event"], body["decisions"]) == (
        "run.waiting",
        [{"decision_id": decision.id, "kind": "approval", "step": "a"}],
    )


async def test_the_same_answer_again_is_answered_as_it_was_and_another_is_refused(store: Store, run: Run) -> None:
    decision = await asked(store, run)
    first = await decide(store, run, decision)
    again = await decide(store, run, decision)
    assert (again.decision, again.events) == (first.decision, [])
    with pytest.raises(Conflict, match="was approved already"):
        await decide(store, run, decision, REJECTED, reason="no")


async def test_of_two_different_answers_at_once_one_holds(store: Store, run: Run) -> None:
    decision = await asked(store, run)
    outcomes = await asyncio.gather(
        decide(store, run, decision), decide(store, run, decision, REJECTED, reason="no"), return_exceptions=True
    )
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
    assert [event.type for event in await store.events.after(run.id, 2, 10)] == ["decision", "status"]


async def test_another_user_s_decision_is_not_there(store: Store, run: Run, stranger: User) -> None:
    decision = await asked(store, run)
    with pytest.raises(NotFound):
        await store.decisions.decide(stranger.id, run.id, decision.id, APPROVED, {}, stranger.id)
    with pytest.raises(NotFound):
        await decide(store, run, replace(decision, id=new_run_id()))
    assert await store.decisions.page(stranger.id) == []


@pytest.mark.parametrize(
    ("kind", "status", "answer", "error", "says"),
    [
        (DecisionKind.QUESTION, APPROVED, {}, Conflict, "answer or reject"),
        (DecisionKind.APPROVAL, ANSWERED, {"text": "x"}, Conflict, "approve or reject"),
        (DecisionKind.BUDGET, APPROVED, {"arguments": {}}, InvalidInput, "arguments"),
        (DecisionKind.APPROVAL, APPROVED, {"budget": {"usd": 1.0}}, InvalidInput, "budget"),
        (DecisionKind.BUDGET, APPROVED, {"budget": {"usd": 1.0}}, InvalidInput, "no limit of its own"),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused_and_changes_nothing(
    store: Store, run: Run, kind: DecisionKind, status: DecisionStatus, answer: Any, error: type[Exception], says: str
) -> None:
    decision = await asked(store, run, kind)
    with pytest.raises(error, match=says):
        await decide(store, run, decision, status, **answer)
    assert [found.status for found in await store.decisions.of_run(run.id)] == [DecisionStatus.PENDING]
    assert (await store.runs.get(run.user_id, run.id)).status is RunStatus.WAITING


async def test_a_question_with_choices_takes_one_of_them(store: Store, run: Run) -> None:
    decision = await asked(store, run, DecisionKind.QUESTION, question="which?", choices=["red", "blue"])
    with pytest.raises(InvalidInput, match="red, blue"):
        await decide(store, run, decision, ANSWERED, text="green")
    assert (await decide(store, run, decision, ANSWERED, text="blue")).run.status is RunStatus.QUEUED


async def test_when_a_run_is_over_its_questions_are_closed_and_opened_again_with_it(store: Store, run: Run) -> None:
    decision = await asked(store, run)
    await store.runs.cancel(run.user_id, run.id)
    with pytest.raises(Conflict, match="cancelled"):
        await decide(store, run, decision)
    [closed] = await store.decisions.page(run.user_id, status=REJECTED)
    assert (closed.status, closed.answer) == (REJECTED, {"reason": "the run is over"})
    assert await store.decisions.page(run.user_id, status=DecisionStatus.PENDING) == []
    await store.database.write(lambda connection: connection.execute(update(runs).values(status="waiting")))
    [opened] = await store.decisions.page(run.user_id, status=DecisionStatus.PENDING)
    assert opened.id == decision.id


async def test_decisions_come_in_pages_of_one_run_or_of_all(store: Store, user: User, run: Run) -> None:
    other = await store.runs.create(new_run(user), start=True)
    assert await store.running_runs.take(other.id, 1)
    made = []
    for of in (run, other, run):
        made.append(question(of))
        await store.running_runs.write(of.id, 1, lambda transaction: transaction.ask(made[-1]))
    newest = await store.decisions.page(user.id, limit=2)
    rest = await store.decisions.page(user.id, before=newest[-1].id, limit=2)
    assert [decision.id for decision in newest + rest] == sorted((decision.id for decision in made), reverse=True)
    assert [found.id for found in await store.decisions.page(user.id, run_id=other.id)] == [made[1].id]


async def test_files_that_are_gone_let_nothing_go_on(store: Store, run: Run) -> None:
    decision = await asked(store, run)
    gone = update(runs).values(files_expired_at=datetime.now(UTC))
    await store.database.write(lambda connection: connection.execute(gone))
    with pytest.raises(TransitionNotAllowed, match="files are gone"):
        await decide(store, run, decision)
    assert [found.status for found in await store.decisions.of_run(run.id)] == [DecisionStatus.PENDING]
