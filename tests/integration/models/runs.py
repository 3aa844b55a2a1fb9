"""Held runs that ask models: the parts of a worker around `RunModels`, without the worker."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from backplane.domain.budgets import RunBudget
from backplane.domain.events import Event, EventType
from backplane.domain.model_calls import RecordedCall
from backplane.domain.runs import Run
from backplane.domain.users import User
from backplane.resources import Resources
from tests.event_data import data_of
from tests.settings import settings_of
from tests.submitted import new_run
from worker.llm.gateway import ModelGateway, open_gateway
from worker.llm.session import RunModels
from worker.metrics import WorkerMetrics
from worker.run.budget import Budget
from worker.run.event_writer import EventWriter
from worker.run.events import RunEvents
from worker.run.interruption import Interruption


@dataclass
class RunModelsInTest:
    """One hold of one run. `events_so_far` are those that are committed."""

    resources: Resources
    user: User
    run: Run
    models: RunModels
    events: RunEvents
    interruption: Interruption

    async def calls(self) -> list[RecordedCall]:
        found = []
        for call in await self.resources.store.model_calls.of_run(self.run.id):
            whole = await self.resources.store.model_calls.find(self.run.id, call.key)
            assert whole is not None
            found.append(whole)
        return found

    async def events_so_far(self) -> list[Event]:
        return await self.resources.store.events.after(self.run.id, 0, 1000)

    async def event_data(self, type: EventType = EventType.MODEL) -> list[dict[str, Any]]:
        await self.events.record()
        return [data_of(event) for event in await self.events_so_far() if event.type is type]

    async def balances(self) -> dict[str, tuple[int, int, int]]:
        """(balance, reserved, spent) by account."""
        accounts = await self.resources.store.ledger.page()
        return {f"{a.owner.partition(':')[0]}:{a.resource}": (a.balance, a.reserved, a.spent) for a in accounts}


@dataclass
class Asking:
    """What runs ask in a test: one gateway, and a way to hold runs."""

    resources: Resources
    user: User
    gateway: ModelGateway
    registry: CollectorRegistry

    async def running(
        self, run: Run | None = None, *, redact: Callable[[str], str] = str, generation: int = 1, **values: Any
    ) -> RunModelsInTest:
        """A new run, or a further hold of this one."""
        store = self.resources.store
        if run is None:
            run = await store.runs.create(new_run(self.user, **values), start=True)
        taken = await store.running_runs.take(run.id, generation)
        assert taken is not None
        writer = EventWriter(store, self.resources.event_log, flush_seconds=0, gather_seconds=0)
        events = writer.open(run.id, run.user_id, generation, taken.last_event_id, lambda: None)
        budget = await Budget.open(store, taken.run, taken.tier, RunBudget(), has_accounts=taken.has_accounts)
        interruption = Interruption()
        models = RunModels(self.gateway, store.model_calls, taken.run, events, budget, redact, interruption)
        return RunModelsInTest(self.resources, self.user, taken.run, models, events, interruption)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def asking(resources: Resources, user: User, **settings: Any) -> AsyncIterator[Asking]:
    values = {"agent_tokens_per_second": 0, "user_tokens_per_second": 0, **settings}
    registry = CollectorRegistry()
    opening = open_gateway(settings_of(**values), resources.slots, resources.buckets, WorkerMetrics(registry))
    async with opening as gateway:
        yield Asking(resources, user, gateway, registry)
