"""The controller as one coroutine: what is periodic or slow, and no run.

It sends webhooks and removes what is past its time. Both are rows in the database that any controller may take, so any
number of them may run, and none is needed for runs to go on. It neither needs nor knows Redis.
"""

import asyncio
from functools import partial

import structlog

from backplane.errors import Unavailable
from backplane.patience import until_available
from backplane.resources import connect_store, connect_workspaces
from backplane.retry import RetryPolicy
from backplane.settings import Settings
from backplane.store import Store
from backplane.tasks import end
from backplane.workspace.base import WorkspaceStore
from controller.retention import Limits, Retention
from controller.sender import connect_sender
from controller.webhooks import Webhooks

log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set, and until what is being sent then has been answered."""
    async with connect_store(settings) as store, connect_workspaces(settings) as workspaces:
        stopping = asyncio.create_task(stop.wait(), name="stop")
        starting = asyncio.create_task(_prepare(store, workspaces), name="prepare")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                log.info("controller ready")
                await _work(settings, store, workspaces, stopping)
                log.info("controller ended")
        finally:
            await end(starting, stopping)


async def _prepare(store: Store, workspaces: WorkspaceStore) -> None:
    await until_available(store.migrate, partial(_tell_waiting, "database"))
    await until_available(workspaces.prepare, partial(_tell_waiting, "workspace"))


def _tell_waiting(part: str, error: Unavailable, pause: float) -> None:
    log.warning("waiting for a part", part=part, error=error.message, pause=round(pause, 1))


async def _work(settings: Settings, store: Store, workspaces: WorkspaceStore, stopping: "asyncio.Task[bool]") -> None:
    retention = Retention(
        store.retention,
        workspaces,
        Limits(
            runs_days=settings.retention_runs_days,
            created_days=settings.retention_created_days,
            events_days=settings.retention_events_days,
            workspace_days=settings.retention_workspace_days,
        ),
        batch=settings.retention_batch,
        pause_seconds=settings.retention_pause_seconds,
        period_seconds=settings.retention_seconds,
    )
    async with connect_sender(
        allow_private=settings.webhook_allow_private, attempt_seconds=settings.webhook_timeout_seconds
    ) as sender:
        webhooks = Webhooks(
            store.webhooks,
            sender,
            RetryPolicy(
                settings.webhook_max_attempts - 1,
                settings.webhook_retry_base_seconds,
                settings.webhook_retry_max_seconds,
            ),
            poll_seconds=settings.webhook_poll_seconds,
            lease_seconds=settings.webhook_lease_seconds,
            at_once=settings.webhook_concurrency,
            user_at_once=settings.webhook_user_concurrency,
        )
        loops = [
            asyncio.create_task(webhooks.run(), name="webhooks"),
            asyncio.create_task(retention.run(), name="retention"),
        ]
        try:
            done, _ = await asyncio.wait({stopping, *loops}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            await end(*loops)
            await webhooks.drain(settings.webhook_timeout_seconds)
