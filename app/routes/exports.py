"""/agent/exports: a run as one archive, to be fetched for a while."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from fastapi import Response

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.jobs import page_of_jobs
from app.routes.files import FileDownload
from app.schemas.fields import Limit, RunId
from app.schemas.jobs import ExportPage, ExportView, IdempotencyKey, JobCursor, JobId
from backplane.domain.background_jobs import ARCHIVE, NewJob
from backplane.domain.runs import new_run_id
from backplane.errors import NotFound
from backplane.run_actions.actions import idempotency_of
from backplane.workspace.base import Workspace

router = Operations(tags=["exports"])

# As all downloads: generators of clients know these bytes, and few know application/zip.
_ZIP = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/agent/runs/{run_id}/export", status_code=202, responses=responses(404, 409, 413, 422))
async def export_run(
    run_id: RunId, user: CurrentUser, context: ContextOf, idempotency_key: IdempotencyKey = None
) -> ExportView:
    """Put a run with its plans, events, model calls and files into one archive. Answers at once; the archive
    is made in the background."""
    context.jobs.check_possible()
    job = await context.resources.store.background_jobs.create_export(
        NewJob(new_run_id(), user.id, idempotency_of(idempotency_key, ["export", run_id])),
        run_id,
        most_jobs=context.settings.jobs_user_max,
    )
    await context.jobs.put(job.id)
    return ExportView.of(job)


@router.get("/agent/exports", responses=responses(422))
async def list_exports(
    user: CurrentUser,
    context: ContextOf,
    cursor: JobCursor = None,
    limit: Limit = 50,
) -> ExportPage:
    """Your exports, newest first."""
    found, following = await page_of_jobs(context.resources.store.background_jobs, user, "export", cursor, limit)
    return ExportPage(exports=[ExportView.of(job) for job in found], next_cursor=following)


@router.get("/agent/exports/{export_id}", responses=responses(404, 422))
async def show_export(export_id: JobId, user: CurrentUser, context: ContextOf) -> ExportView:
    """How far it is, and where the archive is."""
    return ExportView.of(await context.resources.store.background_jobs.get(user.id, export_id, "export"))


@router.delete("/agent/exports/{export_id}", responses=responses(404, 422))
async def remove_export(export_id: JobId, user: CurrentUser, context: ContextOf) -> ExportView:
    """Remove the archive before its time, or do not make it. It counts no more among your files a little later."""
    return ExportView.of(await context.resources.store.background_jobs.stop_export(user.id, export_id))


@router.get("/agent/exports/{export_id}/archive", responses={200: _ZIP, **responses(404, 422)}, response_class=Response)
async def get_export_archive(export_id: JobId, user: CurrentUser, context: ContextOf) -> Response:
    """The archive, as long as it is kept."""
    job = await context.resources.store.background_jobs.get(user.id, export_id, "export")
    if not job.has_archive:
        state = f"its state is {job.status}" if not job.is_over or job.error else "it was removed; export the run again"
        raise NotFound(f"export {export_id} has no archive: {job.error or state}")
    workspace = context.resources.workspaces.workspace(job.user_id, job.id)
    file = await workspace.stat(ARCHIVE)
    headers = {
        "Content-Length": str(file.size),
        "Content-Disposition": f'attachment; filename="run-{job.request["run_id"]}.zip"',
        "X-Content-Type-Options": "nosniff",
    }
    return FileDownload(context, user, _body(workspace), headers=headers, media_type="application/octet-stream")


async def _body(workspace: Workspace) -> AsyncGenerator[bytes, None]:
    async with aclosing(cast(AsyncGenerator[bytes, None], workspace.read(ARCHIVE))) as chunks:
        async for chunk in chunks:
            yield chunk
