"""Counts what users have stored, now and then: runs and events by the database, files by a walk over all workspaces.

The numbers go to Redis (`backplane.storage`), where the API and workers look before they take more, and those of all
files together to the metrics. Several controllers may do so at once: each count stands for itself.
"""

import asyncio
from contextlib import suppress

import structlog

from backplane.errors import Unavailable
from backplane.storage.base import Storage
from backplane.store.usage import UsageCounts
from backplane.workspace.base import Usage, WorkspaceStore
from controller.metrics import ControllerMetrics

log = structlog.get_logger()


async def count_rows(counts: UsageCounts, storage: Storage, period_seconds: float) -> None:
    """Now, and every so often, until cancelled."""
    while True:
        try:
            await storage.count_rows(await counts.of_users())
        except Unavailable as error:
            log.warning("cannot count what users have stored", part=error.part, error=error.message)
        await asyncio.sleep(period_seconds)


async def count_files(
    workspaces: WorkspaceStore, storage: Storage, metrics: ControllerMetrics, period_seconds: float
) -> None:
    """Now, and every so often, until cancelled."""
    while True:
        try:
            await count_files_once(workspaces, storage, metrics)
        except Unavailable as error:
            log.warning("cannot measure the workspaces", part=error.part, error=error.message)
        await asyncio.sleep(period_seconds)


async def count_files_once(workspaces: WorkspaceStore, storage: Storage, metrics: ControllerMetrics) -> None:
    """Raises Unavailable. Without Redis only the metrics get the numbers."""
    before = None
    with suppress(Unavailable):
        before = await storage.known()
    users = await workspaces.usage_by_user()
    metrics.workspaces_measured(
        Usage(sum(usage.files for usage in users.values()), sum(usage.bytes for usage in users.values()))
    )
    if before is not None:
        await storage.count_files(before, {user_id: usage.bytes for user_id, usage in users.items()})
