"""Takes away what is left in the target of deployments that nobody has any more.

Such is left where an administrator has removed a row without waiting for the target (`force`), and where a controller
wrote while the row went. Only what has this platform's labels is looked at, and of that only what has no row: ids are
used once, so a row that is gone does not come back. What was just seen stays for a while, for people to look at it.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from backplane.errors import NotFound, Unavailable
from backplane.process.tasks import end
from backplane.store import DeploymentStore
from controller.deployments.target import DeployTarget, Removal, TargetRefused

KEPT_SECONDS = 120.0
"""What is left is taken away when it was seen for so long."""

log = structlog.get_logger()


class Collector:
    def __init__(self, store: DeploymentStore, target: DeployTarget) -> None:
        self._store = store
        self._target = target
        self._seen: dict[str, float] = {}
        self._removing: asyncio.Task[None] | None = None

    async def collect(self, left: Sequence[Removal]) -> None:
        """`left`: of a look at the target. What takes long goes on beside the next looks. Raises Unavailable."""
        now = time.monotonic()
        self._seen = {one.id: self._seen.get(one.id, now) for one in left}
        due = [one for one in left if now - self._seen[one.id] >= KEPT_SECONDS]
        if due and (self._removing is None or self._removing.done()):
            gone = [one for one in due if not await self._has_row(one.id)]
            self._removing = asyncio.create_task(self._remove(gone), name="collect what is left of deployments")

    async def stop(self) -> None:
        if self._removing is not None:
            await end(self._removing)

    async def _has_row(self, id: str) -> bool:
        """Asked after the target was: a row that was made in between is one. Raises Unavailable."""
        try:
            await self._store.get(None, id)
        except NotFound:
            return False
        return True

    async def _remove(self, gone: Sequence[Removal]) -> None:
        for one in gone:
            try:
                still = await self._target.remove(one)
            except TargetRefused as error:
                log.warning("what is left of a deployment stays", deployment=one.id, reason=error.reason)
            except Unavailable as error:
                log.warning("what is left of a deployment stays", deployment=one.id, reason=error.message)
            except Exception as fault:
                log.error("what is left was not collected by a fault of the platform", id=one.id, exc_info=fault)
            else:
                log.info("what was left of a deployment is collected", deployment=one.id, still_there=still)
