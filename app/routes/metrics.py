"""GET /metrics: for Prometheus. Without a token and without a word about any user; API_METRICS=false takes it away."""

from fastapi import Response

from app.context import ContextOf
from app.edge.operations import Operations

router = Operations(include_in_schema=False)


@router.get("/metrics")
async def show_metrics(context: ContextOf) -> Response:
    body, content_type = await context.platform_metrics.scrape()
    return Response(body, headers={"Content-Type": content_type})
