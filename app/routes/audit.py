"""GET /agent/audit: who did what, when, to what, and how it ended. Nothing here changes it."""

from typing import Annotated

from fastapi import Query

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.audit import AuditEntryView, AuditPage
from app.schemas.fields import Limit, Text
from backplane.domain.audit import AuditFilter
from backplane.domain.users import Tier
from backplane.errors import Forbidden

router = Operations(tags=["audit"])


@router.get("/agent/audit", responses=responses(403, 404, 422))
async def list_audit_entries(
    user: CurrentUser,
    context: ContextOf,
    of_user: Annotated[
        Text | None,
        Query(alias="user", min_length=1, max_length=200, description="Only what this user did, by name or id."),
    ] = None,
    action: Annotated[
        Text | None, Query(min_length=1, max_length=64, description="Only entries of this action.")
    ] = None,
    after: Annotated[
        int | None,
        Query(ge=0, le=2**53, description="Only entries with a higher number, and the oldest of them first."),
    ] = None,
    cursor: Annotated[int | None, Query(ge=0, le=2**53, description="`next_cursor` of the page before.")] = None,
    limit: Limit = 50,
) -> AuditPage:
    """What you did; for administrators what everybody did. Newest first; with `after`, oldest first from there on."""
    store = context.resources.store
    whose = user.id if user.tier is not Tier.ADMIN else None
    if of_user is not None and of_user in (user.id, user.name):
        whose = user.id
    elif of_user is not None:
        if user.tier is not Tier.ADMIN:
            raise Forbidden(f"user: what others did is for users of the tier admin, and {user.name} has {user.tier}")
        whose = (await store.users.find(of_user)).id
    found = await store.audit.page(AuditFilter(whose, action), after=after, before=cursor, limit=limit + 1)
    listed = found[:limit]
    is_backwards = after is None and len(found) > limit
    return AuditPage(
        entries=[AuditEntryView.of(entry) for entry in listed],
        next_cursor=listed[-1].seq if is_backwards else None,
        next_after=max((entry.seq for entry in listed), default=None),
    )
