"""/api/deployments: agents that users bring as images. What is wanted is written down here, and a controller makes it
so; no call waits for the cluster, unless it asks to.

A user sees and changes one's own, an administrator all.
"""

from typing import Annotated, Any

from fastapi import Body, Header, Query, Request, Response

from app.auth import Admin, CurrentUser, admin_only
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.deployments import (
    EXAMPLE_MANIFEST,
    AgentIdFilter,
    ApproveRevision,
    DeploymentChangeRequest,
    DeploymentDetail,
    DeploymentId,
    DeploymentPage,
    DeploymentView,
    ForgottenView,
    Grace,
    NamespaceFilter,
    NewDeploymentRequest,
    RevisionDecision,
    RollbackRequest,
    ScaleRequest,
    WaitSeconds,
)
from app.schemas.fields import Limit, RunId
from backplane.domain.agent_manifest import AgentManifest, parse_manifest
from backplane.domain.deployments import (
    RESERVED_NAMESPACES,
    Approval,
    Deployment,
    DeploymentFilter,
    DeploymentStatus,
    NewDeployment,
    namespace_fault,
)
from backplane.domain.users import Tier, User
from backplane.errors import DeploymentsOff, InvalidInput
from backplane.run_actions.actions import idempotency_of

router = Operations(route_class=JsonRoute, tags=["deployments"])

_EXAMPLES: Any = {
    "deploy": {
        "value": {
            "agent_id": "support",
            "namespace": "team-a",
            "image": "registry.example.org/support:1.2.0",
            "manifest": EXAMPLE_MANIFEST,
        }
    }
}
_CHANGES: Any = {
    "another image": {"value": {"image": "registry.example.org/support:1.3.0"}},
    "another manifest": {"value": {"manifest": EXAMPLE_MANIFEST}},
}
_DECISIONS: Any = {
    "approve": {"value": {"decision": "approve", "revision": 2}},
    "reject": {"value": {"decision": "reject", "revision": 2, "reason": "not on a Friday"}},
}
_IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key and body answer the same deployment; another body is refused.",
    ),
]


@router.post(
    "/api/deployments",
    status_code=201,
    responses={
        200: {"description": "The same key made it before.", "model": DeploymentDetail},
        **responses(409, 413, 422),
    },
)
async def create_deployment(
    body: Annotated[NewDeploymentRequest, Body(openapi_examples=_EXAMPLES)],
    user: CurrentUser,
    context: ContextOf,
    request: Request,
    response: Response,
    wait_seconds: WaitSeconds = 0,
    idempotency_key: _IdempotencyKey = None,
) -> DeploymentDetail:
    """Deploy an agent. It answers at once, or after `wait_seconds` at most; GET says how far it is. A manifest of
    tier_3 or tier_4 waits for an administrator first."""
    _check_target(context)
    if fault := namespace_fault(body.namespace, _reserved(context)):
        raise InvalidInput(f"namespace: {fault}", field="namespace")
    new = NewDeployment(
        body.agent_id,
        body.namespace,
        body.image,
        parse_manifest(body.manifest, "manifest"),
        idempotency_of(idempotency_key, ["deployment", body.model_dump(mode="json")]),
    )
    settings = context.settings
    made, is_new = await context.resources.store.deployments.create(
        user, new, most=settings.deployments_user_max, replicas=settings.deployments_replicas_user_max
    )
    if not is_new:
        response.status_code = 200
    return DeploymentDetail.of(await context.rollout_waits.settled(request.scope, user, made, wait_seconds))


