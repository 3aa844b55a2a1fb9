"""GET /agent/usage: what one has stored; with `by`, what models took."""

from typing import Annotated, Any

from fastapi import Query

from app.auth import CurrentUser
from app.context import ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.explanation import moment
from app.schemas.model_usage import ModelTotalsView, ModelUsageGroupView, ModelUsageQuery, ModelUsageView, fields_of
from app.schemas.queue import UsageOf, UsageView
from backplane.domain.model_usage import UsageFilter, UsageGroup, UsageKey
from backplane.domain.users import Tier, User
from backplane.errors import InvalidInput, NotFound
from backplane.store import Users

router = Operations(tags=["queue"])


@router.get("/agent/usage", responses=responses(404, 422))
async def show_usage(
    user: CurrentUser, context: ContextOf, query: Annotated[ModelUsageQuery, Query()]
) -> UsageView | ModelUsageView:
    """What you have stored, and how much you may: counted now and then; null: not yet.

    With `by` instead what models took, in tokens and dollars, also of runs that are deleted: yours, and for
    administrators everybody's."""
    if query.by:
        return await _of_models(user, context, query)
    if unused := sorted(query.model_fields_set - {"by"}):
        name = {"first": "from", "last": "to"}.get(unused[0], unused[0])
        raise InvalidInput(f"{name}: it belongs to a question with `by`; add by=model", field=name)
    stored = await context.resources.storage.of(user.id)
    settings = context.settings
    return UsageView(
        runs=UsageOf(used=stored.runs, limit=settings.user_max_runs),
        events=UsageOf(used=stored.events, limit=settings.user_max_events),
        bytes=UsageOf(used=stored.bytes, limit=settings.user_max_bytes),
        rows_counted_at=moment(stored.rows_at),
        files_counted_at=moment(stored.files_at),
    )


async def _of_models(user: User, context: ContextOf, query: ModelUsageQuery) -> ModelUsageView:
    if query.first and query.last and query.first > query.last:
        raise InvalidInput("from: it is after `to`; swap them", field="from")
    store = context.resources.store
    by = list(dict.fromkeys(query.by))
    of = UsageFilter(await _whose(user, store.users, query.user), query.first, query.last)
    offset = query.cursor or 0
    report = await store.model_usage.report(by, of, offset=offset, limit=query.limit + 1)
    listed = report.groups[: query.limit]
    names = await store.model_usage.names(listed)
    return ModelUsageView(
        by=by,
        groups=[_view(group, names) for group in listed],
        totals=ModelTotalsView.of(report.totals),
        next_cursor=offset + len(listed) if len(report.groups) > query.limit else None,
    )


async def _whose(user: User, users: Users, named: str | None) -> str | None:
    """The id of the user whose usage is shown; None: everybody's. Raises NotFound."""
    if user.tier is Tier.ADMIN:
        return (await users.find(named)).id if named is not None else None
    if named not in (None, user.id, user.name):
        raise NotFound(f"there is no user {named}")
    return user.id


def _view(group: UsageGroup, names: dict[str, str]) -> ModelUsageGroupView:
    shown: dict[str, Any] = {key.value: value for key, value in group.key.items()}
    if user_id := shown.pop(UsageKey.USER.value, None):
        shown |= {"user_id": user_id, "user": names.get(str(user_id))}
    if agent := shown.get(UsageKey.AGENT.value):
        shown["agent_name"] = names.get(str(agent))
    return ModelUsageGroupView(**shown, **fields_of(group.totals))
