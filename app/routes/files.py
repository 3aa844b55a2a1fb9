"""A run's files: streamed both ways, never whole in memory."""

import asyncio
import re
from bisect import bisect_right
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import Header, Path, Query, Request, Response
from pydantic import TypeAdapter
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.auth import CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.operations import Operations
from app.errors import problem, responses
from app.schemas.fields import RunId
from app.schemas.files import FileList, FileView
from backplane.domain.users import User
from backplane.errors import Conflict
from backplane.workspace.base import FileInfo, Workspace
from backplane.workspace.paths import check_path

router = Operations(tags=["files"])

FilePath = Annotated[
    str, Path(description="Relative to the workspace, with `/` between folders.", examples=["src/main.py"])
]

PAGE_MAX = 10_000
ENCODED_AT_ONCE = 500
"""Files of a list: some 3 ms."""

_VIEWS, _CURSOR = TypeAdapter(list[FileView]), TypeAdapter(str | None)
_RANGE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


class FileDownload(StreamingResponse):
    """Counts as a transfer of its user for as long as it is sent."""

    media_type = "application/octet-stream"

    def __init__(self, context: ApiContext, user: User, body: AsyncGenerator[bytes, None], **options: Any) -> None:
        super().__init__(context.transfers.paced(user.id, body), **options)
        self._body = body
        self._transfers = context.transfers
        self._user_id = user.id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Closed here, since a client that has gone leaves it in the middle of the file.
        async with aclosing(self._body):
            with self._transfers.counted(self._user_id):
                await super().__call__(scope, receive, send)


async def _workspace(context: ApiContext, user: User, run_id: str) -> Workspace:
    run = await context.resources.store.runs.get(user.id, run_id)
    return context.resources.workspaces.workspace(run.user_id, run.workspace_id)


def _view(file: FileInfo) -> FileView:
    return FileView(path=file.path, size=file.size, modified_at=file.modified_at, etag=file.etag)


@router.get("/agent/runs/{run_id}/files", response_model=FileList, responses=responses(404, 422))
async def list_files(
    run_id: RunId,
    user: CurrentUser,
    context: ContextOf,
    prefix: Annotated[str, Query(max_length=900, description="Only this file, or what lies in this folder.")] = "",
    cursor: Annotated[str, Query(max_length=1000, description="`next_cursor` of the page before.")] = "",
    limit: Annotated[
        int | None, Query(ge=1, le=PAGE_MAX, description="At most so many; all of them when left out.")
    ] = None,
) -> Response:
    """The files of a run's workspace, by path."""
    workspace = await _workspace(context, user, run_id)
    if prefix:
        check_path(prefix.rstrip("/"), max_depth=context.quota.max_depth)
    found = await workspace.list(prefix.rstrip("/"))
    first = bisect_right(found, cursor, key=lambda file: file.path) if cursor else 0
    end = len(found) if limit is None else min(first + limit, len(found))
    last = found[end - 1].path if first < end < len(found) else None
    return Response(await _encoded(found, first, end, last), media_type="application/json")


async def _encoded(files: list[FileInfo], first: int, end: int, next_cursor: str | None) -> bytes:
    """A FileList of files[first:end]. A workspace may have 100,000 files, so others get their turn in between."""
    encoded = [b'{"files":[']
    for start in range(first, end, ENCODED_AT_ONCE):
        views = [_view(file) for file in files[start : min(start + ENCODED_AT_ONCE, end)]]
        encoded += [b"," if start > first else b"", _VIEWS.dump_json(views)[1:-1]]
        await asyncio.sleep(0)
    encoded += [b'],"next_cursor":', _CURSOR.dump_json(next_cursor), b"}"]
    return b"".join(encoded)


@router.get(
    "/agent/runs/{run_id}/files/{path:path}",
    responses={200: _BYTES, 206: {**_BYTES, "description": "The range."}, **responses(404, 416, 422)},
    response_class=Response,
)
async def get_file(
    run_id: RunId,
    path: FilePath,
    user: CurrentUser,
    context: ContextOf,
    range: Annotated[str | None, Header(description="`bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-COUNT`.")] = None,
) -> Response:
    """One file, or one range of its bytes."""
    workspace = await _workspace(context, user, run_id)
    file = await workspace.stat(check_path(path, max_depth=context.quota.max_depth))
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": f'"{file.etag.strip(chr(34))}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": "attachment",
    }
    span = parse_range(range, file.size)
    if span is None:
        headers["Content-Length"] = str(file.size)
        body = _body(workspace, file, 0, file.size)
        return FileDownload(context, user, body, headers=headers)
    first, end = span
    if first >= end:
        detail = f"the file has {file.size} bytes; ask for a range inside"
        return problem(416, "range_not_satisfiable", detail, headers={"Content-Range": f"bytes */{file.size}"})
    headers |= {"Content-Length": str(end - first), "Content-Range": f"bytes {first}-{end - 1}/{file.size}"}
    body = _body(workspace, file, first, end)
    return FileDownload(context, user, body, status_code=206, headers=headers)


@router.put(
    "/agent/runs/{run_id}/files/{path:path}",
    status_code=201,
    responses=responses(404, 409, 413, 422),
    openapi_extra={"requestBody": {"description": "The file's bytes, as they are.", **_BYTES}},
)
async def put_file(run_id: RunId, path: FilePath, request: Request, user: CurrentUser, context: ContextOf) -> FileView:
    """Write a file into a run's workspace. Before the run is started or at any other time. It is seen whole,
    or not at all."""
    run = await context.resources.store.runs.get(user.id, run_id)
    if run.files_expired_at is not None:
        raise Conflict(f"run {run_id} is past its time and its files are gone; make a new run")
    workspace = context.resources.workspaces.workspace(run.user_id, run.workspace_id)
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdigit() else None
    return _view(await context.transfers.upload(workspace, user.id, run_id, path, request.stream(), size))


@router.delete("/agent/runs/{run_id}/files/{path:path}", status_code=204, responses=responses(404, 422))
async def delete_file(run_id: RunId, path: FilePath, user: CurrentUser, context: ContextOf) -> None:
    """Delete one file of a workspace."""
    workspace = await _workspace(context, user, run_id)
    file = await workspace.stat(check_path(path, max_depth=context.quota.max_depth))
    await workspace.delete(path)
    await context.transfers.removed(user.id, file.size)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and end (not included) that a Range header asks of a file; None: the whole file.

    Headers that are malformed or ask for several ranges are ignored, as RFC 9110 (14.2) allows. A range that lies
    outside answers an empty span.
    """
    match = _RANGE.match(header or "")
    if not match or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


async def _body(workspace: Workspace, file: FileInfo, first: int, end: int) -> AsyncGenerator[bytes, None]:
    if end > first:
        read = cast(AsyncGenerator[bytes, None], workspace.read(file.path, start=first, end=end))
        async with aclosing(read):
            async for chunk in read:
                yield chunk
