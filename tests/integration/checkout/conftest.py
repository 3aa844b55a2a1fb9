"""A checkout of a local workspace."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backplane.workspace.base import WorkspaceStore
from backplane.workspace.local import LocalWorkspaceStore
from tests.integration.checkout.counted import QUOTA, Counting
from worker.files.checkout import Checkout


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[WorkspaceStore]:
    local = LocalWorkspaceStore(tmp_path / "workspaces")
    await local.prepare()
    yield local
    await local.close()


@pytest.fixture
def workspace(store: WorkspaceStore) -> Counting:
    return Counting(store.workspace("user-1", "run-1"))


@pytest.fixture
def checkout(workspace: Counting, tmp_path: Path) -> Checkout:
    return Checkout(workspace, QUOTA, tmp_path / "checkout")
