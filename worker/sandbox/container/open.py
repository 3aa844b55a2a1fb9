"""The sandbox as a Docker or Podman container, from the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backplane.settings import Settings
from worker.metrics import WorkerMetrics
from worker.sandbox.base import Sandbox
from worker.sandbox.container.sandbox import open_container_sandbox


@asynccontextmanager
async def open_sandbox(settings: Settings, worker_id: str, metrics: WorkerMetrics) -> AsyncIterator[Sandbox]:
    sandbox = await open_container_sandbox(
        engine=settings.sandbox_container_engine,
        image=settings.sandbox_image,
        runtime=settings.sandbox_container_runtime,
        tmp_bytes=settings.sandbox_tmp_bytes,
        start_seconds=settings.sandbox_start_seconds,
        started=metrics.sandbox_started,
        failed=metrics.sandbox_failed,
    )
    try:
        yield sandbox
    finally:
        await sandbox.close()
