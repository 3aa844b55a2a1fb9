"""From a request to a queued run: commit first, then push.

The row is the promise. When Redis is away at the push, the run is accepted all the same: the reaper of any worker finds
it queued in the database and unknown to Redis, and pushes it. What is published to watchers here is in the database
already.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from app.known_tools import KnownTools
from app.schemas.execute import ForkRun, NewRun
from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.deployed_call import plan_of_call
from backplane.domain.derived_runs import NewFork
from backplane.domain.models import ModelName
from backplane.domain.runs import DEFAULT_QUEUE, Changed, Run, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.domain.webhooks import check_public_url
from backplane.errors import (
    Conflict,
    Fault,
    InvalidInput,
    InvalidPlan,
    NotFound,
    QueueFull,
    StorageExceeded,
    TooLarge,
    Unavailable,
)
from backplane.limits.storage.limits import StorageLimits
from backplane.logs.base import EventLog
from backplane.queue.base import Queue
from backplane.run_actions.actions import RunActions, idempotency_of
from backplane.run_actions.known_queues import KnownQueues
from backplane.settings import Settings, fixed
from backplane.store import Store

log = structlog.get_logger()


_HOSTED_SERVERS = frozenset({"openai", "anthropic"})
"""The servers that are known when their key is set."""


class Submission(RunActions):
    """New runs, and what only the API is asked for. What a bulk action does too is `RunActions`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        queue: Queue,
        event_log: EventLog,
        storage_limits: StorageLimits,
        known_tools: KnownTools,
        known_queues: KnownQueues,
    ) -> None:
        super().__init__(store, queue, event_log, storage_limits, known_queues)
        self._known_tools = known_tools
        self._settings = settings

    async def create(self, user: User, new: NewRun, idempotency_key: str | None, *, start: bool) -> Run:
        """Raises InvalidInput, InvalidPlan, NotFound and Conflict (of a deployment), TooLarge, StorageExceeded,
        IdempotencyKeyReused, QueueFull, Unavailable (database)."""
        await self._check(new)
        idempotency = idempotency_of(idempotency_key, [_as_asked(new), start])
        try:
            steps = new.plan if new.deployment is None else await self.plan_of_deployment(user, new)
            plan = await self._known_tools.parse(steps, new.mcp_servers or ()) if steps is not None else None
            if new.handler is not None:
                await self._known_tools.check_handler(new.handler, new.input)
        except (InvalidInput, NotFound, Conflict):
            if earlier := await self._made_before(user, idempotency):
                return earlier
            raise
        run = Run(
            id=new_run_id(),
            user_id=user.id,
            status=RunStatus.CREATED,
            priority=user.priority,
            prompt=new.prompt,
            created_at=datetime.now(UTC),
            timeout_seconds=new.timeout_seconds or self._settings.run_timeout_seconds,
            max_retries=self._settings.run_max_retries if new.max_retries is None else new.max_retries,
            metadata=new.metadata,
            given_plan=plan.model_dump(mode="json") if plan is not None else None,
            resource=new.resource,
            queue=new.queue,
            webhook_url=new.webhook_url,
            agent=new.agent,
            model=new.model,
            planner=new.planner,
            budget=new.budget.model_dump(exclude_none=True) if new.budget else None,
            mcp_servers=new.mcp_servers,
            handler=new.handler,
            input=new.input if new.deployment is None else None,
        )
        try:
            await self._storage_limits.check_new_run(user.id)
            if not start:
                return await self._store.runs.create(run, idempotency=idempotency)
            async with self.place(user.id, run.id, run.priority, run.queue) as place:
                stored = await self._store.runs.create(run, idempotency=idempotency, start=True)
                if stored.id == run.id:
                    await self.push(stored, await self._store.events.after(stored.id, 0, 2), place)
                return stored
        except (QueueFull, StorageExceeded):
            # Asked again, a request gets the answer that it got, however full the queue or the store is by now.
            if idempotency and (earlier := await self._store.runs.made_before(user.id, *idempotency)):
                return earlier
            raise

    async def plan_of_deployment(self, user: User, new: NewRun) -> dict[str, Any]:
        """The plan of a run that a deployed agent carries out. Raises NotFound, Conflict, Unavailable (database)."""
        assert new.deployment is not None
        deployment = await self._store.deployments.named(user.id, new.deployment)
        return plan_of_call(deployment, new.input, new.timeout_seconds or self._settings.run_timeout_seconds)

    async def _made_before(self, user: User, idempotency: tuple[str, str] | None) -> Run | None:
        """The run that this very request made when it came first: the workers may have been others then."""
        return await self._store.runs.made_before(user.id, *idempotency) if idempotency else None

    async def start(self, user: User, run_id: str) -> Run:
        """Raises NotFound, TransitionNotAllowed, StorageExceeded, QueueFull, Unavailable (database)."""
        try:
            await self._storage_limits.check_start(user.id)
            async with self.place(user.id, run_id, user.priority, await self.queue_of(run_id)) as place:
                run, events = await self._store.runs.start(user.id, run_id)
                if events:
                    await self.push(run, events, place)
                return run
        except (QueueFull, StorageExceeded):
            run = await self._store.runs.get(user.id, run_id)
            if run.status is RunStatus.CREATED:
                raise
            run, _ = await self._store.runs.start(user.id, run_id)
            return run

    async def retry_from(
        self, user: User, run_id: str, step: str, *, uncertain_step_is_done: bool | None = None
    ) -> Run:
        """Raises NotFound, FilesGone, Conflict, TransitionNotAllowed, StorageExceeded, QueueFull, Unavailable
        (database)."""
        await self._storage_limits.check_start(user.id)
        async with self.place(user.id, run_id, user.priority, await self.queue_of(run_id)) as place:
            run, events = await self._store.derived_runs.retry_from(
                user.id, run_id, step, uncertain_step_is_done=uncertain_step_is_done
            )
            await self.push(run, events, place)
            return run

    async def fork(self, user: User, fork: ForkRun, idempotency_key: str | None) -> Run:
        """Raises NotFound, FilesGone, Conflict, InvalidPlan, StorageExceeded, IdempotencyKeyReused, QueueFull,
        Unavailable (database)."""
        self._check_prompt(fork)
        idempotency = idempotency_of(idempotency_key, fork.model_dump(mode="json"))
        try:
            plan = await self._known_tools.parse(fork.plan, None) if fork.plan is not None else None
        except InvalidPlan:
            if earlier := await self._made_before(user, idempotency):
                return earlier
            raise
        new = NewFork(new_run_id(), user.priority, fork.step, fork.prompt, plan)

        async def make() -> Changed:
            return await self._store.derived_runs.fork(
                user.id, fork.run_id, new, start=fork.start, idempotency=idempotency
            )

        return await self.derive(user, fork.run_id, new.id, make, idempotency, start=fork.start)

    async def decide(
        self, user: User, run_id: str, decision_id: str, status: DecisionStatus, answer: Mapping[str, Any]
    ) -> Decision:
        """Raises NotFound, Conflict, InvalidInput, Unavailable (database). However full the queue is, a run that waited
        for this goes on: it was admitted once."""
        decided = await self._store.decisions.decide(user.id, run_id, decision_id, status, answer, user.id)
        if decided.goes_on:
            await self.push(decided.run, decided.events)
        else:
            with suppress(Unavailable):
                await self.publish(decided.run, decided.events)
        return decided.decision

    def faults(self, new: NewRun) -> Iterator[Fault]:
        """All that is wrong with the fields of a new run, but for its plan."""
        settings = self._settings
        for check in (self._check_prompt, self._check_webhook, self._check_model):
            try:
                check(new)
            except InvalidInput as error:
                yield from error.faults
        if (new.timeout_seconds or 0) > settings.run_timeout_max_seconds:
            yield Fault(
                "timeout_seconds",
                f"timeout_seconds: at most {settings.run_timeout_max_seconds} (RUN_TIMEOUT_MAX_SECONDS)",
            )
        known = self._settings.resource_concurrency
        if new.resource is not None and new.resource not in known:
            there = ", ".join(sorted(known)) or "none"
            yield Fault(
                "resource", f"resource: there is no resource of this name; known (RESOURCE_CONCURRENCY): {there}"
            )
        if (new.max_retries or 0) > settings.run_max_retries_limit:
            yield Fault("max_retries", f"max_retries: at most {settings.run_max_retries_limit} (RUN_MAX_RETRIES_LIMIT)")
        unknown = [name for name in new.mcp_servers or () if name not in settings.mcp_servers]
        if unknown:
            there = ", ".join(sorted(settings.mcp_servers)) or "none"
            yield Fault("mcp_servers", f"mcp_servers: there is no {unknown[0]!r}; known (MCP_SERVERS): {there}")
        yield from _faults_of_carrier(new)
        if (found := self._metadata_fault(new)) is not None:
            yield Fault("metadata", found)

    async def queue_faults(self, new: NewRun) -> list[Fault]:
        """What is wrong with the queue that a new run names."""
        there = await self._known_queues.missing(new.queue)
        if there is None:
            return []
        return [
            Fault(
                "queue",
                f"queue: there is no queue {new.queue!r}; there are: {', '.join(there)}. A queue is there when a live "
                "worker serves it (WORKER_QUEUES) or the operator has named it (QUEUES)",
            )
        ]

    async def _check(self, new: NewRun) -> None:
        """Raises InvalidInput with all that is wrong, TooLarge."""
        if faults := [*self.faults(new), *await self.queue_faults(new)]:
            if (found := self._metadata_fault(new)) is not None:
                raise TooLarge(found)
            raise InvalidInput.of(faults)

    def _metadata_fault(self, new: NewRun) -> str | None:
        most = fixed.METADATA_MAX_BYTES
        is_too_large = len(json.dumps(new.metadata)) > most
        return f"metadata: at most {most} bytes of JSON" if is_too_large else None

    def _check_webhook(self, new: NewRun) -> None:
        if new.webhook_url is not None and not self._settings.webhook_allow_private:
            check_public_url(new.webhook_url)

    def _check_prompt(self, given: NewRun | ForkRun) -> None:
        most = fixed.PROMPT_MAX_CHARS
        if given.prompt is not None and len(given.prompt) > most:
            raise InvalidInput(
                f"prompt: {len(given.prompt)} characters; at most {most} are taken: put long texts "
                "into files of the workspace",
                field="prompt",
            )

    def _check_model(self, new: NewRun) -> None:
        if new.model is not None:
            self.check_model(new.model)

    def check_model(self, name: str) -> None:
        """Whether its server can be known, where servers are named here. Which of the hosted ones have a key, only the
        workers know. Raises InvalidInput."""
        settings = self._settings
        named = {*settings.model_servers, *({"ollama"} if settings.ollama_host else ())}
        if settings.gpu_provider:
            named.add(settings.gpu_model_server)
        server = ModelName.parse(name).server
        if named and server not in named | _HOSTED_SERVERS:
            raise InvalidInput(
                f"model: there is no model server {server!r}; known (MODEL_SERVERS): "
                f"{', '.join(sorted(named | _HOSTED_SERVERS))}",
                field="model",
            )


