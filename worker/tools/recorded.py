"""Tools of a replay that shows what its source did: each step has the result and the files that the source's journal
has of it, and nothing is carried out. It needs no sandbox, no host and no secret, and not even the tool itself.

One kind of tool runs as ever: a tool that only has sub-steps (an agent). Its models answer from the source's records,
and its sub-steps are these tools again.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from backplane.domain.runs import RunError
from backplane.domain.steps import StepRecord, StepStatus
from worker.tools.base import Effect, Risk, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.registry import ToolRegistry


@dataclass(frozen=True, slots=True)
class Recordings:
    """The records of the source's journal, by step. `bring` makes a file of the run what it was with this etag there,
    or says that this is not kept; `delete` removes a file, if it is there. `attribute` notes times, modes, folders and
    links, as `StepRecord.attributes` has them."""

    run_id: str
    records: Mapping[str, StepRecord]
    bring: Callable[[str, str], Awaitable[bool]]
    delete: Callable[[str], Awaitable[None]]
    attribute: Callable[[Mapping[str, Any]], Awaitable[None]]


class _AnyArguments(ToolArguments):
    model_config = ConfigDict(frozen=True, extra="allow")


def recorded_tools(
    tools: ToolRegistry, recordings: Recordings, offered: Iterable[Mapping[str, Any]] = ()
) -> ToolRegistry:
    """These tools as their records, and those that the source had and that are not there any more. `offered`: tools of
    MCP servers, as `describe` has them: models are offered them again, for they would ask something else without."""
    known = [tool if tool.delegates else _Recorded(tool, recordings) for tool in tools.tools()]
    remote = [_Offered(described) for described in offered if described["name"] not in tools.names]
    gone = {record.tool for record in recordings.records.values()} - {*tools.names, *(tool.name for tool in remote)}
    others = [*remote, *(_Gone(name) for name in sorted(gone))]
    return ToolRegistry([*known, *(_Recorded(tool, recordings) for tool in others)])


class _Gone(Tool):
    description = "A tool that is not there any more."
    arguments: ClassVar[type[ToolArguments]] = _AnyArguments
    risk = Risk.LOW

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    async def run(self, arguments: ToolArguments, context: ToolContext) -> ToolResult:
        raise AssertionError("a tool that is gone was called")


class _Offered(_Gone):
    def __init__(self, described: Mapping[str, Any]) -> None:
        from worker.tools.by_schema import arguments_of  # noqa: PLC0415 - 0.04 s of CPU and 2 MB

        super().__init__(described["name"])
        self.description = described["description"]  # type: ignore[misc]
        self.arguments = arguments_of(described["parameters"])  # type: ignore[misc]
        self.risk = Risk[described["risk"].upper()]  # type: ignore[misc]
        self.repeatable = described["repeatable"]  # type: ignore[misc]


class _Recorded(Tool):
    """Models and people see the tool unchanged."""

    name = description = ""
    arguments = _AnyArguments
    changes_outside = False

    def __init__(self, tool: Tool, recordings: Recordings) -> None:
        for attribute in ("name", "description", "arguments", "repeatable", "read_only", "risk", "package"):
            setattr(self, attribute, getattr(tool, attribute))
        self._recordings = recordings

    def is_repeatable(self, arguments: Mapping[str, Any]) -> bool:
        return True

    async def run(self, arguments: ToolArguments, context: ToolContext) -> ToolResult:
        step_id, recordings = context.call.step_id, self._recordings
        record = recordings.records.get(step_id)
        if record is None or record.status not in (StepStatus.COMPLETED, StepStatus.FAILED):
            return ToolResult(1, error=_not_recorded(step_id, recordings.run_id), effect=Effect.NONE)
        if record.files or record.attributes:
            await context.about_to_change()
            await self._bring(record.files or {}, context)
            await recordings.attribute(record.attributes or {})
        result = record.result or {}
        output = str(result.get("output", ""))
        context.output(output.encode("utf-8", "replace"))
        changed, left_out = tuple(result.get("files_changed", ())), result.get("files_left_out", 0)
        if record.status is StepStatus.COMPLETED:
            exit_code = result.get("exit_code", 0) if "error" not in result else 0
            return ToolResult(exit_code, changed, output=output, files_left_out=left_out)
        error = RunError(**(result.get("error") or {"code": "step_failed", "message": "it failed"}))
        # Another try would have the same result.
        error = RunError(error.code, error.message, step=error.step)
        return ToolResult(result.get("exit_code", 1), changed, error, output, Effect.NONE, left_out)

    async def _bring(self, files: Mapping[str, str | None], context: ToolContext) -> None:
        missing = []
        for path, etag in files.items():
            if etag is None:
                await self._recordings.delete(path)
            elif not await self._recordings.bring(path, etag):
                missing.append(path)
        if missing:
            context.notice(f"{_named(missing)}: what the step had made of it is not kept any more")


def _not_recorded(step_id: str, run_id: str) -> RunError:
    return RunError(
        "not_recorded",
        f"run {run_id} has no result of step {step_id!r}, and a replay carries nothing out by itself; replay it with "
        "`execute` to have all steps carried out again",
    )


def _named(paths: Iterable[str]) -> str:
    first, *more = sorted(paths)
    return f"{first} and {len(more)} more" if more else first
