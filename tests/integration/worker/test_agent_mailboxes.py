"""What is done to a message of an agent, and what the queue and the watchers come to know of it."""

import pytest

from backplane.domain.agents import Agent
from backplane.domain.runs import RunError, RunStatus
from backplane.resources import run_actions
from backplane.run_actions.actions import RunActions
from backplane.run_actions.pushing import push_open_message
from backplane.store import RunTransaction
from tests.agents import ended, placed_agent, sent, spawned, started_process
from tests.platform.workers import Platform


@pytest.fixture
async def agent(platform: Platform) -> Agent:
    return await placed_agent(platform.resources.store, platform.user)


@pytest.fixture
def actions(platform: Platform) -> RunActions:
    return run_actions(platform.settings, platform.resources)


async def claimed(platform: Platform, agent: Agent) -> list[str]:
    """The runs that a worker gets of the agent's queue now, and has from then on."""
    claims = await platform.resources.queue.claim("worker", 10, 0.0, queues=(agent.queue,))
    for claim in claims:
        await platform.resources.store.running_runs.take(claim.run_id, claim.generation, "worker")
    return [claim.run_id for claim in claims]


async def pushed(platform: Platform, agent: Agent) -> None:
    resources = platform.resources
    await push_open_message(resources.store, resources.queue, resources.event_log, agent.id)


async def three(platform: Platform, agent: Agent) -> list[str]:
    store = platform.resources.store
    ids = [(await sent(store, platform.user, agent)).run.id for _ in range(3)]
    await pushed(platform, agent)
    return ids


async def test_the_cancel_of_the_open_message_brings_the_next_into_the_queue(
    platform: Platform, actions: RunActions, agent: Agent
) -> None:
    first, second, third = await three(platform, agent)
    await actions.cancel(platform.user, first)
    assert await claimed(platform, agent) == [second]
    await actions.cancel(platform.user, third)
    assert await claimed(platform, agent) == []
    store = platform.resources.store
    assert (await store.runs.get(platform.user.id, third)).status is RunStatus.CANCELLED


async def test_a_message_that_is_retried_waits_outside_of_the_queue_for_the_open_one(
    platform: Platform, actions: RunActions, agent: Agent
) -> None:
    store = platform.resources.store
    first, second, _ = await three(platform, agent)
    assert await claimed(platform, agent) == [first]

    def fail(transaction: RunTransaction) -> None:
        transaction.finish(RunStatus.FAILED, RunError("handler_failed", "no"))

    await ended(store, agent, first, write=fail)
    await pushed(platform, agent)
    retried = await actions.retry(platform.user, first, uncertain_step_is_done=None)
    assert (retried.status, retried.in_mailbox) == (RunStatus.WAITING, True)
    assert await claimed(platform, agent) == [second]
    await ended(store, agent, second)
    await pushed(platform, agent)
    assert (await store.agents.get(platform.user.id, agent.id)).open_run_id == first


async def test_what_is_pushed_for_an_agent_without_a_process_gets_it_one(platform: Platform, agent: Agent) -> None:
    store = platform.resources.store
    other = await spawned(store, platform.user, "other")
    run_id = (await sent(store, platform.user, other)).run.id
    await pushed(platform, other)
    assert await claimed(platform, other) == []
    await started_process(store, "late")
    await pushed(platform, other)
    assert await claimed(platform, other) == [run_id]
    assert agent.process_id != "late"


async def test_terminating_spares_the_running_turn_unless_it_is_forced(
    platform: Platform, actions: RunActions, agent: Agent
) -> None:
    store = platform.resources.store
    first, *kept = await three(platform, agent)
    assert await claimed(platform, agent) == [first]
    asked = (await sent(store, platform.user, agent, parent_id="who asked")).run.id
    await actions.terminate(platform.user, agent.id, force=False)
    assert (await store.runs.get(platform.user.id, first)).cancel_requested_at is None
    assert await store.agents.mailbox(agent.id) == kept
    refused = await store.runs.get(platform.user.id, asked)
    assert refused.error is not None
    assert (refused.status, refused.error.code) == (RunStatus.CANCELLED, "agent_terminated")
    await actions.terminate(platform.user, agent.id, force=True)
    assert (await store.runs.get(platform.user.id, first)).cancel_requested_at is not None


async def test_terminating_ends_an_open_turn_that_no_worker_has(
    platform: Platform, actions: RunActions, agent: Agent
) -> None:
    first, *kept = await three(platform, agent)
    await actions.terminate(platform.user, agent.id, force=False)
    run = await platform.resources.store.runs.get(platform.user.id, first)
    assert run.error is not None
    assert (run.status, run.error.code) == (RunStatus.CANCELLED, "agent_terminated")
    assert await platform.resources.store.agents.mailbox(agent.id) == kept
    assert await claimed(platform, agent) == []
