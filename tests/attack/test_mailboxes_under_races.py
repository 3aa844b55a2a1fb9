"""The mailboxes of agents while all that changes them happens at once, by several processes.

Senders, workers that end turns in every way, people who cancel, retry, pause and resume, processes that come and go,
all on the same few agents. Whatever they do: one message of an agent is open at a time, messages are begun in their
order, each ends once, and the state of an agent is the sum of the turns that it has completed. Two transactions that
wait for one another would show as a database that does not answer.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from backplane.domain.agents import Agent, message_to
from backplane.domain.runs import FINAL, CancelRequested, RunError, RunIsOver, RunStatus
from backplane.domain.users import Tier, User
from backplane.errors import Conflict, MailboxFull, Superseded
from backplane.store import Database, RunTransaction, Store
from backplane.store.agents.tables import agents
from backplane.store.tables import runs
from tests.agents import POOL, spawned, started_process
from tests.submitted import new_run

MAILBOX_MAX = 12
ERROR = RunError("handler_failed", "it failed")


class Town:
    """Some agents, and everybody who acts on them. `begun`: by agent, the turns that were begun for the first time, in
    the order in which they were."""

    def __init__(self, stores: list[Store], user: User, inhabitants: list[Agent], seed: int) -> None:
        self.stores = stores
        self.user = user
        self.agents = inhabitants
        self.random = random.Random(seed)
        self.begun: dict[str, list[int]] = defaultdict(list)
        self.completed: dict[str, int] = defaultdict(int)
        self.refused = 0
        self.is_closing = False
        self.is_over = False

    @property
    def store(self) -> Store:
        return self.random.choice(self.stores)

    async def send(self, count: int) -> None:
        for number in range(count):
            agent = self.random.choice(self.agents)
            late = datetime.now(UTC) + timedelta(seconds=self.random.choice([-1, 60, 60, 60]))
            run = message_to(agent, new_run(self.user, prompt=f"message {number}", expires_at=late))
            try:
                await self.store.agent_messages.add(run, mailbox_max=MAILBOX_MAX)
            except MailboxFull:
                self.refused += 1

    async def work(self) -> None:
        """A worker: it takes what is queued, and ends it in some way."""
        while not self.is_over:
            for found in await self.store.runs.unfinished():
                if found.status is RunStatus.QUEUED:
                    with suppress(Superseded, CancelRequested, RunIsOver, MailboxFull):
                        await self._turn(found.id, found.generation + 1)
            await asyncio.sleep(0)

    async def _turn(self, run_id: str, generation: int) -> None:
        taken = await self.store.running_runs.take(run_id, generation, "worker")
        if taken is None:
            return
        run = taken.run
        assert run.agent_id is not None
        assert run.turn is not None
        if generation == 1:
            self.begun[run.agent_id].append(run.turn)
        state = await self.store.agents.state(self.user.id, run.agent_id)
        other = self.random.choice(self.agents)
        sent = message_to(other, new_run(self.user, parent_id=run.id, origin={"depth": 1}))
        # Only those after it, or some would ask in a circle, and wait for ever.
        can_ask = run.origin is None and other.id > run.agent_id and not self.is_closing
        way = self.random.choice(["complete", "complete", "fail", "again", "send", "ask" if can_ask else "complete"])

        def write(transaction: RunTransaction) -> None:
            if way in ("send", "ask") and can_ask:
                transaction.send_message("1.send", sent, mailbox_max=MAILBOX_MAX)
            if way == "again" and generation < 3:
                transaction.queue_again(attempt=None, error=None)
            elif way == "ask" and generation == 1:
                transaction.wait_for_runs(RunError("waits_for_run", "…"), [sent.id])
            elif way == "fail":
                transaction.finish(RunStatus.FAILED, ERROR, parent_id=run.parent_id)
                transaction.end_turn(run.agent_id or "")
            else:
                transaction.finish(RunStatus.COMPLETED, None, {}, run.parent_id)
                transaction.end_turn(run.agent_id or "", state={"completed": state.value.get("completed", 0) + 1})

        def cancel(transaction: RunTransaction) -> None:
            transaction.finish(RunStatus.CANCELLED, None, parent_id=run.parent_id)
            transaction.end_turn(run.agent_id or "")

        transaction = RunTransaction()
        transaction.unless_cancelled()
        write(transaction)
        try:
            await self.store.running_runs.commit(run_id, generation, transaction.writes)
        except (CancelRequested, MailboxFull):
            await self.store.running_runs.write(run_id, generation, cancel)
            return
        if any(getattr(one, "changes", {}).get("state") for one in transaction.writes):
            self.completed[run.agent_id] += 1

    async def meddle(self) -> None:
        """People: they cancel, retry, pause and resume."""
        while not self.is_closing:
            agent = self.random.choice(self.agents)
            messages = await self.store.agent_messages.of_agent(agent.id, newest_first=True, limit=MAILBOX_MAX)
            act = self.random.choice(["cancel", "retry", "pause", "resume", "resume"])
            with suppress(Conflict):
                if act == "pause":
                    await self.store.agents.pause(self.user.id, agent.id)
                elif act == "resume":
                    await self.store.agents.resume(self.user.id, agent.id)
                elif messages:
                    run = self.random.choice(messages)
                    if act == "cancel":
                        await self.store.runs.cancel(self.user.id, run.id)
                    elif run.status is RunStatus.FAILED:
                        await self.store.runs.retry(self.user.id, run.id, uncertain_step_is_done=None)
            await asyncio.sleep(0.002)

    async def move(self) -> None:
        """Processes that come and go, the manager that places agents, and the controller."""
        number = 0
        while not self.is_closing:
            number += 1
            name = f"process {number % 3}"
            await started_process(self.store, name, capacity=2)
            await self.store.agent_processes.place_waiting(POOL)
            if number % 5 == 0:
                await self.store.agent_processes.drain(name)
            if number % 7 == 0:
                await self.store.agent_processes.renew(name, -1.0)
                await self.store.agent_processes.expire()
            await self.store.agent_processes.put_to_sleep(POOL)
            await self.look_after()
            await asyncio.sleep(0.002)

    async def look_after(self) -> None:
        repair = self.store.agent_repair
        for run_id in await repair.expired(100):
            await repair.end(run_id, ERROR)

    async def watch(self) -> None:
        """One message of an agent is open at a time, and its row names it."""
        open_runs = (
            select(runs.c.agent_id, runs.c.id, agents.c.open_run_id)
            .join(agents, agents.c.id == runs.c.agent_id)
            .where(runs.c.status.in_(["queued", "running", "waiting"]), ~runs.c.in_mailbox)
        )
        while not self.is_closing:
            rows = await self.store.database.read(lambda connection: connection.execute(open_runs).all())
            assert len({row.agent_id for row in rows}) == len(rows)
            assert all(row.id == row.open_run_id for row in rows)
            assert await self.store.agent_repair.broken(10) == []
            await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Everybody is resumed and placed, until all messages are over."""
        await self.store.agent_pools.patch(POOL, {"max_processes": 10})
        for number in range(4):
            await started_process(self.store, f"last {number}", capacity=len(self.agents))
        async with asyncio.timeout(60):
            while True:
                for agent in self.agents:
                    await self.store.agents.resume(self.user.id, agent.id)
                    await self.store.agent_processes.place(agent.id)
                await self.look_after()
                if not sum((await self.store.runs.under_way()).values()):
                    self.is_over = True
                    return
                await asyncio.sleep(0.02)


