"""/api/nas/services: the always-on services beside the platform. Administrators declare and see them; whether each
answers, everybody with a token may know.

Only administrators may name what is checked: a check reaches hosts of the network inside, for whoever declared it.
"""

from typing import Annotated

from fastapi import HTTPException, Query, Response

from app.auth import Admin, CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.fields import Limit
from app.schemas.services import (
    NewService,
    ServiceChangeView,
    ServiceFields,
    ServiceHistory,
    ServiceKey,
    ServiceList,
    ServiceView,
    StatusPage,
)
from backplane.domain.services import SERVICES_MAX, ServiceSpec, name_fault
from backplane.domain.webhooks import check_public_url, check_url
from backplane.errors import Conflict, NotFound

router = Operations(route_class=JsonRoute, tags=["services"])


@router.get("/api/nas/services", responses=responses(403))
async def list_services(_: Admin, context: ContextOf) -> ServiceList:
    """All services by name, with what was declared and how each is. For administrators."""
    return ServiceList(services=[ServiceView.of(each) for each in await context.resources.store.services.list_all()])


@router.post("/api/nas/services", status_code=201, responses=responses(403, 409, 413, 422))
async def create_service(new: NewService, admin: Admin, context: ContextOf) -> ServiceView:
    """Declare a service. It is checked within seconds; its container is started where it names an image and a
    controller may start containers. You get its events (`service.up`, `service.down`, `service.flapping`)."""
    spec = _checked(context, new)
    return ServiceView.of(await context.resources.store.services.create(admin.id, new.name, spec, most=SERVICES_MAX))


@router.get("/api/nas/services/status", responses=responses())
async def service_status(_: CurrentUser, context: ContextOf) -> StatusPage:
    """Which services answer, and since when. A status page as JSON, for everybody with a token."""
    return StatusPage.of(await context.resources.store.services.list_all())


@router.api_route("/api/nas/services/status", methods=["PUT", "DELETE"], include_in_schema=False)
async def take_status_for_no_service(_: CurrentUser) -> None:
    """`status` would be read as a service's name else."""
    raise HTTPException(405)


@router.get("/api/nas/services/{service}", responses=responses(403, 404, 422))
async def show_service(service: ServiceKey, _: Admin, context: ContextOf) -> ServiceView:
    """A service, by its name or its id."""
    return ServiceView.of(await context.resources.store.services.get(service))


@router.put(
    "/api/nas/services/{service}",
    responses={
        201: {"description": "There was none of this name: it was made.", "model": ServiceView},
        **responses(403, 404, 409, 413, 422),
    },
)
async def put_service(
    service: ServiceKey, fields: ServiceFields, admin: Admin, context: ContextOf, response: Response
) -> ServiceView:
    """Make the service of this name, or change the one that is there. It is declared whole; the same again changes
    nothing."""
    store, spec = context.resources.store.services, _checked(context, fields)
    try:
        there = await store.get(service)
    except NotFound:
        if name_fault(service):
            raise
        response.status_code = 201
        return ServiceView.of(await store.create(admin.id, service, spec, most=SERVICES_MAX))
    if there.deleted_at is not None:
        raise Conflict(f"service {there.name} is being deleted; make it again when it is gone")
    return ServiceView.of(there if there.spec == spec else await store.change(there, spec))


@router.delete(
    "/api/nas/services/{service}",
    status_code=204,
    responses={
        202: {"description": "Its container is being stopped; it is gone when GET answers 404.", "model": ServiceView},
        **responses(403, 404, 422),
    },
)
async def delete_service(
    service: ServiceKey,
    _: Admin,
    context: ContextOf,
    force: Annotated[bool, Query(description="Do not wait for its container, whose host may be gone.")] = False,
) -> Response:
    """Delete a service and its history, and stop its container. The container's volumes stay."""
    store = context.resources.store.services
    there = await store.get(service)
    if await store.delete(there, force=force):
        return Response(status_code=204)
    view = ServiceView.of(await store.get(there.id))
    return Response(view.model_dump_json(), status_code=202, media_type="application/json")


@router.get("/api/nas/services/{service}/history", responses=responses(403, 404, 422))
async def service_history(
    service: ServiceKey,
    _: Admin,
    context: ContextOf,
    cursor: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="`next_cursor` of the page before.")] = None,
    limit: Limit = 50,
) -> ServiceHistory:
    """When it went up and down, and why: the newest first."""
    store = context.resources.store.services
    there = await store.get(service)
    found = await store.history(there.id, cursor, limit + 1)
    page = found[:limit]
    return ServiceHistory(
        changes=[ServiceChangeView.of(change) for change in page],
        next_cursor=page[-1].number if len(found) > limit else None,
    )


def _checked(context: ApiContext, fields: ServiceFields) -> ServiceSpec:
    """Raises InvalidInput."""
    if fields.webhook_url is not None:
        check_url(fields.webhook_url)
        if not context.settings.webhook_allow_private:
            check_public_url(fields.webhook_url)
    return fields.spec()
