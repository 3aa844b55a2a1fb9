"""From a request to a queued run: commit first, then push.

The row is the promise. When Redis is away at the push, the run is accepted all the same: the reaper of any worker finds
it queued in the database and unknown to Redis, and pushes it. What is published to watchers here is in the database
already.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any

import structlog

from app.known_tools import KnownTools
from app.limits.storage import StorageLimits
from app.schemas.runs import ForkRun, NewRun
from backplane.domain.dead_letters import no_dead_letter
from backplane.domain.decisions import Decision, DecisionStatus
from backplane.domain.derived_runs import NewFork
from backplane.domain.events import Event
from backplane.domain.models import ModelName
from backplane.domain.runs import Changed, Priority, Run, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.domain.webhooks import check_public_url
from backplane.errors import (
    Fault,
    InvalidInput,
    InvalidPlan,
    QueueFull,
    StorageExceeded,
    TooLarge,
    TooManyWaiting,
    Unavailable,
)
from backplane.logs.base import Batch, EventLog
from backplane.queue.base import Full, Job, Limit, Queue
from backplane.settings import Settings, fixed
from backplane.store import Store

log = structlog.get_logger()

RETRY_AFTER_MAX_SECONDS = 3600

_HOSTED_SERVERS = frozenset({"openai", "anthropic"})
"""The servers that are known when their key is set."""


@dataclass(slots=True)
class _ReservedPlace:
    """A place in the queue that is reserved for a run of this priority. `is_used`: the run has taken it up."""

    priority: Priority
    is_used: bool = False


class Submission:
    def __init__(
        self,
        settings: Settings,
        store: Store,
        queue: Queue,
        event_log: EventLog,
        storage_limits: StorageLimits,
        known_tools: KnownTools,
    ) -> None:
        self._known_tools = known_tools
        self._storage_limits = storage_limits
        self._settings = settings
        self._store = store
        self._queue = queue
        self._event_log = event_log

    async def create(self, user: User, new: NewRun, idempotency_key: str | None, *, start: bool) -> Run:
        """Raises InvalidInput, InvalidPlan, TooLarge, StorageExceeded, IdempotencyKeyReused, QueueFull, Unavailable
        (database)."""
        self._check(new)
        idempotency = _idempotency(idempotency_key, [new.model_dump(mode="json"), start])
        try:
            plan = await self._known_tools.parse(new.plan, new.mcp_servers or ()) if new.plan is not None else None
        except InvalidPlan:
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
            webhook_url=new.webhook_url,
            agent=new.agent,
            model=new.model,
            planner=new.planner,
            budget=new.budget.model_dump(exclude_none=True) if new.budget else None,
            mcp_servers=new.mcp_servers,
        )
        try:
            await self._storage_limits.check_new_run(user.id)
            if not start:
                return await self._store.runs.create(run, idempotency=idempotency)
            async with self._place(user.id, run.id, run.priority) as place:
                stored = await self._store.runs.create(run, idempotency=idempotency, start=True)
                if stored.id == run.id:
                    await self.push(stored, await self._store.events.after(stored.id, 0, 2), place)
                return stored
        except (QueueFull, StorageExceeded):
            # Asked again, a request gets the answer that it got, however full the queue or the store is by now.
            if idempotency and (earlier := await self._store.runs.made_before(user.id, *idempotency)):
                return earlier
            raise

    async def _made_before(self, user: User, idempotency: tuple[str, str] | None) -> Run | None:
        """The run that this very request made when it came first: the workers may have been others then."""
        return await self._store.runs.made_before(user.id, *idempotency) if idempotency else None

    async def start(self, user: User, run_id: str) -> Run:
        """Raises NotFound, TransitionNotAllowed, StorageExceeded, QueueFull, Unavailable (database)."""
        try:
            await self._storage_limits.check_start(user.id)
            async with self._place(user.id, run_id, user.priority) as place:
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

    async def retry(self, user: User, run_id: str, *, uncertain_step_is_done: bool | None) -> Run:
        """Raises NotFound, Conflict (the call does not decide an uncertain step), TransitionNotAllowed,
        StorageExceeded, QueueFull, Unavailable (database)."""
        await self._storage_limits.check_start(user.id)
        async with self._place(user.id, run_id, user.priority) as place:
            run, events = await self._store.runs.retry(user.id, run_id, uncertain_step_is_done=uncertain_step_is_done)
            await self.push(run, events, place)
            return run

    async def retry_from(
        self, user: User, run_id: str, step: str, *, uncertain_step_is_done: bool | None = None
    ) -> Run:
        """Raises NotFound, FilesGone, Conflict, TransitionNotAllowed, StorageExceeded, QueueFull, Unavailable
        (database)."""
        await self._storage_limits.check_start(user.id)
        async with self._place(user.id, run_id, user.priority) as place:
            run, events = await self._store.derived_runs.retry_from(
                user.id, run_id, step, uncertain_step_is_done=uncertain_step_is_done
            )
            await self.push(run, events, place)
            return run

    async def fork(self, user: User, fork: ForkRun, idempotency_key: str | None) -> Run:
        """Raises NotFound, FilesGone, Conflict, InvalidPlan, StorageExceeded, IdempotencyKeyReused, QueueFull,
        Unavailable (database)."""
        self._check_prompt(fork)
        idempotency = _idempotency(idempotency_key, fork.model_dump(mode="json"))
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

        return await self._derive(user, new.id, make, idempotency, start=fork.start)

    async def replay(self, user: User, run_id: str, idempotency_key: str | None, *, execute: bool = False) -> Run:
        """Raises NotFound, FilesGone, TransitionNotAllowed, StorageExceeded, IdempotencyKeyReused, QueueFull,
        Unavailable (database)."""
        new_id = new_run_id()
        idempotency = _idempotency(idempotency_key, ["replay", run_id, execute])

        async def make() -> Changed:
            return await self._store.derived_runs.replay(
                user.id, run_id, new_id, user.priority, execute=execute, idempotency=idempotency
            )

        return await self._derive(user, new_id, make, idempotency, start=True)

    async def _derive(
        self,
        user: User,
        new_id: str,
        make: Callable[[], Awaitable[Changed]],
        idempotency: tuple[str, str] | None,
        *,
        start: bool,
    ) -> Run:
        try:
            await self._storage_limits.check_new_run(user.id)
            if not start:
                return (await make())[0]
            async with self._place(user.id, new_id, user.priority) as place:
                run, events = await make()
                if run.id == new_id:
                    await self.push(run, events, place)
                return run
        except (QueueFull, StorageExceeded):
            if idempotency and (earlier := await self._store.runs.made_before(user.id, *idempotency)):
                return earlier
            raise

    async def decide(
        self, user: User, run_id: str, decision_id: str, status: DecisionStatus, answer: Mapping[str, Any]
    ) -> Decision:
        """Raises NotFound, Conflict, InvalidInput, Unavailable (database). However full the queue is, a run that waited
        for this goes on: it was admitted once."""
        decided = await self._store.decisions.decide(user.id, run_id, decision_id, status, answer, user.id)
        if decided.goes_on:
            await self.push(decided.run, decided.told)
        else:
            with suppress(Unavailable):
                await self._publish(decided.run, decided.told)
        return decided.decision

    async def redrive(self, run_id: str) -> Run:
        """Queue a dead-lettered run again, whoever owns it. Raises NotFound, QueueFull, Unavailable (database)."""
        found = await self._store.runs.find(run_id)
        if found is None:
            raise no_dead_letter(run_id)
        async with self._place(found.user_id, run_id, found.priority) as place:
            run, events = await self._store.runs.redrive(run_id)
            await self.push(run, events, place)
            return run

    @asynccontextmanager
    async def _place(self, user_id: str, run_id: str, priority: Priority) -> AsyncIterator["_ReservedPlace"]:
        """Reserve one in the queue for what is done inside; where nothing is queued there, it is free again."""
        place = _ReservedPlace(priority)
        try:
            full = await self._queue.admit(run_id, user_id, priority)
        except Unavailable:
            # It cannot be counted now, and what is accepted is not lost: a reaper will push it.
            yield place
            return
        if full:
            raise await self._queue_full(full, user_id, priority)
        try:
            yield place
        finally:
            if not place.is_used:
                with suppress(Unavailable):
                    await self._queue.give_up_place(run_id, user_id, priority)

    async def _queue_full(self, full: Full, user_id: str, priority: Priority) -> QueueFull:
        """There is room again when the next of the runs that count is taken: the user's own, or those of the tier, or
        any. While no worker is alive nobody knows when, and it is what one run takes at first."""
        is_own = full.limit in (Limit.USER, Limit.SHARE)
        statistics = await self._queue.statistics()
        nearest = await self._queue.nearest_of(user_id) if is_own else None
        if nearest is not None and nearest.wait is not None:
            wait = nearest.wait
        else:
            ahead = sum(count for other, count in statistics.queued.items() if other > priority)
            wait = statistics.wait(1 + (ahead if full.limit is Limit.TIER else 0))
        seconds = min(max(ceil(wait.p50), 1), RETRY_AFTER_MAX_SECONDS)
        message = f"{queue_full(full, priority)}; come back in about {seconds} s"
        return (TooManyWaiting if is_own else QueueFull)(message, full.limit, seconds)

    async def cancel(self, user: User, run_id: str) -> Run:
        run, events = await self._store.runs.cancel(user.id, run_id)
        try:
            if run.status is RunStatus.CANCELLED:
                await self._queue.forget(run.id)
                await self._publish(run, events)
            else:
                await self._queue.announce_cancel(run.id)
        except Unavailable as error:
            log.warning("cancel is in the database only, for now", run=run.id, error=error.message)
        return run

    async def push(self, run: Run, events: Sequence[Event], place: "_ReservedPlace | None" = None) -> None:
        """Queue a run that is queued in the database, and publish its events. Never raises Unavailable."""
        try:
            # Side by side: should a worker be quicker than the publishing, watchers find it in the database.
            job = Job(run.id, run.user_id, run.priority, run.generation, run.resource or "")
            _, [queued] = await asyncio.gather(self._publish(run, events), self._queue.enqueue([job]))
            if place is not None:
                place.is_used = queued and place.priority is run.priority
        except Unavailable as error:
            log.warning("accepted, but not pushed; a worker's reaper will", run=run.id, error=error.message)

    async def _publish(self, run: Run, events: Sequence[Event]) -> None:
        if events:
            await self._event_log.append([Batch(run.id, run.generation, events, run.user_id, stored_id=events[-1].id)])

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
        if (found := self._metadata_fault(new)) is not None:
            yield Fault("metadata", found)

    def _check(self, new: NewRun) -> None:
        """Raises InvalidInput with all that is wrong, TooLarge."""
        if faults := list(self.faults(new)):
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
        """Whether its server can be known, where servers are named here. Which of the hosted ones have a key, only the
        workers know."""
        if new.model is None:
            return
        settings = self._settings
        named = {*settings.model_servers, *({"ollama"} if settings.ollama_host else ())}
        server = ModelName.parse(new.model).server
        if named and server not in named | _HOSTED_SERVERS:
            raise InvalidInput(
                f"model: there is no model server {server!r}; known (MODEL_SERVERS): "
                f"{', '.join(sorted(named | _HOSTED_SERVERS))}",
                field="model",
            )


def queue_full(full: Full, priority: Priority) -> str:
    """Which limit is reached, and what helps."""
    tier = priority.name.lower()
    match full.limit:
        case Limit.USER:
            return (
                f"{full.waiting} runs of yours wait already, and {full.most} may (QUEUE_MAX_WAITING): let some end, or "
                "cancel some"
            )
        case Limit.TIER:
            return (
                f"{full.waiting} runs of the priority {tier} wait already, of all users, and {full.most} may "
                "(QUEUE_MAX_WAITING_FREE, _STANDARD, _BETA, _ADMIN): try again later"
            )
        case Limit.SHARE:
            return (
                f"{full.waiting} runs of yours stand in the queue of all users, and no user may have more than "
                f"{full.most} there (half of QUEUE_MAX_WAITING_ALL, or of the priority's own limit): let some end, or "
                "cancel some"
            )
    return (
        f"the platform's queue is full: {full.waiting} runs of all users wait, and {full.most} may before one of the "
        f"priority {tier} is refused (QUEUE_MAX_WAITING_ALL): try again later"
    )


def _idempotency(key: str | None, request: Any) -> tuple[str, str] | None:
    """The key, and a digest of the request that it stands for."""
    if key is None:
        return None
    body = json.dumps(request, sort_keys=True)
    return key, hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
