"""Your own code as a run: what a package that offers handlers imports (docs/handlers.md).

from worker.handlers import Run, handler

@handler("weekly-report")
async def weekly_report(run: Run, input: ReportInput) -> str: ...
"""

from worker.handlers.registry import Handler, handler
from worker.handlers.run import Child, StepError, ToolOutput
from worker.handlers.run import HandlerEffect as Effect
from worker.handlers.run import HandlerRun as Run

__all__ = ["Child", "Effect", "Handler", "Run", "StepError", "ToolOutput", "handler"]
