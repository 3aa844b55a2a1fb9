"""What users are shown of agents: what each does, what keeps it from doing more, and its turns."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from backplane.domain.agents import Agent, AgentStatus
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.users import User
from backplane.store import RunTransaction, Store
from tests.agents import POOL, ended, placed_agent, sent, spawned, started_process
from tests.submitted import new_run


async def status_of(store: Store, user: User, agent: Agent) -> AgentStatus:
    return (await store.agent_views.statuses([await store.agents.get(user.id, agent.id)]))[agent.id]


async def taken(store: Store, user: User, agent: Agent) -> Run:
    """A turn that a worker carries out."""
    run = (await sent(store, user, agent)).run
    await store.running_runs.take(run.id, 1, "worker")
    return run


async def waits(store: Store, run: Run, write: Callable[[RunTransaction], None]) -> None:
    await store.running_runs.write(run.id, 1, write)


async def test_each_agent_of_a_list_is_shown_with_what_it_does(store: Store, user: User) -> None:
    await started_process(store, "one")
    idle, working, paused, failed, gone = [
        await spawned(store, user, name) for name in ("idle", "working", "paused", "failed", "gone")
    ]
    await taken(store, user, working)
    await store.agents.pause(user.id, paused.id)
    await store.agents.terminate(user.id, gone.id)
    error = RunError("role_failed", "…")
    run = await taken(store, user, failed)
    await ended(store, failed, run.id, write=lambda write: write.finish(RunStatus.FAILED, error))
    shown = await store.agents.page(user.id, terminated=True)
    assert await store.agent_views.statuses(shown) == {
        idle.id: AgentStatus.IDLE,
        working.id: AgentStatus.WORKING,
        paused.id: AgentStatus.PAUSED,
        failed.id: AgentStatus.FAILED,
        gone.id: AgentStatus.TERMINATED,
    }
    assert await store.agent_views.statuses([]) == {}


async def test_an_agent_without_a_process_sleeps_and_one_with_mail_waits_for_one(store: Store, user: User) -> None:
    agent = await spawned(store, user)
    assert await status_of(store, user, agent) is AgentStatus.ASLEEP
    await sent(store, user, agent)
    assert await status_of(store, user, agent) is AgentStatus.WAITING


async def test_an_agent_of_a_process_whose_lease_is_over_has_none(store: Store, user: User) -> None:
    await started_process(store, "one")
    agent = await spawned(store, user)
    assert await status_of(store, user, agent) is AgentStatus.IDLE
    await store.agent_processes.renew("one", -1.0)
    assert await status_of(store, user, agent) is AgentStatus.ASLEEP


async def test_a_turn_that_asks_a_person_waits_for_that(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    run = await taken(store, user, agent)
    await waits(store, run, lambda write: write.wait_for_person(RunError("approval_required", "…")))
    assert await status_of(store, user, agent) is AgentStatus.WAITING_FOR_PERSON


async def test_an_agent_that_asks_another_one_is_shown_with_its_name(store: Store, user: User) -> None:
    ada, bob = await placed_agent(store, user, "ada"), await placed_agent(store, user, "bob")
    run = await taken(store, user, ada)
    question = (await sent(store, user, bob, parent_id=run.id)).run
    await waits(store, run, lambda write: write.wait_for_runs(RunError("waits_for_run", "…"), [question.id]))
    situation = await store.agent_views.situation(await store.agents.get(user.id, ada.id))
    assert (situation.status, list(situation.asked)) == (AgentStatus.WAITING_FOR_AGENT, ["bob"])


async def test_the_situation_of_an_agent_has_its_turn_its_mail_and_the_processes_of_its_pool(
    store: Store, user: User
) -> None:
    agent = await placed_agent(store, user)
    await started_process(store, "late", lease_seconds=-1.0)
    await store.agent_processes.register(
        "elsewhere", "tester_pool", node="n", ranges=None, capacity=1, lease_seconds=600.0
    )
    run = await taken(store, user, agent)
    await sent(store, user, agent)
    situation = await store.agent_views.situation(await store.agents.get(user.id, agent.id))
    assert (situation.pool.name, situation.status, situation.waiting) == (POOL, AgentStatus.WORKING, 1)
    assert situation.open_run is not None
    assert (situation.open_run.id, situation.open_run.turn, situation.open_run.prompt) == (run.id, 1, "")
    assert [one.process.id for one in situation.processes] == ["late", "of ada"]
    assert [(one.process.id, one.agents) for one in situation.live] == [("of ada", 1)]
    assert situation.has_live_process
    assert abs(situation.at - datetime.now(UTC)) < timedelta(minutes=1)


async def test_the_situation_of_an_agent_whose_last_turn_failed_has_that_turn(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    for error in (RunError("first", "…"), RunError("role_failed", "there is no such thing")):
        run = await taken(store, user, agent)
        await ended(
            store,
            agent,
            run.id,
            write=lambda write, error=error: write.finish(RunStatus.FAILED, error),  # type: ignore[misc]
        )
    situation = await store.agent_views.situation(await store.agents.get(user.id, agent.id))
    assert situation.failed_run is not None
    assert situation.failed_run.error == RunError("role_failed", "there is no such thing")


async def test_a_message_in_a_mailbox_has_a_place(store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    added = [(await sent(store, user, agent)).run for _ in range(4)]
    await store.runs.cancel(user.id, added[1].id)
    current = await store.agents.get(user.id, agent.id)
    ahead = [(await store.agent_views.place_in_mailbox(current, run.turn or 0)).ahead for run in (added[2], added[3])]
    assert ahead == [0, 1]


async def test_turns_come_in_their_order_page_by_page_and_without_what_was_said(store: Store, user: User) -> None:
    agent, other = await spawned(store, user), await spawned(store, user, "other")
    for one in (agent, other, agent, agent):
        await sent(store, user, one, "a secret of theirs")
    views = store.agent_views
    first = await views.turns(agent.id, after_turn=0, limit=2)
    second = await views.turns(agent.id, after_turn=2, limit=2)
    assert [(run.turn, run.prompt) for run in (*first, *second)] == [(1, ""), (2, ""), (3, "")]


async def test_of_runs_those_that_are_messages_are_found_with_their_agents(store: Store, user: User) -> None:
    agent = await spawned(store, user)
    message, run = (await sent(store, user, agent)).run, await store.runs.create(new_run(user))
    assert await store.agent_views.agents_of([message.id, run.id, "nobody"]) == {message.id: agent.id}
    assert await store.agent_views.agents_of([]) == {}
