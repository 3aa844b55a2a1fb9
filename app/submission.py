"""From a request to a queued run: commit first, then push.

The row is the promise. When Redis is away at the push, the run is accepted all the same: the reaper of any worker finds
it queued in the database and unknown to Redis, and pushes it. What is told to watchers here is in the database already.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from app.models import NewRun
from backplane.errors import InvalidInput, TooLarge, Unavailable
from backplane.events import Event
from backplane.logs.base import Batch, EventLog
from backplane.plans import parse_plan
from backplane.queue.base import Job, Queue
from backplane.runs import Run, RunStatus, new_run_id
from backplane.settings import Settings
from backplane.store import Store
from backplane.users import User

log = structlog.get_logger()


class Submission:
    def __init__(self, settings: Settings, store: Store, queue: Queue, event_log: EventLog) -> None:
        self._settings = settings
        self._store = store
        self._queue = queue
        self._event_log = event_log

    async def create(self, user: User, new: NewRun, idempotency_key: str | None, *, start: bool) -> Run:
        """Raises InvalidInput, InvalidPlan, TooLarge, IdempotencyKeyReused, Unavailable (database)."""
        self._check(new)
        plan = parse_plan(new.plan).model_dump(mode="json") if new.plan is not None else None
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
            given_plan=plan,
        )
        idempotency = (idempotency_key, _digest(new, start)) if idempotency_key else None
        stored = await self._store.runs.create(run, idempotency=idempotency, start=start)
        if stored.id == run.id and start:
            await self._push(stored, await self._store.events.after(stored.id, 0, 2))
        return stored

    async def start(self, user: User, run_id: str) -> Run:
        run, told = await self._store.runs.start(user.id, run_id)
        if told:
            await self._push(run, told)
        return run

    async def retry(self, user: User, run_id: str, *, uncertain_step_is_done: bool) -> Run:
        run, told = await self._store.runs.retry(user.id, run_id, uncertain_step_is_done=uncertain_step_is_done)
        await self._push(run, told)
        return run

    async def cancel(self, user: User, run_id: str) -> Run:
        run, told = await self._store.runs.cancel(user.id, run_id)
        try:
            if run.status is RunStatus.CANCELLED:
                await self._queue.forget(run.id)
                await self._tell(run, told)
            else:
                await self._queue.announce_cancel(run.id)
        except Unavailable as error:
            log.warning("cancel is in the database only, for now", run=run.id, error=error.message)
        return run

    async def _push(self, run: Run, told: Sequence[Event]) -> None:
        try:
            # Side by side: should a worker be quicker than the word, watchers find it in the database.
            job = Job(run.id, run.user_id, run.priority, run.generation)
            await asyncio.gather(self._tell(run, told), self._queue.enqueue(job))
        except Unavailable as error:
            log.warning("accepted, but not pushed; a worker's reaper will", run=run.id, error=error.message)

    async def _tell(self, run: Run, told: Sequence[Event]) -> None:
        if told:
            await self._event_log.append([Batch(run.id, run.generation, told)])

    def _check(self, new: NewRun) -> None:
        settings = self._settings
        if len(new.prompt) > settings.prompt_max_chars:
            raise InvalidInput(
                f"prompt: {len(new.prompt)} characters; at most {settings.prompt_max_chars} are taken "
                "(PROMPT_MAX_CHARS): put long texts into files of the workspace",
                field="prompt",
            )
        if (new.timeout_seconds or 0) > settings.run_timeout_max_seconds:
            raise InvalidInput(
                f"timeout_seconds: at most {settings.run_timeout_max_seconds} (RUN_TIMEOUT_MAX_SECONDS)",
                field="timeout_seconds",
            )
        if (new.max_retries or 0) > settings.run_max_retries_limit:
            raise InvalidInput(
                f"max_retries: at most {settings.run_max_retries_limit} (RUN_MAX_RETRIES_LIMIT)", field="max_retries"
            )
        if len(json.dumps(new.metadata)) > settings.metadata_max_bytes:
            raise TooLarge(f"metadata: at most {settings.metadata_max_bytes} bytes of JSON (METADATA_MAX_BYTES)")


def _digest(new: NewRun, start: bool) -> str:
    body = json.dumps([new.model_dump(mode="json"), start], sort_keys=True)
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
