"""The sandbox on the worker's own machine, from the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backplane.settings import Settings
from worker.metrics import WorkerMetrics
from worker.sandbox.base import Sandbox
from worker.sandbox.local.sandbox import open_local_sandbox


@asynccontextmanager
async def open_sandbox(settings: Settings, worker_id: str, metrics: WorkerMetrics) -> AsyncIterator[Sandbox]:
    sandbox = await open_local_sandbox(
        require_isolation=settings.sandbox_require_isolation, folders=settings.sandbox_folders
    )
    try:
        yield sandbox
    finally:
        await sandbox.close()