@router.get("/api/deployments", responses=responses(422))
async def list_deployments(
    user: CurrentUser,
    context: ContextOf,
    namespace: NamespaceFilter = None,
    status: Annotated[DeploymentStatus | None, Query(description="Only those that are so.")] = None,
    agent_id: AgentIdFilter = None,
    approval: Annotated[
        Approval | None, Query(description="Only those whose newest revision is so: `pending` waits for a decision.")
    ] = None,
    cursor: Annotated[RunId | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Limit = 50,
) -> DeploymentPage:
    """Your deployments, the newest first; all of them for an administrator."""
    wanted = DeploymentFilter(namespace, status, agent_id, approval)
    deployments = context.resources.store.deployments
    found = await deployments.list_of(_owner(user), wanted, before=cursor, limit=limit + 1)
    page = found[:limit]
    return DeploymentPage(
        deployments=[DeploymentView.of(deployment) for deployment in page],
        next_cursor=page[-1].id if len(found) > limit else None,
    )


@router.get("/api/deployments/{deployment_id}", responses=responses(404, 422))
async def show_deployment(deployment_id: DeploymentId, user: CurrentUser, context: ContextOf) -> DeploymentDetail:
    """A deployment: what is wanted, what there is, and why the two differ."""
    return DeploymentDetail.of(await own(context, user, deployment_id))


@router.patch("/api/deployments/{deployment_id}", responses=responses(404, 409, 413, 422))
async def change_deployment(
    deployment_id: DeploymentId,
    body: Annotated[DeploymentChangeRequest, Body(openapi_examples=_CHANGES)],
    user: CurrentUser,
    context: ContextOf,
    request: Request,
    wait_seconds: WaitSeconds = 0,
) -> DeploymentDetail:
    """Deploy another image, another manifest, or both, as a new revision. The same content changes nothing."""
    there = await own(context, user, deployment_id)
    _check_target(context)
    manifest: AgentManifest | None = None
    if body.manifest is not None:
        manifest = parse_manifest(body.manifest, "manifest")
    most = context.settings.deployments_replicas_user_max
    deployments = context.resources.store.deployments
    changed = await deployments.revise(there.id, user, image=body.image, manifest=manifest, most=most)
    return DeploymentDetail.of(await context.rollout_waits.settled(request.scope, user, changed, wait_seconds))


@router.delete(
    "/api/deployments/{deployment_id}",
    status_code=202,
    responses={
        200: {"description": "With `force`: it is gone here. What may be left.", "model": ForgottenView},
        **responses(403, 404, 422),
    },
)
async def delete_deployment(
    deployment_id: DeploymentId,
    user: CurrentUser,
    context: ContextOf,
    response: Response,
    grace_seconds: Grace = 30,
    force: Annotated[
        bool, Query(description="For administrators: do not wait for the target, which is away for good.")
    ] = False,
) -> DeploymentView | ForgottenView:
    """Delete a deployment. GET answers until a controller has proved that nothing of it is left, then 404."""
    there = await own(context, user, deployment_id)
    deployments = context.resources.store.deployments
    if force:
        # What goes on in the target counts for nobody any more: else each user could have as much of it as one likes.
        await admin_only(user)
        await deployments.forget(there.id)
        response.status_code = 200
        return ForgottenView(
            id=there.id,
            left=f"objects with the label agent-platform/deployment={there.id} in the namespace {there.namespace}, or "
            f"containers whose names begin with {there.object_name}; a controller takes them away when their target is "
            "back",
        )
    return DeploymentView.of(await deployments.delete(there.id, user, grace_seconds))


@router.post("/api/deployments/{deployment_id}/scale", responses=responses(404, 409, 413, 422))
async def scale_deployment(
    deployment_id: DeploymentId,
    body: ScaleRequest,
    user: CurrentUser,
    context: ContextOf,
    request: Request,
    wait_seconds: WaitSeconds = 0,
) -> DeploymentView:
    """Set the number of replicas by hand. Refused (409 `deployment_autoscaled`) where an autoscaler sets it."""
    there = await own(context, user, deployment_id)
    most = context.settings.deployments_replicas_user_max
    changed = await context.resources.store.deployments.scale(there.id, body.replicas, user, most=most)
    return DeploymentView.of(await context.rollout_waits.settled(request.scope, user, changed, wait_seconds))


@router.post("/api/deployments/{deployment_id}/rollback", responses=responses(404, 409, 413, 422))
async def roll_back_deployment(
    deployment_id: DeploymentId,
    body: RollbackRequest,
    user: CurrentUser,
    context: ContextOf,
    request: Request,
    wait_seconds: WaitSeconds = 0,
) -> DeploymentView:
    """Deploy the content of an older revision, as a new one."""
    there = await own(context, user, deployment_id)
    _check_target(context)
    most = context.settings.deployments_replicas_user_max
    changed = await context.resources.store.deployments.roll_back_to(there.id, user, body.revision, most=most)
    return DeploymentView.of(await context.rollout_waits.settled(request.scope, user, changed, wait_seconds))


@router.post("/api/deployments/{deployment_id}/restart", responses=responses(404, 409, 413, 422))
async def restart_deployment(
    deployment_id: DeploymentId,
    user: CurrentUser,
    context: ContextOf,
    request: Request,
    wait_seconds: WaitSeconds = 0,
) -> DeploymentView:
    """Start all replicas anew, a few at a time, with the same content."""
    there = await own(context, user, deployment_id)
    _check_target(context)
    changed = await context.resources.store.deployments.restart(there.id, user)
    return DeploymentView.of(await context.rollout_waits.settled(request.scope, user, changed, wait_seconds))


@router.post("/api/deployments/{deployment_id}/pause", responses=responses(404, 409, 413, 422))
async def pause_deployment(deployment_id: DeploymentId, user: CurrentUser, context: ContextOf) -> DeploymentView:
    """Leave what runs as it is until it is resumed, whatever is changed meanwhile."""
    there = await own(context, user, deployment_id)
    return DeploymentView.of(await context.resources.store.deployments.pause(there.id, user))


@router.post("/api/deployments/{deployment_id}/resume", responses=responses(404, 409, 413, 422))
async def resume_deployment(
    deployment_id: DeploymentId,
    user: CurrentUser,
    context: ContextOf,
    request: Request,
    wait_seconds: WaitSeconds = 0,
) -> DeploymentView:
    """Let a paused deployment become what was wanted meanwhile."""
    there = await own(context, user, deployment_id)
    changed = await context.resources.store.deployments.resume(there.id, user)
    return DeploymentView.of(await context.rollout_waits.settled(request.scope, user, changed, wait_seconds))


@router.post("/api/deployments/{deployment_id}/decision", responses=responses(403, 404, 409, 413, 422))
async def decide_on_deployment(
    deployment_id: DeploymentId,
    body: Annotated[RevisionDecision, Body(openapi_examples=_DECISIONS)],
    admin: Admin,
    context: ContextOf,
) -> DeploymentView:
    """Approve or reject the newest revision. For administrators. After a rejection the content that ran before goes on;
    where there was none, the deployment has failed."""
    approve = isinstance(body, ApproveRevision)
    reason = "" if isinstance(body, ApproveRevision) else body.reason
    deployments = context.resources.store.deployments
    changed = await deployments.decide(deployment_id, admin, approve=approve, reason=reason, number=body.revision)
    return DeploymentView.of(changed)


async def own(context: ApiContext, user: User, deployment_id: str) -> Deployment:
    """One that this user may see and change. Raises NotFound."""
    return await context.resources.store.deployments.get(_owner(user), deployment_id)


def _owner(user: User) -> str | None:
    """Whose deployments this user sees; None: everybody's."""
    return None if user.tier is Tier.ADMIN else user.id


def _check_target(context: ApiContext) -> None:
    """Raises DeploymentsOff."""
    if not context.settings.deploy_target:
        raise DeploymentsOff(
            "nothing is deployed here: set DEPLOY_TARGET (kubernetes or container) for the API and the controller"
        )


def _reserved(context: ApiContext) -> frozenset[str]:
    settings = context.settings
    return RESERVED_NAMESPACES | {settings.pod_namespace, settings.sandbox_namespace}
