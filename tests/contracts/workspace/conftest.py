"""Both kinds of store: the folder, and a real S3 server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backplane.workspace.base import Workspace, WorkspaceStore
from backplane.workspace.local import LocalWorkspaceStore
from tests.contracts.workspace.workspaces import s3_store


@pytest.fixture(params=["local", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WorkspaceStore]:
    made: WorkspaceStore
    if request.param == "local":
        made = LocalWorkspaceStore(tmp_path / "workspaces")
    else:
        server = request.getfixturevalue("s3_server")
        made = s3_store(server.endpoint, request.getfixturevalue("bucket"))
    await made.prepare()
    yield made
    await made.close()


@pytest.fixture
def workspace(store: WorkspaceStore) -> Workspace:
    return store.workspace("user-1", "run-1")
