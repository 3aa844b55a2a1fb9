"""Messages to agents: one open at a time, in their order, whatever ends one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backplane.domain.agents import Agent, message_to
from backplane.domain.dead_letters import DeadReason
from backplane.domain.derived_runs import NewFork
from backplane.domain.runs import DEFAULT_QUEUE, IN_MAILBOX, Priority, Run, RunError, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.errors import (
    AgentBusy,
    AgentTerminated,
    Conflict,
    IdempotencyKeyReused,
    MailboxFull,
    NotFound,
    TransitionNotAllowed,
)
from backplane.store import RunTransaction, Store
from tests.agents import ended, placed_agent, sent, spawned, started_process
from tests.event_data import data_of
from tests.submitted import new_run

ERROR = RunError("handler_failed", "it failed")


async def statuses(store: Store, *run_ids: str) -> list[RunStatus]:
    found = [await store.runs.find(run_id) for run_id in run_ids]
    return [run.status for run in found if run is not None]


async def open_run(store: Store, agent: Agent) -> str | None:
    found = await store.agents.find(agent.id)
    return found.open_run_id if found else None


@pytest.fixture
async def agent(store: Store, user: User) -> Agent:
    return await placed_agent(store, user)


@pytest.fixture
async def three(store: Store, user: User, agent: Agent) -> list[str]:
    """Three messages, of which the first is running in generation 1."""
    ids = [(await sent(store, user, agent, f"message {number}")).run.id for number in (1, 2, 3)]
    await store.running_runs.take(ids[0], 1, "worker")
    return ids


# --- adding ---


async def test_a_message_to_a_free_agent_is_queued_at_once(store: Store, user: User, agent: Agent) -> None:
    added = await sent(store, user, agent, "hello", input={"a": 1})
    assert (added.is_new, added.opened, added.placed) == (True, added.run.id, None)
    run = await store.runs.get(user.id, added.run.id)
    assert run == added.run
    assert (run.status, run.in_mailbox, run.turn, run.queue) == (RunStatus.QUEUED, False, 1, f"agent:{agent.id}")
    assert (run.agent, run.input, run.error) == (f"agent-{agent.id}", {"a": 1}, None)
    shown = [data_of(event).get("status") for event in await store.events.after(run.id, 0, 10)]
    assert shown == ["created", "queued"]
    assert [one.id for one in await store.runs.unfinished()] == [run.id]


async def test_a_message_to_a_busy_agent_waits_in_the_mailbox_and_says_so(
    store: Store, user: User, agent: Agent
) -> None:
    first = await sent(store, user, agent)
    second = await sent(store, user, agent)
    run = await store.runs.get(user.id, second.run.id)
    assert run == second.run
    assert (run.status, run.in_mailbox, run.turn, second.opened) == (RunStatus.WAITING, True, 2, None)
    assert run.error is not None
    assert run.error.code == IN_MAILBOX
    assert [data_of(event).get("status") for event in await store.events.after(run.id, 0, 10)] == ["created", "waiting"]
    assert [one.id for one in await store.runs.unfinished()] == [first.run.id]
    assert await store.agents.mailbox(agent.id) == [run.id]


async def test_a_message_wakes_an_agent_that_has_no_process(store: Store, user: User) -> None:
    agent = await spawned(store, user)
    waiting = await sent(store, user, agent)
    assert (waiting.run.status, waiting.placed) == (RunStatus.WAITING, None)
    await started_process(store, "one")
    placed = await store.agent_processes.place_waiting(agent.pool)
    assert [(one.agent_id, one.process_id, one.opened) for one in placed] == [(agent.id, "one", waiting.run.id)]
    other = await spawned(store, user, "asleep")
    await store.agent_processes.drain("one")
    await started_process(store, "two")
    added = await sent(store, user, other)
    assert added.placed is not None
    assert (added.placed.process_id, added.opened, added.run.status) == ("two", added.run.id, RunStatus.QUEUED)


async def test_a_message_to_an_agent_that_is_not_there_is_refused(
    store: Store, user: User, stranger: User, agent: Agent
) -> None:
    with pytest.raises(NotFound):
        await sent(store, stranger, agent)
    await store.agents.terminate(user.id, agent.id)
    with pytest.raises(AgentTerminated):
        await sent(store, user, agent)
    assert await store.agent_messages.of_agent(agent.id) == []


async def test_a_full_mailbox_refuses_a_message_and_takes_it_when_there_is_room(
    store: Store, user: User, agent: Agent
) -> None:
    def another() -> Run:
        return message_to(agent, new_run(user))

    first = await store.agent_messages.add(another(), mailbox_max=2)
    for _ in range(2):
        await store.agent_messages.add(another(), mailbox_max=2)
    with pytest.raises(MailboxFull, match="2 messages wait"):
        await store.agent_messages.add(another(), mailbox_max=2)
    await store.runs.cancel(user.id, first.run.id)
    added = await store.agent_messages.add(another(), mailbox_max=2)
    assert added.run.turn == 4


async def test_the_same_key_and_message_answer_the_same_message(store: Store, user: User, agent: Agent) -> None:
    run = message_to(agent, new_run(user))
    first = await store.agent_messages.add(run, mailbox_max=10, idempotency=("key", "digest"))
    again = await store.agent_messages.add(
        message_to(agent, new_run(user)), mailbox_max=10, idempotency=("key", "digest")
    )
    assert (again.run, again.is_new, again.opened) == (first.run, False, None)
    with pytest.raises(IdempotencyKeyReused):
        await store.agent_messages.add(run, mailbox_max=10, idempotency=("key", "another"))
    assert len(await store.agent_messages.of_agent(agent.id)) == 1


# --- every way to end ---


def completed(transaction: RunTransaction) -> None:
    transaction.finish(RunStatus.COMPLETED, None, {"value": None})


def failed(transaction: RunTransaction) -> None:
    transaction.finish(RunStatus.FAILED, ERROR)


def dead(transaction: RunTransaction) -> None:
    transaction.dead_letter(DeadReason.POISON, 3)
    transaction.finish(RunStatus.FAILED, RunError("worker_lost", "3 workers were lost"))


@pytest.mark.parametrize("end", [completed, failed, dead])
async def test_the_end_of_a_running_message_opens_the_next(
    store: Store, agent: Agent, three: list[str], end: Any
) -> None:
    await ended(store, agent, three[0], write=end)
    assert await open_run(store, agent) == three[1]
    assert (await statuses(store, *three))[1:] == [RunStatus.QUEUED, RunStatus.WAITING]
    events = [data_of(event).get("status") for event in await store.events.after(three[1], 0, 10)]
    assert events == ["created", "waiting", "queued"]


async def test_a_message_that_is_ended_by_its_row_opens_the_next(store: Store, agent: Agent, three: list[str]) -> None:
    await store.running_runs.end_by_row(three[0], 1, RunError("not_stored", "refused"), None)
    assert await open_run(store, agent) == three[1]


async def test_the_cancel_of_a_queued_message_opens_the_next(store: Store, user: User, agent: Agent) -> None:
    first, second = (await sent(store, user, agent)).run.id, (await sent(store, user, agent)).run.id
    await store.runs.cancel(user.id, first)
    assert await open_run(store, agent) == second
    assert await statuses(store, first, second) == [RunStatus.CANCELLED, RunStatus.QUEUED]


async def test_the_cancel_of_a_message_that_waits_for_a_person_opens_the_next(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    await store.running_runs.write(three[0], 1, lambda transaction: transaction.wait_for_person(ERROR))
    assert await open_run(store, agent) == three[0]
    await store.runs.cancel(user.id, three[0])
    assert await open_run(store, agent) == three[1]


async def test_the_cancel_of_a_message_in_the_mailbox_takes_it_out_and_opens_nothing(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    run, events = await store.runs.cancel(user.id, three[1])
    assert (run.status, run.in_mailbox) == (RunStatus.CANCELLED, False)
    assert [data_of(event)["status"] for event in events] == ["cancelled", "cancelled"]
    assert await open_run(store, agent) == three[0]
    await ended(store, agent, three[0])
    assert await open_run(store, agent) == three[2]


async def test_the_last_end_leaves_the_agent_free(store: Store, user: User, agent: Agent) -> None:
    only = await sent(store, user, agent)
    await store.running_runs.take(only.run.id, 1, "worker")
    await ended(store, agent, only.run.id)
    assert await open_run(store, agent) is None
    assert (await sent(store, user, agent)).opened is not None


async def test_a_message_that_waits_or_is_tried_again_stays_the_open_one(
    store: Store, agent: Agent, three: list[str]
) -> None:
    running = three[0]
    writes = [
        lambda transaction: transaction.queue_again(attempt=2, error=ERROR),
        lambda transaction: transaction.queue_again(attempt=None, error=None),
        lambda transaction: transaction.sleep_until(datetime.now(UTC) + timedelta(hours=1)),
    ]
    for generation, write in enumerate(writes, 1):
        await store.running_runs.write(running, generation, write)
        assert await open_run(store, agent) == running
        assert (await statuses(store, *three))[1:] == [RunStatus.WAITING] * 2
        await store.running_runs.take(running, generation + 1, "worker")


# --- what a turn leaves with its agent ---


async def test_a_turn_writes_the_agents_state_with_its_end(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    with pytest.raises(AgentBusy):
        await store.agents.put_state(user.id, agent.id, {"by": "a person"})

    def end(transaction: RunTransaction) -> None:
        completed(transaction)
        transaction.end_turn(agent.id, state={"turns": 1}, summary={"until_turn": 1, "text": "…"})

    await store.running_runs.write(three[0], 1, end)
    state = await store.agents.state(user.id, agent.id)
    assert (state.value, state.version, state.summary) == ({"turns": 1}, 1, {"until_turn": 1, "text": "…"})


async def test_a_turn_that_another_worker_has_taken_over_writes_nothing_of_its_agent(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    await store.running_runs.take(three[0], 2, "another")
    with pytest.raises(Exception, match="generation 1"):
        await ended(store, agent, three[0])
    assert (await store.agents.state(user.id, agent.id)).version == 0
    assert await open_run(store, agent) == three[0]


# --- again ---


async def test_a_retry_of_an_older_turn_waits_for_the_open_one_and_is_the_next(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    await ended(store, agent, three[0], write=failed)
    run, events = await store.runs.retry(user.id, three[0], uncertain_step_is_done=None)
    assert (run.status, run.in_mailbox, run.turn) == (RunStatus.WAITING, True, 1)
    assert [data_of(event)["status"] for event in events] == ["waiting"]
    assert await open_run(store, agent) == three[1]
    with pytest.raises(TransitionNotAllowed, match="mailbox"):
        await store.runs.retry(user.id, three[0], uncertain_step_is_done=None)
    await store.runs.cancel(user.id, three[1])
    assert await open_run(store, agent) == three[0]


async def test_a_retry_while_the_agent_is_free_goes_on_at_once(store: Store, user: User, agent: Agent) -> None:
    only = (await sent(store, user, agent)).run.id
    await store.running_runs.take(only, 1, "worker")
    await ended(store, agent, only, write=dead)
    run, _ = await store.runs.redrive(only)
    assert (run.status, run.in_mailbox, await open_run(store, agent)) == (RunStatus.QUEUED, False, only)


async def test_a_retry_of_a_turn_whose_agent_is_terminated_is_refused(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    await ended(store, agent, three[0], write=failed)
    await store.agents.terminate(user.id, agent.id)
    with pytest.raises(AgentTerminated):
        await store.runs.retry(user.id, three[0], uncertain_step_is_done=None)
    assert await statuses(store, three[0]) == [RunStatus.FAILED]


async def test_a_fork_of_a_message_is_a_run_without_an_agent(store: Store, user: User, three: list[str]) -> None:
    new = NewFork(new_run_id(), Priority.NORMAL)
    run, _ = await store.derived_runs.fork(user.id, three[1], new, start=True)
    assert (run.agent_id, run.turn, run.in_mailbox, run.queue) == (None, None, False, DEFAULT_QUEUE)
    assert run.status is RunStatus.QUEUED


async def test_a_replay_of_a_message_is_refused(store: Store, user: User, agent: Agent, three: list[str]) -> None:
    await ended(store, agent, three[0])
    with pytest.raises(Conflict, match="send it again"):
        await store.derived_runs.replay(user.id, three[0], new_run_id(), Priority.NORMAL)


# --- paused and terminated ---


async def test_a_paused_agent_opens_nothing_until_it_is_resumed(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    assert (await store.agents.pause(user.id, agent.id)).paused_at is not None
    await ended(store, agent, three[0])
    assert await open_run(store, agent) is None
    assert (await sent(store, user, agent)).opened is None
    resumed, opened = await store.agents.resume(user.id, agent.id)
    assert (resumed.paused_at, resumed.open_run_id, opened) == (None, three[1], three[1])


async def test_a_terminated_agent_keeps_its_mailbox_and_opens_nothing(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    await store.agents.terminate(user.id, agent.id)
    with pytest.raises(AgentBusy):
        await store.agents.delete(user.id, agent.id)
    await ended(store, agent, three[0])
    assert await open_run(store, agent) is None
    assert await store.agents.mailbox(agent.id) == three[1:]
    with pytest.raises(Conflict, match="2 messages"):
        await store.agents.delete(user.id, agent.id)
    for run_id in three[1:]:
        await store.runs.cancel(user.id, run_id)
    await store.agents.delete(user.id, agent.id)
    assert len(await store.agent_messages.of_agent(agent.id)) == 3


# --- messages of runs ---


def sending(run: Run, mailbox_max: int = 10) -> Any:
    return lambda transaction: transaction.send_message("1.send", run, mailbox_max=mailbox_max)


async def test_a_step_sends_its_message_once(store: Store, user: User, agent: Agent, three: list[str]) -> None:
    other = await spawned(store, user, "other")
    for _ in range(2):
        await store.running_runs.write(three[0], 1, sending(message_to(other, new_run(user, prompt="do it"))))
    [message] = await store.agent_messages.of_agent(other.id)
    assert (message.prompt, message.turn) == ("do it", 1)
    assert await store.agent_messages.sent(user.id, three[0], "1.send") == message
    assert await store.agent_messages.sent(user.id, three[0], "2.send") is None


async def test_a_message_that_is_refused_leaves_nothing_of_its_transaction(
    store: Store, user: User, stranger: User, agent: Agent, three: list[str]
) -> None:
    gone, full = await spawned(store, user, "gone"), await spawned(store, user, "full")
    foreign = await spawned(store, stranger)
    await store.agents.terminate(user.id, gone.id)
    await sent(store, user, full)
    refused = [
        (AgentTerminated, message_to(gone, new_run(user))),
        (MailboxFull, message_to(full, new_run(user))),
        (NotFound, message_to(foreign, new_run(user))),
        (NotFound, new_run(user, agent_id="nobody")),
    ]
    for kind, message in refused:

        def write(transaction: RunTransaction, message: Run = message) -> None:
            transaction.sleep_until(datetime.now(UTC))
            sending(message, mailbox_max=1)(transaction)

        with pytest.raises(kind):
            await store.running_runs.write(three[0], 1, write)
        assert await statuses(store, three[0]) == [RunStatus.RUNNING]
    assert len(await store.agent_messages.of_agent(full.id)) == 1


async def test_who_asks_another_agent_is_woken_by_the_end_of_its_message(
    store: Store, user: User, agent: Agent, three: list[str]
) -> None:
    other = await placed_agent(store, user, "other")
    asked = message_to(other, new_run(user, parent_id=three[0]))

    def ask(transaction: RunTransaction) -> None:
        sending(asked)(transaction)
        transaction.wait_for_runs(RunError("waits_for_run", "…"), [asked.id])

    await store.running_runs.write(three[0], 1, ask)
    assert await statuses(store, three[0], asked.id) == [RunStatus.WAITING, RunStatus.QUEUED]
    await store.running_runs.take(asked.id, 1, "worker")

    def answer(transaction: RunTransaction) -> None:
        transaction.finish(RunStatus.COMPLETED, None, {"value": "yes"}, three[0])
        transaction.end_turn(other.id)

    await store.running_runs.write(asked.id, 1, answer)
    assert await statuses(store, three[0]) == [RunStatus.QUEUED]
    assert (await open_run(store, agent), await open_run(store, other)) == (three[0], None)


async def test_a_turn_may_send_a_message_to_its_own_agent(store: Store, user: User, agent: Agent) -> None:
    first = (await sent(store, user, agent)).run.id
    await store.running_runs.take(first, 1, "worker")
    own = message_to(agent, new_run(user))

    def end(transaction: RunTransaction) -> None:
        sending(own)(transaction)
        completed(transaction)
        transaction.end_turn(agent.id)

    await store.running_runs.write(first, 1, end)
    assert await open_run(store, agent) == own.id


# --- pages ---


async def test_messages_are_read_in_both_orders_page_by_page(store: Store, user: User, agent: Agent) -> None:
    for _ in range(5):
        await sent(store, user, agent)

    async def turns(**asked: Any) -> list[int | None]:
        return [run.turn for run in await store.agent_messages.of_agent(agent.id, **asked)]

    assert await turns(limit=2) == [1, 2]
    assert await turns(limit=2, after_turn=2) == [3, 4]
    assert await turns(limit=2, newest_first=True) == [5, 4]
    assert await turns(newest_first=True, after_turn=4) == [3, 2, 1]
    fourth = await store.agent_messages.of_turn(agent.id, 4)
    assert fourth is not None
    assert fourth.turn == 4
    assert await store.agent_messages.of_turn(agent.id, 6) is None
