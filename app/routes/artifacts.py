"""/agent/artifacts: what agents keep from run to run. Its user sees the present files; admins see and change the
history of everybody's."""

from typing import Annotated, Any

from fastapi import Query, Response

from app.auth import Admin, CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.artifacts import (
    COMMIT_PATTERN,
    AgentName,
    ArtifactChange,
    ArtifactFiles,
    ArtifactLog,
    ArtifactPath,
    CommitId,
    RollBack,
    RolledBack,
    UserRef,
)
from app.schemas.fields import Limit
from backplane.artifacts.base import AgentId, Artifacts, Author
from backplane.errors import NotFound

router = Operations(route_class=JsonRoute, tags=["artifacts"])

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("/agent/artifacts/{agent}", responses=responses(404, 422))
async def list_artifacts(agent: AgentName, user: CurrentUser, context: ContextOf) -> ArtifactFiles:
    """The files that an agent of yours keeps, by path. None for one that has never kept any."""
    return ArtifactFiles.of(await _artifacts(context).files(AgentId(user.id, agent)))


@router.get("/agent/artifacts/{agent}/content", responses={**_BYTES, **responses(404, 422)}, response_class=Response)
async def get_artifact(agent: AgentName, path: ArtifactPath, user: CurrentUser, context: ContextOf) -> Response:
    """One file that an agent of yours keeps."""
    return _bytes(await _artifacts(context).read(AgentId(user.id, agent), path))


@router.get("/agent/artifacts/{user}/{agent}/log", responses=responses(403, 404, 422))
async def list_artifact_changes(
    user: UserRef,
    agent: AgentName,
    _: Admin,
    context: ContextOf,
    cursor: Annotated[
        str | None, Query(pattern=COMMIT_PATTERN, description="`next_cursor` of the page before.")
    ] = None,
    limit: Limit = 50,
) -> ArtifactLog:
    """Every change of an agent's files."""
    changes = await _artifacts(context).log(await _agent(context, user, agent), before=cursor, limit=limit + 1)
    listed = changes[:limit]
    return ArtifactLog(
        changes=[ArtifactChange.of(change) for change in listed],
        next_cursor=listed[-1].commit if len(changes) > limit else None,
    )


@router.get("/agent/artifacts/{user}/{agent}/files", responses=responses(403, 404, 422))
async def list_artifacts_at(
    user: UserRef, agent: AgentName, commit: CommitId, _: Admin, context: ContextOf
) -> ArtifactFiles:
    """An agent's files as they were after a commit."""
    return ArtifactFiles.of(await _artifacts(context).files_at(await _agent(context, user, agent), commit))


@router.get(
    "/agent/artifacts/{user}/{agent}/show", responses={**_BYTES, **responses(403, 404, 422)}, response_class=Response
)
async def show_artifact(
    user: UserRef, agent: AgentName, commit: CommitId, path: ArtifactPath, _: Admin, context: ContextOf
) -> Response:
    """One file as it was after a commit."""
    return _bytes(await _artifacts(context).read_at(await _agent(context, user, agent), commit, path))


@router.post("/agent/artifacts/{user}/{agent}/rollback", responses=responses(403, 404, 409, 413, 422))
async def roll_back_artifacts(
    user: UserRef, agent: AgentName, body: RollBack, admin: Admin, context: ContextOf
) -> RolledBack:
    """Make an agent's files what they were after a commit. The history stays, with the rollback as its newest entry;
    runs see the files so from here on."""
    author = Author(administrator=admin.name)
    found = await _agent(context, user, agent)
    return RolledBack(commit=await _artifacts(context).roll_back(found, body.commit, author))


def _artifacts(context: ApiContext) -> Artifacts:
    if context.resources.artifacts is None:
        raise NotFound("this platform keeps no artifacts: ARTIFACTS_DIR is empty")
    return context.resources.artifacts


async def _agent(context: ApiContext, user: str, agent: str) -> AgentId:
    return AgentId((await context.resources.store.users.find(user)).id, agent)


def _bytes(data: bytes) -> Response:
    headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    return Response(data, headers=headers, media_type="application/octet-stream")
