"""Agents, their processes and messages as tests make them."""

from collections.abc import Callable
from typing import Any

from backplane.domain.agents import AddedMessage, Agent, PoolProcess, message_to
from backplane.domain.runs import RunStatus
from backplane.domain.users import User
from backplane.store import RunTransaction, Store
from tests.submitted import new_run

POOL = "developer_pool"


async def started_process(store: Store, process_id: str, **values: Any) -> PoolProcess:
    """A process of POOL, whose lease lasts for long."""
    settled = {"pool": POOL, "node": "node", "ranges": None, "capacity": 10, "lease_seconds": 600.0}
    return await store.agent_processes.register(process_id, **{**settled, **values})


async def spawned(store: Store, user: User, name: str = "ada", pool: str = POOL) -> Agent:
    agent, _ = await store.agents.spawn(user.id, pool, name, most=10_000)
    return agent


async def sent(store: Store, user: User, agent: Agent, text: str = "hello", **values: Any) -> AddedMessage:
    """A message to the agent; `values` are fields of Run."""
    run = message_to(agent, new_run(user, prompt=text, **values))
    return await store.agent_messages.add(run, mailbox_max=1000)


async def placed_agent(store: Store, user: User, name: str = "ada") -> Agent:
    """An agent in a process of its own."""
    await started_process(store, f"of {name}", capacity=1)
    return await spawned(store, user, name)


def _completed(transaction: RunTransaction) -> None:
    transaction.finish(RunStatus.COMPLETED, None, {"value": None})


async def ended(
    store: Store,
    agent: Agent,
    run_id: str,
    *,
    generation: int = 1,
    write: Callable[[RunTransaction], None] = _completed,
) -> None:
    """The worker of a running message ends it so."""

    def end(transaction: RunTransaction) -> None:
        write(transaction)
        transaction.end_turn(agent.id)

    await store.running_runs.write(run_id, generation, end)
