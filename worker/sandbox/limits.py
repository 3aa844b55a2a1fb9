"""The limits of a step that names none."""

from backplane.settings import Settings
from worker.sandbox.base import Limits


def limits_of(settings: Settings) -> Limits:
    return Limits(
        wall_seconds=settings.step_timeout_seconds,
        memory_bytes=settings.sandbox_memory_bytes,
        cpus=settings.sandbox_cpus,
        cpu_seconds=settings.sandbox_cpu_seconds,
        processes=settings.sandbox_processes,
        file_bytes=settings.sandbox_file_bytes,
        disk_bytes=settings.workspace_max_bytes,
        files=settings.workspace_max_files,
    )
