"""A run of an agent that costs money and leaves marks, and what must hold of it however often its worker was lost."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from backplane.domain.budgets import Resource, account_id, run_owner, user_owner
from backplane.domain.decisions import DecisionKind, DecisionStatus
from backplane.domain.model_calls import CallStatus
from backplane.domain.runs import Run, RunStatus
from backplane.domain.steps import StepStatus
from tests.platform.workers import Platform
from tests.scripted_models import Asked, Reply, said

PRICES = {"local/m": {"input": 100.0, "output": 200.0}}
BUDGET = {"tokens": 1_000_000, "usd": 100.0, "steps": 100, "seconds": 100_000}
PUT_IN = {Resource.TOKENS: 2_000_000, Resource.MICRO_USD: 10**9, Resource.STEPS: 1000, Resource.SECONDS: 10**6}
MARKS = ["1", "2", "3", "4"]


def mark(number: int, more: str = "") -> dict[str, Any]:
    return {"script": f"echo {number} >> marks{more}"}


WORK = {"id": "work", "tool": "agent", "arguments": {"goal": "Make three marks.", "tools": ["shell"]}}
LAST = {"id": "last", "tool": "shell", "arguments": mark(4), "needs": ["work"]}
TURNS: Sequence[Sequence[dict[str, Any]]] = ((mark(1), mark(2)), (mark(3),))


@dataclass
class Marking:
    """A model that plans an agent's step and one more, and as the agent makes three marks in two turns.
    `blocked_calls`: the calls, by their number among all, that are never answered."""

    blocked_calls: set[int] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    turns: Sequence[Sequence[dict[str, Any]]] = TURNS
    last: dict[str, Any] = field(default_factory=lambda: LAST)

    def __call__(self, asked: Asked) -> Reply:
        messages = asked.body["messages"]
        turn = sum(message["role"] == "assistant" for message in messages)
        name = "plan" if "response_format" in asked.body else f"turn {turn + 1}" if "tools" in asked.body else "summary"
        self.asked.append(name)
        if len(self.asked) in self.blocked_calls:
            return Reply(ending="hang")
        if name == "plan":
            return said("openai", json.dumps({"steps": [WORK, self.last]}))
        if name == "summary":
            return said("openai", "Four marks were made.")
        if turn < len(self.turns):
            return said("openai", calls=[("shell", arguments) for arguments in self.turns[turn]])
        return said("openai", "Three marks are made.")


async def fund(platform: Platform) -> None:
    for resource, amount in PUT_IN.items():
        await platform.resources.store.ledger.deposit(
            user_owner(platform.user.id), resource, amount, f"put in {resource}"
        )


async def answered(platform: Platform, run_id: str) -> int:
    """Calls whose answers are recorded."""
    calls = await platform.resources.store.model_calls.of_run(run_id)
    return sum(call.status is CallStatus.COMPLETED for call in calls)


async def over(platform: Platform, run_id: str) -> Run:
    """The run, completed; a person gives whatever answers it waits for."""
    while True:
        run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.WAITING)
        if run.status is not RunStatus.WAITING:
            assert run.status is RunStatus.COMPLETED, run.error
            return run
        await answer(platform, run)


async def answer(platform: Platform, run: Run) -> None:
    """What a person says to a run that waits: yes; a step more; and where it is not known whether a step happened, they
    look at the marks."""
    assert run.error is not None
    if run.error.code != "step_uncertain":
        for decision in await platform.resources.store.decisions.of_run(run.id):
            if decision.status is DecisionStatus.PENDING:
                more = {"budget": {"steps": 1}} if decision.kind is DecisionKind.BUDGET else {}
                await platform.submission.decide(platform.user, run.id, decision.id, DecisionStatus.APPROVED, more)
        return
    [unknown] = [step for step in await platform.journal(run.id) if step.status is StepStatus.UNCERTAIN]
    mark = {"work/0.1.1": "1", "work/0.1.2": "2", "work/0.2.1": "3", "last": "4"}[unknown.step_id]
    is_done = mark in await marks(platform, run.id)
    await platform.submission.retry(platform.user, run.id, uncertain_step_is_done=is_done)


async def marks(platform: Platform, run_id: str) -> list[str]:
    workspace = platform.resources.workspaces.workspace(platform.user.id, run_id)
    if not any(file.path == "marks" for file in await workspace.list()):
        return []
    return (await platform.read(run_id, "marks")).decode().split()


async def nothing_is_lost_or_done_twice(
    platform: Platform, run: Run, model: Marking, *, answered_before: int, asked_before: int
) -> None:
    """`answered_before`, `asked_before`: what was recorded, and what the server was asked, when the worker was lost."""
    journal = await platform.journal(run.id)
    # First, for a step that failed leaves no mark, and its result says why.
    assert {step.status for step in journal} == {StepStatus.COMPLETED}, journal
    assert await marks(platform, run.id) == MARKS, journal
    ended = Counter(step for step, status in await platform.step_statuses(run.id) if status == "completed")
    assert set(ended.values()) == {1}
    # What was answered before is not asked again; what was not, once more.
    expected = ["plan", *(f"turn {number}" for number in range(1, len(model.turns) + 2)), "summary"]
    assert model.asked[asked_before:] == expected[answered_before:]
    await the_books_are_right(platform, run)
    await platform.ends_whole(run.id)


async def the_books_are_right(platform: Platform, run: Run) -> None:
    ledger = platform.resources.store.ledger
    assert (await ledger.audit()).differences == ()
    of_user = {resource: await ledger.get(account_id(user_owner(platform.user.id), resource)) for resource in PUT_IN}
    of_run = {account.resource: account for account in await ledger.of_owners([run_owner(run.id)])}
    assert of_run.keys() == of_user.keys()
    for resource, put_in in PUT_IN.items():
        account = of_user[resource]
        assert account.reserved == 0
        assert of_run[resource].reserved == 0
        assert account.balance + account.spent == put_in
    assert run.result is not None
    cost = run.result["cost"]
    assert of_run[Resource.TOKENS].spent == cost["input_tokens"] + cost["output_tokens"]
    assert of_run[Resource.MICRO_USD].spent == round(cost["usd"] * 1_000_000)
