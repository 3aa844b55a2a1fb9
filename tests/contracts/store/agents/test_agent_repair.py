"""What a controller mends of agents, and messages whose time is up."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import update

from backplane.domain.agents import Agent, agent_terminated, message_expired
from backplane.domain.runs import RunStatus
from backplane.domain.users import User
from backplane.store import Store
from backplane.store.agents.tables import agents
from backplane.store.tables import runs
from tests.agents import ended, placed_agent, sent, spawned

PAST = datetime(2020, 1, 1, tzinfo=UTC)


async def changed(store: Store, agent: Agent, open_run_id: str | None) -> None:
    """Somebody changes the row by hand."""
    statement = update(agents).where(agents.c.id == agent.id).values(open_run_id=open_run_id)
    await store.database.write(lambda connection: connection.execute(statement))


async def test_nothing_is_broken_while_agents_work_sleep_or_are_paused(store: Store, user: User) -> None:
    working, asleep = await placed_agent(store, user), await spawned(store, user, "asleep")
    paused = await placed_agent(store, user, "paused")
    await store.agents.pause(user.id, paused.id)
    for agent in (working, working, asleep, paused):
        await sent(store, user, agent)
    assert await store.agent_repair.broken(10) == []
    assert await store.agent_repair.left_behind(10) == []
    assert await store.agent_repair.expired(10) == []
    assert await store.agent_repair.repair(working.id) is None
    assert await store.agent_repair.repair("nobody") is None


async def test_an_agent_whose_open_message_is_over_gets_its_next_one(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    first, second = (await sent(store, user, agent)).run.id, (await sent(store, user, agent)).run.id
    over = update(runs).where(runs.c.id == first).values(status="completed", finished_at=datetime.now(UTC))
    await store.database.write(lambda connection: connection.execute(over))
    assert await store.agent_repair.broken(10) == [agent.id]
    assert await store.agent_repair.repair(agent.id) == second
    assert await store.agent_repair.broken(10) == []


async def test_an_agent_whose_open_message_was_removed_gets_its_next_one(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    first, second = (await sent(store, user, agent)).run.id, (await sent(store, user, agent)).run.id
    await changed(store, agent, "gone")
    assert await store.agent_repair.broken(10) == [agent.id]
    assert await store.agent_repair.repair(agent.id) == second
    assert first != second


async def test_a_mailbox_that_nobody_opened_is_opened(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    first, second = (await sent(store, user, agent)).run.id, (await sent(store, user, agent)).run.id
    await store.running_runs.take(first, 1, "worker")
    await ended(store, agent, first)
    statement = update(runs).where(runs.c.id == second).values(status="waiting", in_mailbox=True)
    await store.database.write(lambda connection: connection.execute(statement))
    await changed(store, agent, None)
    assert await store.agent_repair.broken(10) == [agent.id]
    assert await store.agent_repair.repair(agent.id) == second


async def test_a_message_whose_time_is_up_is_cancelled_and_says_why(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    later = datetime.now(UTC) + timedelta(hours=1)
    first, second, third = [(await sent(store, user, agent, expires_at=at)).run.id for at in (None, PAST, later)]
    assert await store.agent_repair.expired(10) == [second]
    changed = await store.agent_repair.end(second, message_expired())
    assert changed is not None
    run, events = changed
    assert run.error is not None
    assert (run.status, run.in_mailbox, run.error.code, len(events)) == (
        RunStatus.CANCELLED,
        False,
        "message_expired",
        2,
    )
    assert await store.agent_repair.expired(10) == []
    assert await store.agent_repair.end(second, message_expired()) is None
    await store.runs.cancel(user.id, first)
    assert (await store.agents.get(user.id, agent.id)).open_run_id == third


async def test_a_message_whose_time_is_up_is_not_opened_before_it_is_cancelled(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    first, late, third = [(await sent(store, user, agent, expires_at=at)).run.id for at in (None, PAST, None)]
    await store.runs.cancel(user.id, first)
    assert (await store.agents.get(user.id, agent.id)).open_run_id == third
    assert await store.agents.mailbox(agent.id) == [late]
    assert await store.agent_repair.broken(10) == []


async def test_an_open_message_whose_time_is_up_lets_the_next_one_in(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    first, second = [(await sent(store, user, agent, expires_at=at)).run.id for at in (PAST, None)]
    assert await store.agent_repair.end(first, message_expired()) is not None
    assert (await store.agents.get(user.id, agent.id)).open_run_id == second


async def test_of_a_running_message_whose_time_is_up_the_worker_is_asked_once(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    run_id = (await sent(store, user, agent, expires_at=PAST)).run.id
    await store.running_runs.take(run_id, 1, "worker")
    changed = await store.agent_repair.end(run_id, message_expired())
    assert changed is not None
    assert (changed[0].status, changed[0].cancel_requested_at is not None, changed[1]) == (RunStatus.RUNNING, True, [])
    assert await store.agent_repair.expired(10) == []
    assert await store.agent_repair.end(run_id, message_expired()) is None


async def test_a_turn_that_a_terminated_agent_leaves_behind_is_found_unless_a_worker_has_it(
    store: Store, user: User
) -> None:
    agent, busy = await placed_agent(store, user), await placed_agent(store, user, "busy")
    queued, running = (await sent(store, user, agent)).run.id, (await sent(store, user, busy)).run.id
    await store.running_runs.take(running, 1, "worker")
    for one in (agent, busy):
        await store.agents.terminate(user.id, one.id)
    assert await store.agent_repair.left_behind(10) == [queued]


async def test_mail_of_a_terminated_agent_for_whose_answer_somebody_waits_is_found(store: Store, user: User) -> None:
    agent, asker = await placed_agent(store, user), await placed_agent(store, user, "asker")
    waiting = (await sent(store, user, asker)).run.id
    await store.agents.pause(user.id, agent.id)
    await sent(store, user, agent)
    asked = (await sent(store, user, agent, parent_id=waiting)).run.id
    await store.agents.terminate(user.id, agent.id)
    assert await store.agent_repair.left_behind(10) == [asked] == await store.agents.awaited_mail(agent.id)
    assert await store.agent_repair.end(asked, agent_terminated()) is not None
    assert await store.agent_repair.left_behind(10) == []
