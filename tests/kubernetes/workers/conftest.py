"""The platform without its API, whose workers let commands run in Jobs."""

import pytest

from tests.integration.worker.conftest import StartPlatform, start_platform, start_process
from tests.platform.workers import Platform

__all__ = ["start_platform", "start_process"]

MIB = 1024 * 1024


@pytest.fixture
async def platform(start_platform: StartPlatform, namespace: str, sandbox_image: str) -> Platform:
    return await start_platform(
        sandbox="kubernetes",
        sandbox_namespace=namespace,
        sandbox_image=sandbox_image,
        sandbox_memory_bytes=128 * MIB,
        sandbox_cpus=0.25,
        workspace_max_bytes=64 * MIB,
        workspace_max_files=1000,
        sandbox_tmp_bytes=16 * MIB,
    )
