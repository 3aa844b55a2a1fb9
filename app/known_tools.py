"""The tools that live workers have published, and what is wrong with a plan by them.

A plan is refused here only for what no live worker could carry out. So where no worker is alive, or Redis is away,
nothing is refused: a worker checks each plan again before its first step. What is known may be some seconds old, so it
is looked up anew before anything is refused.

Tools of MCP servers are not published. Of them only what the operator has written in MCP_SERVERS is known: which
servers there are, and which of their tools may be used.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import structlog

from backplane.errors import Fault, InvalidPlan, Unavailable
from backplane.plans import Plan, Step, parse_plan, valid_steps
from backplane.tool_arguments import reference_faults, unknown_tool
from backplane.tool_catalogue.base import PublishedTool, ToolCatalogue, ToolSet, decoded

log = structlog.get_logger()

LOOKED_UP_SECONDS = 10.0
MOST_CHECKS = 10_000
"""Of single keywords of schemas, for one plan: a tenth of a second at worst, and a plan of 200 steps takes 2,000."""
_STEPS_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
AGENT = "agent"
"""The tool whose argument `tools` names tools."""


@dataclass(frozen=True)
class Known:
    """`sets` are those of live workers, the newest first; none: no worker is alive, or nobody can tell."""

    sets: tuple[ToolSet, ...] = ()
    schemas: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def tools(self) -> dict[str, list[PublishedTool]]:
        """By name, each as different workers have it."""
        found: dict[str, list[PublishedTool]] = {}
        for tool in (tool for tools in self.sets for tool in tools.tools or ()):
            if tool not in (others := found.setdefault(tool.name, [])):
                others.append(tool)
        return found

    @property
    def is_whole(self) -> bool:
        """Whether a tool that is not among them is none."""
        return bool(self.sets) and all(tools.tools is not None for tools in self.sets)

    @property
    def has_model(self) -> bool:
        return any(tools.has_model for tools in self.sets)


class KnownTools:
    """`mcp_servers` as MCP_SERVERS has them; `disabled`: what TOOLS_DISABLED names."""

    def __init__(
        self, catalogue: ToolCatalogue, mcp_servers: Mapping[str, Mapping[str, Any]], disabled: Sequence[str]
    ) -> None:
        self._catalogue = catalogue
        self._mcp_servers = mcp_servers
        self._disabled = frozenset(disabled)
        self._known = Known()
        self._digests: tuple[str, ...] = ()
        self._looked_up = float("-inf")

    async def known(self, *, at_most_seconds_old: float = LOOKED_UP_SECONDS) -> Known:
        """Of no live worker when Redis is away."""
        if time.monotonic() - self._looked_up >= at_most_seconds_old:
            try:
                published = await self._catalogue.published()
                digests = tuple(digest for digest, _ in published)
                if digests != self._digests:
                    self._known, self._digests = Known(tuple(decoded(document) for _, document in published)), digests
            except (Unavailable, ValueError) as error:
                log.warning("the tools of the workers are not known", error=str(error))
                self._known, self._digests = Known(), ()
            self._looked_up = time.monotonic()
        return self._known

    async def parse(self, value: Any, mcp_servers: Sequence[str] | None) -> Plan:
        """A plan that came from outside. Raises InvalidPlan with all that is wrong. `mcp_servers`: those that the run
        names; None: any of them."""
        plan: Plan | None = None
        found: list[Fault] = []
        try:
            plan = parse_plan(value)
        except InvalidPlan as error:
            found += error.faults
        steps = list(enumerate(plan.steps)) if plan is not None else valid_steps(value)
        faults = list(self._faults(steps, mcp_servers, await self.known()))
        if faults:
            faults = list(self._faults(steps, mcp_servers, await self.known(at_most_seconds_old=0)))
        if plan is None or faults:
            raise InvalidPlan.of([*found, *faults])
        return plan

    def _faults(
        self, steps: Sequence[tuple[int, Step]], mcp_servers: Sequence[str] | None, known: Known
    ) -> Iterator[Fault]:
        if not known.is_whole:
            return
        left = MOST_CHECKS
        for number, step in steps:
            where = f"plan.steps.{number}"
            faults: list[Fault] = []
            for tool in known.tools.get(step.tool, ()):
                faults, left = _faults_of_arguments(tool, step, where, known, left)
                if not faults:
                    break
            yield from faults
            if step.tool not in known.tools and (fault := self._of_unknown(step.tool, where, mcp_servers, known)):
                yield fault
            named = step.arguments.get("tools") if step.tool == AGENT else None
            for at, name in enumerate(named if isinstance(named, list) else ()):
                if isinstance(name, str) and name not in known.tools:
                    fault = self._of_unknown(name, f"{where}.arguments.tools.{at}", mcp_servers, known)
                    if fault:
                        yield fault

    def _of_unknown(self, name: str, where: str, mcp_servers: Sequence[str] | None, known: Known) -> Fault | None:
        where = where if where.partition(".arguments.")[2] else f"{where}.tool"
        server, is_of_server, remote = name.partition("__")
        if is_of_server and server in self._mcp_servers:
            allowed = self._mcp_servers[server].get("tools")
            if mcp_servers is not None and server not in mcp_servers:
                return Fault(where, f"{where}: {name!r} is of the MCP server {server!r}: name it in mcp_servers")
            # A name that no step can have is changed by the worker, which alone knows how.
            are_as_given = all(_STEPS_NAME.fullmatch(f"{server}__{one}") for one in allowed or ())
            if allowed is not None and remote not in allowed and are_as_given:
                there_are = ", ".join(f"{server}__{one}" for one in allowed)
                return Fault(where, f"{where}: {name!r} may not be used here (MCP_SERVERS); there are {there_are}")
            return None
        if name in self._disabled:
            return Fault(where, f"{where}: the tool {name!r} may not be used here (TOOLS_DISABLED)")
        return unknown_tool(name, known.tools, where)


def _faults_of_arguments(
    tool: PublishedTool, step: Step, where: str, known: Known, left: int
) -> tuple[list[Fault], int]:
    faults = list(reference_faults(step.arguments, tool.programs.__contains__, f"{where}.arguments"))
    if left > 0:
        # Their library takes 0.13 s to load, and is needed here only.
        schemas, words = import_module("backplane.argument_schemas"), import_module("app.schema_faults")
        schema = known.schemas.get(id(tool))
        if schema is None:
            schema = known.schemas[id(tool)] = schemas.ArgumentsSchema(tool.parameters, of_tool=True)
        found, left = words.argument_faults(tool, schema, step.arguments, f"{where}.arguments", left)
        faults += found
    return faults, left
