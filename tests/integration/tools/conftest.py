"""A run's files for the tools, and a web site for those that reach outside."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.tools.site import Site, site_on
from tests.tool_bench import Bench, NoSecrets, tool_bench
from worker.sandbox.local.sandbox import open_local_sandbox


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    sandbox = await open_local_sandbox(require_isolation=False)
    async with tool_bench(sandbox, tmp_path, NoSecrets()) as bench:
        yield bench
    await sandbox.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with site_on() as site:
        yield site
