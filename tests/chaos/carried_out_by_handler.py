"""A handler that carries out the steps of a plan in the chaos of runs, so that code is broken off as plans are."""

from typing import Any

from worker.handlers import Run, handler


@handler("chaos-plan")
async def chaos_plan(run: Run, input: list[dict[str, Any]]) -> int:
    for step in input:
        await run.tool(step["tool"], **step["arguments"]).options(repeatable=step.get("repeatable", False))
    return len(input)
