"""GET /agent/overview: how things stand, in one request."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query

from app.agents.shortages import shortages
from app.auth import CurrentUser
from app.context import ApiContext, ContextOf
from app.edge.operations import Operations
from app.errors import responses
from app.routes.queue import summary_of
from app.routes.run_lists import listed
from app.schemas.agents import PoolView
from app.schemas.overview import LatencyView, MinuteView, NeedsYou, OverviewView
from app.schemas.queue import QueueSummary
from backplane.domain.budgets import Resource, amount_text
from backplane.domain.model_usage import UsageFilter, UsageKey
from backplane.domain.overview import percentile, throughput
from backplane.domain.users import Tier
from backplane.errors import Unavailable

router = Operations(tags=["queue"])


@router.get("/agent/overview", responses=responses(422))
async def show_overview(
    user: CurrentUser,
    context: ContextOf,
    mine: Annotated[bool, Query(description="For administrators: only one's own runs.")] = False,
) -> OverviewView:
    """How things stand.

    What waits and runs, what ended in the last hour, what failed, what it costs, who works, and what asks for you. Of
    your runs; for administrators of all."""
    store, now = context.resources.store, datetime.now(UTC)
    of = None if user.tier is Tier.ADMIN and not mine else user.id
    found = await store.overviews.of(of, user.id, now)
    spent = await store.model_usage.report([UsageKey.DAY], UsageFilter(of, first=now.date()), limit=1)
    queues, workers = await _at_work(context)
    why = await shortages(context.resources.agent_registry)
    queue, run = found.queue_seconds, found.run_seconds
    return OverviewView(
        now=now,
        runs={status.value: count for status, count in found.counts().items()},
        throughput=[
            MinuteView(minute=each.minute, ended=each.ended, failed=each.failed)
            for each in throughput(found.ended, now)
        ],
        latency=LatencyView(
            queue_p50=percentile(queue, 0.5),
            queue_p95=percentile(queue, 0.95),
            run_p50=percentile(run, 0.5),
            run_p95=percentile(run, 0.95),
        ),
        failed_lately=[listed(each) for each in found.failed],
        spend_today_usd=amount_text(Resource.MICRO_USD, spent.totals.micro_usd),
        queues=queues,
        workers=workers,
        pools=[PoolView.of(one, why.get(one.pool.name)) for one in await store.agent_pools.counts()],
        needs_you=NeedsYou(count=found.open_decisions, oldest_at=found.oldest_decision),
    )


async def _at_work(context: ApiContext) -> tuple[list[QueueSummary] | None, int | None]:
    queue = context.resources.queue
    try:
        return [summary_of(each) for each in await queue.depths()], len(await queue.worker_ids())
    except Unavailable:
        return None, None
