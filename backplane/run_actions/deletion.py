"""Deleting a run that is over, with its files and events: in short transactions, so that nobody waits for it.

It is done in the order in which retention does it (`controller.cleanup.retention`): the row is marked first, so that
the run cannot be started again, and goes last. After a failure in between the user deletes it again, or retention does;
after a crash only once the lease has ended.
"""

import asyncio
from contextlib import suppress

from backplane.domain.retention import batches
from backplane.domain.stored import StorageQuota
from backplane.errors import PlatformError, Unavailable
from backplane.limits.storage.base import Storage
from backplane.store import Retention
from backplane.workspace.base import WorkspaceStore

LEASE_SECONDS = 600.0
EVENTS_AT_ONCE = 1000


async def delete_run(
    retention: Retention, workspaces: WorkspaceStore, storage: Storage, user_id: str, run_id: str
) -> None:
    """Raises NotFound, Conflict, Unavailable."""
    ends = await retention.lease_one(user_id, run_id, seconds=LEASE_SECONDS)
    try:
        await _delete_leased(retention, workspaces, storage, user_id, run_id)
    except PlatformError:
        with suppress(Unavailable):
            await retention.give_up_lease(run_id, ends)
        raise


async def _delete_leased(
    retention: Retention, workspaces: WorkspaceStore, storage: Storage, user_id: str, run_id: str
) -> None:
    size = sum(file.size for file in await workspaces.workspace(user_id, run_id).list())
    size += await workspaces.versions(user_id, run_id).size()
    await workspaces.remove(user_id, run_id)
    with suppress(Unavailable):
        await storage.grow(user_id, -size, StorageQuota())
    events = 1  # The newest, which goes with the row.
    for batch in batches(await retention.spans([run_id]), EVENTS_AT_ONCE):
        events += await retention.delete_events(batch)
        await asyncio.sleep(0)
    runs = await retention.delete_runs([run_id])
    # It is counted at once, and not with the next count: a user who is over a limit deletes in order to go on.
    with suppress(Unavailable):
        await storage.shrink(user_id, runs=runs, events=events)
