"""What all agents of the pools do, counted for the metrics."""

from collections.abc import Callable
from datetime import UTC, datetime

from backplane.domain.decisions import Decision, DecisionKind, DecisionStatus
from backplane.domain.runs import WAITS_FOR_EVENT, RunError, new_run_id
from backplane.domain.users import User
from backplane.store import RunTransaction, Store
from tests.agents import POOL, sent, spawned, started_process


async def test_agents_are_counted_by_what_they_do(store: Store, user: User) -> None:
    assert await store.agent_pools.activity() == []
    await spawned(store, user, "asleep")
    await started_process(store, "one")

    async def turn(name: str, write: Callable[[RunTransaction, str], None] | None = None) -> None:
        agent = await spawned(store, user, name)
        run = (await sent(store, user, agent)).run
        await store.running_runs.take(run.id, 1, "worker")
        if write is not None:
            await store.running_runs.write(run.id, 1, lambda transaction: write(transaction, run.id))

    def wait(transaction: RunTransaction, _: str) -> None:
        transaction.wait_for_person(RunError(WAITS_FOR_EVENT, "for an event"))

    def ask(kind: DecisionKind) -> Callable[[RunTransaction, str], None]:
        def write(transaction: RunTransaction, run_id: str) -> None:
            decision = Decision(new_run_id(), run_id, user.id, "a", kind, {}, DecisionStatus.PENDING, datetime.now(UTC))
            transaction.ask(decision)
            transaction.wait_for_person(RunError("waits", "for a person"), [decision.id])

        return write

    await spawned(store, user, "idle")
    paused = await spawned(store, user, "paused")
    await store.agents.pause(user.id, paused.id)
    gone = await spawned(store, user, "gone")
    await store.agents.terminate(user.id, gone.id)
    await turn("working")
    await turn("waits", wait)
    for kind in DecisionKind:
        await turn(kind.value, ask(kind))

    found = await store.agent_pools.activity()
    assert {(one.pool, one.role) for one in found} == {(POOL, "developer")}
    states = ("working", "waiting", "approval", "question", "budget", "idle", "paused")
    assert {one.state: one.agents for one in found} == {"asleep": 1, **dict.fromkeys(states, 1)}
    waiting = {one.state for one in found if one.longest_wait_seconds > 0}
    assert waiting == {kind.value for kind in DecisionKind}
