"""Agents that would wait for one another for ever, on each database: the question that closes the circle is refused."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from backplane.domain.agents import Agent, message_to
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.users import User
from backplane.errors import AskCircle
from backplane.store import RunTransaction, Store
from tests.agents import sent, spawned, started_process
from tests.submitted import new_run


async def at_work(store: Store, user: User, *names: str) -> tuple[dict[str, Agent], dict[str, Run]]:
    """Agents of these names, and a running turn of each."""
    await started_process(store, "process", capacity=100)
    agents = {name: await spawned(store, user, name) for name in names}
    turns = {name: (await sent(store, user, agent)).run for name, agent in agents.items()}
    for run in turns.values():
        assert await store.running_runs.take(run.id, 1, "worker") is not None
    return agents, turns


async def ask(store: Store, user: User, asker: Agent, turn: Run, asked: Agent, step: str = "1.ask") -> Run:
    """A question, as a turn sends it. Raises AskCircle."""
    origin = {"kind": "agent", "run_id": turn.id, "agent_id": asker.id, "by": step, "depth": 1}
    question = message_to(asked, new_run(user, prompt="?", parent_id=turn.id, origin=origin))
    transaction = RunTransaction()
    transaction.send_message(step, question, mailbox_max=1000)
    await store.running_runs.commit(turn.id, turn.generation + 1, transaction.writes)
    return question


@pytest.mark.parametrize("names", [("ada",), ("ada", "bob"), ("ada", "bob", "carl", "dora")])
async def test_the_question_that_closes_a_circle_is_refused_and_names_it(
    store: Store, user: User, names: Sequence[str]
) -> None:
    agents, turns = await at_work(store, user, *names)
    for asker, asked in pairwise(names):
        await ask(store, user, agents[asker], turns[asker], agents[asked])
    last, first = names[-1], names[0]
    with pytest.raises(AskCircle) as refused:
        await ask(store, user, agents[last], turns[last], agents[first])
    path = " waits for ".join(names)
    expected = "ada asks itself" if len(names) == 1 else f"{path}, which asks ada"
    assert expected in refused.value.message
    assert await store.agents.mailbox(agents[first].id) == []


@pytest.mark.parametrize("names", [("ada", "bob"), ("ada", "bob", "carl", "dora")])
async def test_of_those_that_close_a_circle_at_the_same_moment_the_last_is_refused(
    store: Store, second_store: Store, user: User, names: Sequence[str]
) -> None:
    agents, turns = await at_work(store, user, *names)
    pairs = [*zip(names, [*names[1:], names[0]], strict=True)]
    asking = [
        ask((store, second_store)[number % 2], user, agents[asker], turns[asker], agents[asked])
        for number, (asker, asked) in enumerate(pairs)
    ]
    ended = await asyncio.gather(*asking, return_exceptions=True)
    refused = [one for one in ended if isinstance(one, BaseException)]
    assert [type(one) for one in refused] == [AskCircle]


async def test_a_question_that_is_over_closes_no_circle_any_more(store: Store, user: User) -> None:
    agents, turns = await at_work(store, user, "ada", "bob")
    question = await ask(store, user, agents["ada"], turns["ada"], agents["bob"])
    await store.agent_repair.end(question.id, _too_late())
    await ask(store, user, agents["bob"], turns["bob"], agents["ada"])
    assert await store.agents.mailbox_size(agents["ada"].id) == 1


async def test_two_that_ask_a_third_and_one_that_was_only_sent_something_make_no_circle(
    store: Store, user: User
) -> None:
    agents, turns = await at_work(store, user, "ada", "bob", "carl")
    for name in ("ada", "bob"):
        await ask(store, user, agents[name], turns[name], agents["carl"])
    sent_only = message_to(agents["ada"], new_run(user, prompt="for your information"))
    transaction = RunTransaction()
    transaction.send_message("1.send", sent_only, mailbox_max=1000)
    await store.running_runs.commit(turns["carl"].id, 1, transaction.writes)
    run = await store.runs.find(sent_only.id)
    assert run is not None
    assert run.status is RunStatus.WAITING


def _too_late() -> RunError:
    return RunError("message_expired", "its time was up")