_AS_BEFORE = (("queue", DEFAULT_QUEUE), ("handler", None), ("deployment", None), ("input", None))
"""What a request of an older release says by leaving it out."""


def _as_asked(new: NewRun) -> dict[str, Any]:
    """The request, so that the same one has the same digest in every release: a field that came later is part of it
    where it says something."""
    asked = new.model_dump(mode="json")
    return {name: value for name, value in asked.items() if (name, value) not in _AS_BEFORE}


def _faults_of_carrier(new: NewRun) -> Iterator[Fault]:
    """Of what carries a run out in place of a plan."""
    if new.handler is None and new.deployment is None:
        if new.input is not None:
            message = "it is for a handler or a deployed agent; name one (`handler`, `deployment`), or leave it out"
            yield Fault("input", f"input: {message}")
        return
    carrier = "a handler" if new.handler is not None else "a deployment"
    if new.handler is not None and new.deployment is not None:
        yield Fault("deployment", "deployment: the run has a handler; leave one of the two out")
    for name in ("plan", "planner"):
        if getattr(new, name) is not None:
            yield Fault(name, f"{name}: a run with {carrier} has no plan; leave one of the two out")
    most = fixed.HANDLER_VALUE_MAX_BYTES
    if len(json.dumps(new.input)) > most:
        yield Fault("input", f"input: at most {most} bytes of JSON; put large data into a file of the run")
