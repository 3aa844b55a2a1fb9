"""Deleting a run that is over, with its files and events: in short transactions, so that nobody waits for it.

Done in the order in which retention does it (`controller.retention`): the row is marked first, so that the run cannot
be started again, and goes last. After a crash in between the user deletes it again, or retention does.
"""

import asyncio
from contextlib import suppress

from backplane.errors import Unavailable
from backplane.resources import Resources
from backplane.store.retention import batches
from backplane.stored import StorageQuota

LEASE_SECONDS = 600.0
EVENTS_AT_ONCE = 1000


async def delete_run(resources: Resources, user_id: str, run_id: str) -> None:
    """Raises NotFound, Conflict, Unavailable."""
    retention, workspaces = resources.store.retention, resources.workspaces
    await retention.lease_one(user_id, run_id, seconds=LEASE_SECONDS)
    size = sum(file.size for file in await workspaces.workspace(user_id, run_id).list())
    size += await workspaces.versions(user_id, run_id).size()
    await workspaces.remove(user_id, run_id)
    for batch in batches(await retention.spans([run_id]), EVENTS_AT_ONCE):
        await retention.delete_events(batch)
        await asyncio.sleep(0)
    await retention.delete_runs([run_id])
    with suppress(Unavailable):
        await resources.storage.grow(user_id, -size, StorageQuota())
