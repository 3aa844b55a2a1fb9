"""One piece of a bulk action: some seconds of one run after the other, each with what came of it.

Before an action is done to a run, the run's row in the job says that it has begun. Where a process was cut off between
the two, the next one looks at the run and decides by `was_done`. A run whose action has killed several processes in a
row is refused, so that the others get their turn.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

import structlog

from backplane.domain.background_jobs import (
    TRIED_ENOUGH,
    BackgroundJob,
    BulkAction,
    ItemStatus,
    JobItem,
    JobStatus,
    was_done,
)
from backplane.domain.users import Tier
from backplane.errors import Forbidden, QueueFull, Refused, TooManyWaiting
from backplane.resources import Resources
from backplane.run_actions.actions import RunActions
from backplane.run_actions.deletion import delete_run

PIECE_SECONDS = 10.0
ITEMS_AT_ONCE = 50
CLAIM_SECONDS = 60.0
FULL_SECONDS_MAX = 60
"""The longest pause until the next piece after the queue was full."""
GIVE_UP = timedelta(days=1)
"""A bulk action that is so old and finds no room in the queue is not tried any more."""

log = structlog.get_logger()

Act = Callable[[JobItem], Awaitable[str | None]]


class BulkWork:
    def __init__(self, resources: Resources, actions: RunActions) -> None:
        self._resources = resources
        self._store = resources.store
        self._jobs = resources.store.background_jobs
        self._actions = actions

    async def carry_out(self, job: BackgroundJob) -> int | None:
        """A piece of a claimed job. Its generation when more can be done at once, None when it is over or waits. Raises
        Superseded, Unavailable, and Refused where it can never be completed."""
        action = BulkAction(job.action)
        if action is BulkAction.REDRIVE and (await self._store.users.find(job.user_id)).tier is not Tier.ADMIN:
            raise Forbidden("redrive is for administrators, and who asked for it is none any more")
        act, until = self._act_of(job, action), time.monotonic() + PIECE_SECONDS
        if job.is_tried_enough:
            await self._refuse_what_kills(job, action)
        while time.monotonic() < until:
            items = await self._jobs.left(job, ITEMS_AT_ONCE)
            if not items:
                await self._jobs.finish(job, JobStatus.COMPLETED)
                log.info("a bulk action is completed", job=job.id, action=action)
                return None
            for item in items:
                if time.monotonic() >= until:
                    break
                try:
                    await self._one(job, action, act, item)
                except QueueFull as full:
                    await self._jobs.postpone(job, item)
                    if datetime.now(UTC) - job.created_at > GIVE_UP:
                        raise Refused("there was no room in the queue for a day") from full
                    await self._jobs.release(job, after_seconds=min(full.retry_after, FULL_SECONDS_MAX))
                    return None
        await self._jobs.release(job)
        return job.generation

    async def _one(self, job: BackgroundJob, action: BulkAction, act: Act, item: JobItem) -> None:
        if item.status is ItemStatus.BEGUN:
            if await self._was_done(action, item):
                await self._jobs.settle(job, item, ItemStatus.DONE)
                return
        else:
            await self._jobs.begin(job, item, seconds=CLAIM_SECONDS)
        try:
            detail = await act(item)
        except Refused as error:
            await self._jobs.settle(job, item, ItemStatus.REFUSED, error.message)
        except TooManyWaiting as full:
            if action is not BulkAction.REDRIVE:
                raise
            # One user's full queue keeps nobody else's runs from being redriven.
            await self._jobs.settle(job, item, ItemStatus.REFUSED, full.message)
        else:
            await self._jobs.settle(job, item, ItemStatus.DONE, detail)

    async def _was_done(self, action: BulkAction, item: JobItem) -> bool:
        run = await self._store.runs.find(item.run_id)
        return was_done(item, action, run.status if run else None, run.queued_at if run else None)

    async def _refuse_what_kills(self, job: BackgroundJob, action: BulkAction) -> None:
        """Settle the run in whose middle the processes were killed. Raises Refused where it was in the middle of
        none."""
        for item in await self._jobs.left(job, 1):
            if item.status is not ItemStatus.BEGUN:
                raise Refused(TRIED_ENOUGH)
            if not await self._was_done(action, item):
                await self._jobs.settle(job, item, ItemStatus.REFUSED, TRIED_ENOUGH)

    def _act_of(self, job: BackgroundJob, action: BulkAction) -> Act:
        async def cancel(item: JobItem) -> None:
            await self._actions.cancel(await self._store.users.find(item.user_id), item.run_id)

        async def retry(item: JobItem) -> None:
            # A step that may have happened needs a person's decision for each run: such a run is refused here.
            user = await self._store.users.find(item.user_id)
            await self._actions.retry(user, item.run_id, uncertain_step_is_done=None)

        async def redrive(item: JobItem) -> None:
            await self._actions.redrive(item.run_id)

        async def replay(item: JobItem) -> str:
            user = await self._store.users.find(item.user_id)
            return (await self._actions.replay(user, item.run_id, f"bulk {job.id} {item.run_id}")).id

        async def remove(item: JobItem) -> None:
            resources = self._resources
            await delete_run(self._store.retention, resources.workspaces, resources.storage, item.user_id, item.run_id)

        acts: Mapping[BulkAction, Act] = {
            BulkAction.CANCEL: cancel,
            BulkAction.RETRY: retry,
            BulkAction.REDRIVE: redrive,
            BulkAction.REPLAY: replay,
            BulkAction.REMOVE: remove,
        }
        return acts[action]
