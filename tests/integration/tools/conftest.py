"""A run's workspace for the tools, and a web site for those that reach outside."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backplane.workspace.base import Workspace
from backplane.workspace.local import LocalWorkspaceStore
from tests.integration.tools.bench import LIMITS, QUOTA, Bench, NoSecrets, NoSubSteps
from tests.integration.tools.site import Site, site_on
from worker.checkout import Checkout
from worker.sandbox.base import Call
from worker.sandbox.local import open_local_sandbox
from worker.tools.base import ToolContext


@pytest.fixture
async def workspace(tmp_path: Path) -> Workspace:
    store = LocalWorkspaceStore(tmp_path / "store")
    await store.prepare()
    return store.workspace("user", "run")


@pytest.fixture
async def bench(workspace: Workspace, tmp_path: Path) -> AsyncIterator[Bench]:
    sandbox = await open_local_sandbox(require_isolation=False)
    checkout = Checkout(workspace, QUOTA, tmp_path / "checkout")
    said = bytearray()
    changing: list[str] = []

    async def about_to_change() -> None:
        changing.append("now")

    context = ToolContext(
        call=Call("user", "run", "step", 1, 1),
        workspace=workspace,
        checkout=checkout,
        sandbox=sandbox,
        quota=QUOTA,
        limits=LIMITS,
        output=said.extend,
        notice=lambda line: None,
        about_to_change=about_to_change,
        agent="default",
        models=None,
        sub_steps=NoSubSteps(),
        secrets=NoSecrets(),
        answer=None,
    )
    yield Bench(context, said, changing)
    await checkout.discard()
    await sandbox.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with site_on() as site:
        yield site
