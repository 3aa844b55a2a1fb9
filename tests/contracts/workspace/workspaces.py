"""Short ways to make a store on a server, and to fill and read a workspace."""

from collections.abc import AsyncIterator

from backplane.workspace.base import Workspace, WorkspaceStore
from backplane.workspace.s3 import S3WorkspaceStore
from tests.servers import S3Server

MIB = 1024 * 1024


def s3_store(
    endpoint: str, bucket: str, *, secret_key: str = S3Server.secret_key, create: bool = False
) -> WorkspaceStore:
    return S3WorkspaceStore(
        bucket,
        endpoint=endpoint,
        region=S3Server.region,
        access_key=S3Server.access_key,
        secret_key=secret_key,
        create_bucket=create,
    )


async def chunks(*content: bytes) -> AsyncIterator[bytes]:
    for chunk in content:
        yield chunk


async def read(workspace: Workspace, path: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in workspace.read(path, start=start, end=end)])


async def paths(workspace: Workspace, prefix: str = "") -> list[str]:
    return [file.path for file in await workspace.list(prefix)]
