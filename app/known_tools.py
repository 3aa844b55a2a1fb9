"""The tools that live workers have published, and what is wrong with a plan by them.

A plan is refused here only for what no live worker could carry out. So where no worker is alive, one has not published
its tools (it is of an older release, or just starting), or Redis is away, nothing is refused: a worker checks each plan
again before its first step. What is known may be some seconds old, so it is looked up anew before anything is refused.

A small plan that is right is checked on the event loop, for a thread would cost more than it. Any other is checked in a
thread, one at a time: what is wrong with a hostile one takes a tenth of a second, and others are served meanwhile.

Tools of MCP servers are not published. Of them only what the operator has written in MCP_SERVERS is known: which
servers there are, and which of their tools may be used.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import structlog

from backplane.domain.plans import MAX_NAMES, Plan, Step, parse_plan, right_plan, valid_steps
from backplane.domain.sizes import shortened
from backplane.domain.validation_messages import HINTS, near
from backplane.errors import FAULTS_SHOWN, Fault, InvalidInput, InvalidPlan, Unavailable, dotted
from backplane.input.tool_arguments import reference_faults, unknown_tool
from backplane.process.tasks import in_thread
from backplane.tool_catalogue.base import PublishedHandler, PublishedTool, ToolCatalogue, ToolSet, decoded

log = structlog.get_logger()

LOOKED_UP_SECONDS = 10.0
MOST_CHECKS = 3_000
"""Of single keywords of schemas and of names of tools, for one plan: some 30 ms at worst, and a plan of 200 steps takes
2,000."""
_STEPS_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MOST_TOOLS = 200
"""The most tools that a step of an agent may name (`worker.tools.agent`)."""
LARGE_VALUES, LARGE_CHARS, MOST_CHECKS_HERE = 200, 16 * 1024, 200
"""A plan of more values, more characters in them, or more checks, is large."""
FAULT_CHARS = 500
AGENT = "agent"
"""The tool whose argument `tools` names tools."""


@dataclass(frozen=True)
class ToolSets:
    """`sets` are those of live workers, the newest first; none: no worker is alive, or it is not known. `all_publish`:
    there is no live worker that has not published. `schemas` by the tool: a thread has its own, since a schema counts
    its checks, and two users at once would count together."""

    sets: tuple[ToolSet, ...] = ()
    schemas: dict[int, Any] = field(default_factory=dict)
    schemas_in_thread: dict[int, Any] = field(default_factory=dict)
    all_publish: bool = True

    @cached_property
    def tools(self) -> dict[str, list[PublishedTool]]:
        """The tools by their names, each as different workers have it."""
        found: dict[str, list[PublishedTool]] = {}
        for tool in (tool for tools in self.sets for tool in tools.tools or ()):
            if tool not in (others := found.setdefault(tool.name, [])):
                others.append(tool)
        return found

    @cached_property
    def handlers(self) -> dict[str, list[PublishedHandler]]:
        """The handlers by their names, each as different workers have it."""
        found: dict[str, list[PublishedHandler]] = {}
        for handler in (handler for tools in self.sets for handler in tools.handlers):
            if handler not in (others := found.setdefault(handler.name, [])):
                others.append(handler)
        return found

    @cached_property
    def roles(self) -> frozenset[str] | None:
        """The names of all roles of live workers; None where it is not known that these are all."""
        if not self.sets or not self.all_publish or any(tools.roles is None for tools in self.sets):
            return None
        return frozenset(name for tools in self.sets for name in tools.roles or ())

    @property
    def is_whole(self) -> bool:
        """Whether a tool that is not among them is none."""
        return bool(self.sets) and self.all_publish and all(tools.tools is not None for tools in self.sets)

    @property
    def has_model(self) -> bool:
        return any(tools.has_model for tools in self.sets)


@dataclass(slots=True)
class _Checks:
    """How many are left, of single keywords of schemas and of names of tools."""

    left: int


class KnownTools:
    """`worker_ids` gives those of the live workers, and raises Unavailable. `mcp_servers` as MCP_SERVERS has them;
    `disabled`: what TOOLS_DISABLED names."""

    def __init__(
        self,
        catalogue: ToolCatalogue,
        worker_ids: Callable[[], Awaitable[frozenset[str]]],
        mcp_servers: Mapping[str, Mapping[str, Any]],
        disabled: Sequence[str],
    ) -> None:
        self._catalogue = catalogue
        self._worker_ids = worker_ids
        self._mcp_servers = mcp_servers
        self._disabled = frozenset(disabled)
        self._known = ToolSets()
        self._digests: tuple[str, ...] = ()
        self._looked_up = float("-inf")
        self._in_thread = asyncio.Lock()

    async def known(self, *, at_most_seconds_old: float = LOOKED_UP_SECONDS) -> ToolSets:
        """The sets of tools of the live workers; none when Redis is away."""
        if time.monotonic() - self._looked_up >= at_most_seconds_old:
            try:
                # First who lives: a worker may publish meanwhile.
                live = await self._worker_ids()
                published, publishers = await self._catalogue.published(), await self._catalogue.publishers()
                digests = tuple(digest for digest, _ in published)
                if digests != self._digests:
                    self._known, self._digests = (
                        ToolSets(tuple(decoded(document) for _, document in published)),
                        digests,
                    )
                if self._known.all_publish != (live <= publishers):
                    self._known = replace(self._known, all_publish=live <= publishers)
            except (Unavailable, ValueError) as error:
                log.warning("the tools of the workers are not known", error=str(error))
                self._known, self._digests = ToolSets(), ()
            self._looked_up = time.monotonic()
        return self._known

    async def parse(self, value: Any, mcp_servers: Sequence[str] | None) -> Plan:
        """A plan that came from outside. Raises InvalidPlan with all that is wrong. `mcp_servers`: those that the run
        names; None: any of them."""
        if not is_large(value) and (plan := right_plan(value)) is not None:
            checks, known = _Checks(MOST_CHECKS_HERE), await self.known()
            fault = next(self._faults(enumerate(plan.steps), mcp_servers, known, known.schemas, checks), None)
            if fault is None and checks.left > 0:
                return plan
        async with self._in_thread:
            return await self._parse(value, mcp_servers)

    async def check_handler(self, name: str, given: Any) -> None:
        """Raises InvalidInput for a handler that no live worker has, and for an input that none of those takes who have
        it. As with tools, nothing is refused where not all is known; the worker checks again."""
        known = await self.known()
        if name not in known.handlers:
            known = await self.known(at_most_seconds_old=0)
        if not known.is_whole:
            return
        versions = known.handlers.get(name)
        if versions is None:
            there_are = ", ".join(sorted(known.handlers)) or "none"
            message = (
                f"handler: no live worker has a handler {name!r}{near(name, known.handlers)} (there are {there_are})"
            )
            raise InvalidInput(message, field="handler")
        faults = await in_thread(lambda: [_faults_of_input(version, given) for version in versions])
        if all(faults):
            raise InvalidInput.of(faults[0])

    async def why_no_role(self, name: str) -> str | None:
        """Why turns of agents of this role fail as things are: no live worker has it. None: one has it, or it is not
        known."""
        roles = (await self.known()).roles
        if roles is None or name not in roles:
            roles = (await self.known(at_most_seconds_old=0)).roles
        if roles is None or name in roles:
            return None
        there_are = ", ".join(sorted(roles)) or "none"
        return (
            f"no live worker has a role {name!r}{near(name, roles)} (there are {there_are}): turns of these agents "
            "fail with role_unknown until the processes of the pool have it, by ROLES_DIR or by an installed package"
        )

    async def _parse(self, value: Any, mcp_servers: Sequence[str] | None) -> Plan:
        def faults_of(most: int, known: ToolSets) -> list[Fault]:
            faults = self._faults(steps, mcp_servers, known, known.schemas_in_thread, _Checks(MOST_CHECKS))
            return list(islice(faults, most))

        plan, steps, found = await in_thread(_parsed, value)
        # One is enough to look again.
        faults = await in_thread(faults_of, 1, await self.known())
        if faults:
            faults = await in_thread(faults_of, FAULTS_SHOWN + 1, await self.known(at_most_seconds_old=0))
        if plan is None or faults:
            raise InvalidPlan.of([*found, *faults])
        return plan

    def _faults(
        self,
        steps: Iterable[tuple[int, Step]],
        mcp_servers: Sequence[str] | None,
        known: ToolSets,
        schemas: dict[int, Any],
        checks: "_Checks",
    ) -> Iterator[Fault]:
        """With no checks left, nothing more is looked at."""
        if not known.is_whole:
            return
        hints = HINTS
        for number, step in steps:
            where = f"plan.steps.{number}"
            if fault := _of_lengths(step, where, known):
                yield fault
                continue
            faults: list[Fault] = []
            for tool in known.tools.get(step.tool, ()):
                faults = _faults_of_arguments(tool, step, where, schemas, checks)
                if not faults:
                    break
            yield from faults
            for place, name in _tools_of(step):
                if name in known.tools:
                    continue
                checks.left -= 1
                if checks.left < 0:
                    return
                fault = self._of_unknown(name, f"{where}.{place}", mcp_servers, known, with_hint=hints > 0)
                if fault:
                    hints -= 1
                    yield fault

    def _of_unknown(
        self, name: str, where: str, mcp_servers: Sequence[str] | None, known: ToolSets, *, with_hint: bool
    ) -> Fault | None:
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
        return unknown_tool(name, known.tools, where, with_hint=with_hint)


def _parsed(value: Any) -> tuple[Plan | None, list[tuple[int, Step]], Sequence[Fault]]:
    """The plan, or what is wrong with it; and the steps that are right by themselves, with their numbers."""
    try:
        plan = parse_plan(value)
    except InvalidPlan as error:
        return None, valid_steps(value), error.faults
    return plan, list(enumerate(plan.steps)), ()


def is_large(value: Any) -> bool:
    """The number of values in a JSON value; of a large one no more than LARGE_VALUES are looked at."""
    values = chars = 0
    pending = [value]
    while pending:
        one = pending.pop()
        values += 1
        if isinstance(one, str):
            chars += len(one)
        elif isinstance(one, dict):
            if values + len(pending) + len(one) > LARGE_VALUES:
                return True
            chars += sum(map(len, one))
            pending += one.values()
        elif isinstance(one, list):
            if values + len(pending) + len(one) > LARGE_VALUES:
                return True
            pending += one
        if chars > LARGE_CHARS:
            return True
    return False


def _of_lengths(step: Step, where: str, known: ToolSets) -> Fault | None:
    """Before each name is looked at."""
    there_are = known.tools.get(step.tool, ())
    takes_no_others = all(tool.parameters.get("additionalProperties") is False for tool in there_are)
    most = max((len(tool.parameters.get("properties", ())) for tool in there_are), default=0) + MAX_NAMES
    if there_are and takes_no_others and len(step.arguments) > most:
        where = f"{where}.arguments"
        return Fault(where, f"{where}: it has {len(step.arguments):,} names; the tool {step.tool} takes fewer")
    named = step.arguments.get("tools") if step.tool == AGENT else None
    if isinstance(named, list) and len(named) > MOST_TOOLS:
        where = f"{where}.arguments.tools"
        return Fault(where, f"{where}: it has {len(named):,} items; at most {MOST_TOOLS} are possible")
    return None


def _tools_of(step: Step) -> Iterator[tuple[str, str]]:
    """Fields and names of the tools that a step names."""
    yield "tool", step.tool
    named = step.arguments.get("tools") if step.tool == AGENT else None
    for at, name in enumerate(named if isinstance(named, list) else ()):
        if isinstance(name, str):
            yield f"arguments.tools.{at}", name


def _faults_of_arguments(
    tool: PublishedTool, step: Step, where: str, schemas: dict[int, Any], checks: "_Checks"
) -> list[Fault]:
    faults = list(reference_faults(step.arguments, tool.programs.__contains__, f"{where}.arguments"))
    if checks.left > 0:
        from app.schemas.faults import argument_faults  # noqa: PLC0415 - 0.04 s of CPU and 2 MB
        from backplane.input.argument_schemas import ArgumentsSchema  # noqa: PLC0415 - 0 s after the one above

        schema = schemas.get(id(tool))
        if schema is None:
            schema = schemas[id(tool)] = ArgumentsSchema(tool.parameters, of_tool=True)
        found, checks.left = argument_faults(tool, schema, step.arguments, f"{where}.arguments", checks.left)
        faults += found
    return faults


def _faults_of_input(handler: PublishedHandler, given: Any) -> list[Fault]:
    """What a handler does not take, by its JSON schema."""
    from backplane.input.argument_schemas import ArgumentsSchema  # noqa: PLC0415 - 0.04 s of CPU and 2 MB

    found, _ = ArgumentsSchema(handler.input).faults(given, MOST_CHECKS)
    return [
        Fault(where, f"{where}: {shortened(error.message, FAULT_CHARS)} (handler {handler.name!r})")
        for error in found[:FAULTS_SHOWN]
        for where in [dotted("input", error.absolute_path)]
    ]