@pytest.fixture
async def stores(database_url: str) -> AsyncIterator[list[Store]]:
    databases = [Database(database_url) for _ in range(3)]
    yield [Store(database) for database in databases]
    for database in databases:
        await database.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_all_that_happens_to_a_mailbox_at_once_keeps_its_order_and_loses_nothing(
    stores: list[Store], seed: int
) -> None:
    token, _ = await stores[0].users.create_token("ada", Tier.STANDARD)
    await stores[0].agent_pools.patch(POOL, {"max_processes": 3, "sleep_after_seconds": 0})
    inhabitants = [await spawned(stores[0], token.user, f"agent-{number}") for number in range(5)]
    town = Town(stores, token.user, inhabitants, seed)
    async with asyncio.TaskGroup() as everybody:
        senders = [everybody.create_task(town.send(60)) for _ in range(3)]
        for act in (town.work, town.work, town.work, town.meddle, town.move, town.watch):
            everybody.create_task(act())
        await asyncio.wait(senders)
        town.is_closing = True
        everybody.create_task(town.settle())
    found = await stores[0].database.read(
        lambda connection: connection.execute(select(runs.c.agent_id, runs.c.turn, runs.c.status)).all()
    )
    assert {RunStatus(row.status) for row in found} <= FINAL
    for agent in inhabitants:
        turns = sorted(row.turn for row in found if row.agent_id == agent.id)
        assert turns == list(range(1, len(turns) + 1))
        assert town.begun[agent.id] == sorted(town.begun[agent.id])
        ended = await stores[0].agents.get(token.user.id, agent.id)
        assert (ended.open_run_id, await stores[0].agents.mailbox(agent.id)) == (None, [])
        state = await stores[0].agents.state(token.user.id, agent.id)
        assert state.value.get("completed", 0) == town.completed[agent.id] == state.version
    assert len(found) > 150 - town.refused


async def test_two_agents_that_write_to_one_another_at_once_wait_for_nobody(
    stores: list[Store],
) -> None:
    """Each locks its own row and the other's, in one order: in two orders the database would end one of them."""
    token, _ = await stores[0].users.create_token("ada", Tier.STANDARD)
    await started_process(stores[0], "one", capacity=2)
    pair = [await spawned(stores[0], token.user, name) for name in ("one", "two")]
    for _ in range(10):
        running = []
        for agent in pair:
            found = await stores[0].agents.get(token.user.id, agent.id)
            run_id = found.open_run_id
            if run_id is None:
                message = message_to(agent, new_run(token.user))
                run_id = (await stores[0].agent_messages.add(message, mailbox_max=100)).run.id
            await stores[0].running_runs.take(run_id, 1, "worker")
            running.append(run_id)

        async def end(number: int, run_id: str) -> None:
            own, other = pair[number], pair[1 - number]

            def write(transaction: RunTransaction) -> None:
                transaction.send_message("1.send", message_to(other, new_run(token.user)), mailbox_max=100)
                transaction.finish(RunStatus.COMPLETED, None, {})
                transaction.end_turn(own.id)

            await stores[number].running_runs.write(run_id, 1, write)

        await asyncio.gather(*(end(number, run_id) for number, run_id in enumerate(running)))
    assert [len(await stores[0].agent_messages.of_agent(agent.id)) for agent in pair] == [11, 11]
