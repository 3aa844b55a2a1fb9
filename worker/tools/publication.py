"""Publishes this worker's tools for as long as it lives, so that the API can check plans and show what there is.

Tools of MCP servers are not among them: they are asked for anew by each run, and with the secrets of its user, so what
one user is offered may be nobody else's business.
"""

import asyncio

import structlog

from backplane.errors import Unavailable
from backplane.tool_catalogue.base import PublishedHandler, PublishedTool, ToolCatalogue, ToolSet
from worker.tools.arguments import is_folder, is_path
from worker.tools.registry import ToolRegistry, describe, programs_of

log = structlog.get_logger()

PUBLISHED_SECONDS = 60.0
"""How long a published set counts after it was last published; the worker publishes it four times in that time. After a
worker has ended, a plan may for so long miss its early refusal, and nothing else."""


def tool_set(
    tools: ToolRegistry,
    *,
    has_model: bool,
    handlers: tuple[PublishedHandler, ...] = (),
    roles: tuple[str, ...] | None = None,
) -> ToolSet:
    published = (
        PublishedTool(
            **describe(tool),
            package=tool.package,
            programs=tuple(sorted(programs_of(tool))),
            paths=tuple(name for name, field in tool.arguments.model_fields.items() if is_path(field)),
            folders=tuple(name for name, field in tool.arguments.model_fields.items() if is_folder(field)),
        )
        for tool in tools.tools()
    )
    return ToolSet(tuple(published), has_model, handlers, roles)


async def publish(
    catalogue: ToolCatalogue, tools: ToolSet, worker_id: str, *, seconds: float = PUBLISHED_SECONDS
) -> None:
    """Publish this worker's tools until this is cancelled."""
    is_away = False
    while True:
        try:
            await catalogue.publish(tools, worker_id=worker_id, seconds=seconds)
            is_away = False
        except Unavailable as error:
            if not is_away:
                log.warning("the tools of this worker could not be published", part=error.part, error=error.message)
            is_away = True
        await asyncio.sleep(seconds / 4)
