"""A step that is a loop: a model calls tools until it has reached a goal, or a limit.

Each turn is a recorded model call and each tool call a journalled step below this one, so the loop itself keeps
nothing. After a crash it is simply run again: the calls give the answers they gave before, the steps the results they
gave before, and it goes on where there is no answer yet. This works because all it does is a function of those answers:
every count for a limit comes from the records, and none from a clock.

It has no rights of its own. What a tool call may do is decided where every step's is, and what the model is shown of
results is marked as data (`worker.llm.prompts`).
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field

from backplane.domain.budgets import MICRO
from backplane.domain.model_calls import CallKey
from backplane.domain.plans import SubStep
from backplane.domain.runs import RunError
from backplane.domain.secrets import SECRET_REFERENCE
from backplane.errors import InvalidPlan
from worker.llm import prompts
from worker.llm.answer import estimated_input_tokens, size_of
from worker.llm.base import Message, ModelContextTooLong, ModelRequest, ModelResponse, ToolCall, ToolSchema
from worker.llm.untrusted_json import NotJson, parse_object, storable
from worker.tools.arguments import Instruction
from worker.tools.base import Risk, StepReport, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.names import model_names
from worker.tools.registry import describe, validate_arguments

BAD_TURNS = 3
CALLS_A_TURN = 16
WORDS_CHARS = 2_000
TITLE_CHARS = 120
VALUE_CHARS = 40
ID_CHARS = 100
KEPT_CHARS = 200
"""Results up to this length are not dropped when a conversation is too long."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """The most that an agent's step may use, and what it gets where it names nothing. `result_chars`: how much of a
    tool's output the model is shown. `output_tokens`: of one answer. `input_bytes`: of one conversation."""

    turns: int
    tokens: int
    usd: float
    seconds: float
    result_chars: int
    output_tokens: int
    input_bytes: int


class AgentArguments(ToolArguments):
    goal: Instruction = Field(
        min_length=1,
        max_length=100_000,
        description="What is to be reached. Its tools may use the secrets that are named here, as ${secrets.NAME}.",
    )
    inputs: dict[str, str] = Field(
        {}, max_length=50, description="Texts to work on, by name. They are shown as data and never as instructions."
    )
    tools: list[str] | None = Field(
        None, max_length=200, description="Names of tools it may call; all but those of high risk by default."
    )
    max_turns: int | None = Field(None, ge=1, description="Most model calls; the server's limit holds too.")
    max_tokens: int | None = Field(None, ge=1, description="Most model tokens, prompts and answers.")
    max_usd: float | None = Field(None, ge=0, description="Most dollars for model calls.")
    max_seconds: float | None = Field(None, gt=0, description="Most seconds of model calls and tools together.")
    model: str | None = Field(None, max_length=200, description="The model to ask; the run's by default.")
    system: Instruction = Field("", max_length=20_000, description="Further standing instructions.")


class AgentTool(Tool):
    name = "agent"
    description = (
        "Work towards a goal by calling tools, turn by turn, until it is reached; the last answer is the step's output."
    )
    arguments = AgentArguments
    repeatable = True
    delegates = True

    def __init__(self, limits: AgentLimits) -> None:
        self._limits = limits

    def may_cost_usd(self, arguments: AgentArguments) -> float:
        return _within(arguments, self._limits).usd

    async def run(self, arguments: AgentArguments, context: ToolContext) -> ToolResult:
        """Errors: no_model, agent_unknown_tool, agent_turn_limit, agent_token_limit, agent_cost_limit,
        agent_time_limit, agent_bad_calls. Lets ModelError, BudgetExhausted and what suspends a step pass."""
        if context.models is None:
            return _failed("no_model", "an agent's step needs a model: set MODEL or OLLAMA_HOST (docs/models.md)")
        offered = offered_tools(arguments.tools, context)
        unknown = sorted(set(arguments.tools or ()) - set(offered))
        if unknown:
            there_are = ", ".join(sorted(offered_tools(None, context)))
            return _failed(
                "agent_unknown_tool", f"an agent cannot have the tool {unknown[0]!r}; it can have {there_are}"
            )
        limits = _within(arguments, self._limits)
        called = model_names(offered)
        conversation = _AgentTurns(
            arguments, context, {called[name]: tool for name, tool in offered.items()}, called, limits
        )
        try:
            text = await conversation.until_done()
        except _AgentStopped as ended:
            error = RunError(ended.code, str(ended))
            return ToolResult(1, conversation.files_changed(), error, files_left_out=conversation.left_out)
        files = conversation.files_changed()
        return ToolResult(files_changed=files, output=text, files_left_out=conversation.left_out)


def offered_tools(names: Sequence[str] | None, context: ToolContext) -> dict[str, Tool]:
    """The tools by name. Without names: all but those of high risk. The agent's own tool is never among them: sub-steps
    have no sub-steps."""
    tools = list(context.tools.tools()) if context.tools else []
    if names is None:
        return {tool.name: tool for tool in tools if tool.name != AgentTool.name and tool.risk < Risk.HIGH}
    return {tool.name: tool for tool in tools if tool.name in names and tool.name != AgentTool.name}


def _within(arguments: AgentArguments, most: AgentLimits) -> AgentLimits:
    return replace(
        most,
        turns=min(arguments.max_turns or most.turns, most.turns),
        tokens=min(arguments.max_tokens or most.tokens, most.tokens),
        usd=most.usd if arguments.max_usd is None else min(arguments.max_usd, most.usd),
        seconds=min(arguments.max_seconds or most.seconds, most.seconds),
    )


class _CallRefused(Exception):
    """A tool call that is not carried out; the message is for the model."""


class _AgentStopped(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class _Used:
    turns: int = 0
    tokens: int = 0
    micro_usd: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        dollars = self.micro_usd / MICRO
        return f"{self.turns} turns, {self.tokens:,} tokens, ${dollars:,.4f} and {self.seconds:,.1f} s were used"


@dataclass(frozen=True, slots=True)
class _ToolRequest:
    """A tool call that was looked at: `step` when it can be carried out, else `words` for the model."""

    call: ToolCall
    tool: Tool | None = None
    step: SubStep | None = None
    words: str = ""


@dataclass(slots=True)
class _AgentTurns:
    """`offered` by the name that the model knows. `called`: that name by the tool's own, which a model may have read
    somewhere."""

    arguments: AgentArguments
    context: ToolContext
    offered: Mapping[str, Tool]
    called: Mapping[str, str]
    limits: AgentLimits
    used: _Used = field(default_factory=_Used)
    messages: list[Message] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    left_out: int = 0
    """The number of files that results did not name. A file that two steps left out counts twice, for its name is not
    known."""

    def files_changed(self) -> tuple[str, ...]:
        return tuple(sorted(self.changed))

    async def until_done(self) -> str:
        """Take turns until an answer calls no tool, and return its text. Raises _AgentStopped."""
        self.messages = _opening(self.arguments, self.limits.result_chars)
        schemas = [_schema(name, tool) for name, tool in sorted(self.offered.items())]
        bad_turns, words = 0, ""
        while bad_turns < BAD_TURNS:
            response = await self._turn(schemas)
            if response is None:
                continue
            text = storable(response.text)
            if not response.tool_calls and text.strip():
                if response.finish == "length":
                    self.context.notice(f"the last answer was cut off after {response.usage.output_tokens:,} tokens")
                return text
            requests = self._requests(response.tool_calls)
            self.messages.append(Message("assistant", text, tuple(request.call for request in requests)))
            if requests:
                left_out = len(response.tool_calls) - len(requests)
                self.messages += await self._results(requests, left_out)
                words = next((request.words for request in requests if request.step is None), "")
            else:
                words = "Your answer was empty. Call a tool, or answer with text when you are done."
                self.messages[-1] = Message("assistant", "(empty)")
                self.messages.append(Message("user", words))
            bad_turns = 0 if any(request.step for request in requests) else bad_turns + 1
        raise _AgentStopped(
            "agent_bad_calls",
            f"{BAD_TURNS} turns in a row gave nothing that could be carried out; the last was wrong in this: {words} "
            "Name a model that can call tools, or make the goal smaller",
        )

    async def _turn(self, schemas: Sequence[ToolSchema]) -> ModelResponse | None:
        """The model's answer to the conversation so far; None: the conversation was too long, and has been made
        shorter."""
        context, used = self.context, self.used
        assert context.models is not None
        self._shorten(self.limits.input_bytes - _size((), schemas))
        request = ModelRequest(tuple(self.messages), self._output_tokens(schemas), tools=schemas)
        used.turns += 1
        key = CallKey(context.call.step_id, "turn", used.turns, context.round)
        shown = _Shown(context)
        try:
            response = await context.models.ask(request, key, model=self.arguments.model, on_text=shown.piece)
        except ModelContextTooLong:
            # It is not known by how much it is too long: half of what can be dropped is dropped.
            results = _size([message for message in self.messages if message.role == "tool"])
            if not self._shorten(_size(self.messages) - results // 2):
                raise
            return None
        shown.end(response.text)
        used.tokens += response.usage.input_tokens + response.usage.output_tokens
        used.micro_usd += response.micro_usd or 0
        used.seconds += response.seconds
        return response

    def _output_tokens(self, schemas: Sequence[ToolSchema]) -> int:
        """How many tokens the next answer may have within all limits. Raises _AgentStopped when it may have none."""
        limits, used = self.limits, self.used
        if used.turns >= limits.turns:
            raise self._at_limit("agent_turn_limit", f"{limits.turns} turns (max_turns, AGENT_MAX_TURNS)")
        self._check_used()
        prompt = estimated_input_tokens(ModelRequest(self.messages, 1, tools=schemas))
        room = limits.tokens - used.tokens - prompt
        if room < 1:
            raise self._at_limit(
                "agent_token_limit",
                f"{limits.tokens:,} tokens (max_tokens, AGENT_MAX_TOKENS); the next prompt is about {prompt:,}",
            )
        output = min(self.limits.output_tokens, room)
        assert self.context.models is not None
        cost = self.context.models.estimate_micro_usd(prompt, output, self.arguments.model)
        if cost is not None and used.micro_usd + cost > limits.usd * MICRO:
            raise self._at_limit(
                "agent_cost_limit",
                f"${limits.usd:,.4f} (max_usd, AGENT_MAX_USD); the next call may cost ${cost / MICRO:,.4f}",
            )
        return output

    def _check_used(self) -> None:
        limits, used = self.limits, self.used
        if used.tokens >= limits.tokens:
            raise self._at_limit("agent_token_limit", f"{limits.tokens:,} tokens (max_tokens, AGENT_MAX_TOKENS)")
        if used.micro_usd > limits.usd * MICRO:
            raise self._at_limit("agent_cost_limit", f"${limits.usd:,.4f} (max_usd, AGENT_MAX_USD)")
        if used.seconds >= limits.seconds:
            raise self._at_limit("agent_time_limit", f"{limits.seconds:g} s (max_seconds, AGENT_MAX_SECONDS)")

    def _at_limit(self, code: str, limit: str) -> _AgentStopped:
        return _AgentStopped(
            code, f"the agent is at its limit of {limit}: {self.used}. Give it more, or a smaller goal"
        )

    def _requests(self, calls: Sequence[ToolCall]) -> list[_ToolRequest]:
        seen: set[str] = set()
        requests = []
        for number, call in enumerate(calls[:CALLS_A_TURN], start=1):
            is_usable = 0 < len(call.id) <= ID_CHARS and call.id not in seen
            id = storable(call.id) if is_usable else f"call_{self.used.turns}_{number}"
            seen.add(id)
            requests.append(self._request(replace(call, id=id), number))
        return requests

    def _request(self, call: ToolCall, number: int) -> _ToolRequest:
        # A call that cannot be read is not shown again: a server may refuse the whole conversation for it.
        unread = ToolCall(call.id, _NOT_IN_A_NAME.sub("_", call.name)[:64] or "unknown", "{}")
        name = self.called.get(call.name.strip(), call.name.strip())
        tool = self.offered.get(name)
        if tool is None:
            there_are = ", ".join(sorted(self.offered)) or "none"
            return _ToolRequest(unread, words=f"You have no tool {unread.name!r}; you have: {there_are}.")
        try:
            arguments = parse_object(call.arguments)
            validate_arguments(tool, arguments, "arguments")
            _check_secrets(arguments, self.arguments)
        except NotJson as error:
            return _ToolRequest(unread, words=f"The arguments of {tool.name} cannot be read: {error}.")
        except _CallRefused as error:
            return _ToolRequest(unread, words=str(error))
        except InvalidPlan as error:
            words = prompts.head_and_tail(storable(error.message), WORDS_CHARS)
            return _ToolRequest(unread, words=f"{tool.name} does not take these arguments: {words}.")
        context = self.context
        step = SubStep(
            parent=context.call.step_id,
            round=context.round,
            turn=self.used.turns,
            ordinal=number,
            tool=tool.name,
            arguments=arguments,
            title=_title(arguments),
        )
        return _ToolRequest(ToolCall(unread.id, name, json.dumps(arguments)), tool, step)

    async def _results(self, requests: Sequence[_ToolRequest], left_out: int) -> list[Message]:
        """What became of each call, in their order."""
        wanted = [request for request in requests if request.step]
        if len(wanted) > 1 and all(request.tool and request.tool.read_only for request in wanted):
            reports = await self._at_once(requests)
        else:
            reports = []
            for request in requests:
                self._check_used()
                reports.append(self._counted(request, await self._report(request)))
        messages = []
        for request, report in zip(requests, reports, strict=True):
            text = _result(request.step, report, self.limits.result_chars) if request.step and report else request.words
            messages.append(Message("tool", text, tool_call_id=request.call.id))
        if left_out:
            note = f"\n{left_out} more calls were left out: there may be {CALLS_A_TURN} in a turn."
            messages[-1] = replace(messages[-1], content=messages[-1].content + note)
        return messages

    async def _at_once(self, requests: Sequence[_ToolRequest]) -> list[StepReport | None]:
        """Carry the requests out at once. All come to their end before an error that ends or suspends this step is
        raised."""
        self._check_used()
        ended = await asyncio.gather(*(self._report(request) for request in requests), return_exceptions=True)
        reports = []
        # Counted in their order, whichever ended first: a resumed step has to come to the same sums.
        for request, end in zip(requests, ended, strict=True):
            if isinstance(end, BaseException):
                raise end
            reports.append(self._counted(request, end))
        return reports

    async def _report(self, request: _ToolRequest) -> StepReport | None:
        return await self.context.sub_steps.run(request.step) if request.step else None

    def _counted(self, request: _ToolRequest, report: StepReport | None) -> StepReport | None:
        if request.step and report:
            assert self.context.models is not None
            below = self.context.models.spent(request.step.id)
            self.used.tokens += below.input_tokens + below.output_tokens
            self.used.micro_usd += below.micro_usd or 0
            self.used.seconds += report.seconds
            self.changed.update(report.files_changed)
            self.left_out += report.files_left_out
        return report

    def _shorten(self, most_bytes: int) -> bool:
        """Drop the oldest results until the conversation has at most so many bytes. Returns whether any was dropped."""
        shorter, dropped = without_oldest_results(self.messages, most_bytes)
        if dropped:
            self.messages = shorter
            self.context.notice(
                f"the conversation is too long for the model; its {dropped} oldest results are left out"
            )
        return dropped > 0


class _Shown:
    """Shows the model's text to the watchers."""

    def __init__(self, context: ToolContext) -> None:
        self._context = context
        self._last = ""

    def piece(self, text: str) -> None:
        if text:
            self._last = text
            self._context.output(storable(text).encode())

    def end(self, whole: str) -> None:
        if not self._last:
            self.piece(whole)
        if self._last and not self._last.endswith("\n"):
            self._context.output(b"\n")


def without_oldest_results(messages: Sequence[Message], most_bytes: int) -> tuple[list[Message], int]:
    """The messages without the bodies of the oldest results of tools, until they have so many bytes or there is none
    left to drop, and how many were dropped."""
    shorter, size, dropped = list(messages), _size(messages), 0
    for index, message in enumerate(messages):
        if size <= most_bytes:
            break
        if message.role == "tool" and len(message.content) > KEPT_CHARS:
            note = (
                f"[This result of {len(message.content):,} characters is left out to make room. Call again if needed.]"
            )
            shorter[index] = replace(message, content=note)
            size -= len(message.content.encode()) - len(note.encode())
            dropped += 1
    return shorter, dropped


def _opening(arguments: AgentArguments, most_chars: int) -> list[Message]:
    system = prompts.AGENT
    if arguments.system:
        system = f"{system}\n\nFor this step in particular:\n{storable(arguments.system)}"
    parts = [f"Your goal:\n\n{storable(arguments.goal)}"]
    for name, text in sorted(arguments.inputs.items()):
        marked = prompts.data(prompts.head_and_tail(text, most_chars), source=name, place=f"input {name}")
        parts.append(f"To work on:\n{marked}")
    return [Message("system", system), Message("user", "\n\n".join(parts))]


def _title(arguments: Mapping[str, object]) -> str:
    """The title of a call for people: the beginning of each argument."""
    begins = [f"{name}: {' '.join(str(value).split())[:VALUE_CHARS]}" for name, value in arguments.items()]
    return ", ".join(begins)[:TITLE_CHARS]


def _check_secrets(wanted: Mapping[str, object], arguments: AgentArguments) -> None:
    """Only the author of the goal can allow a secret: a text that the agent has read since cannot. Raises
    _CallRefused."""
    named = set(SECRET_REFERENCE.findall(f"{arguments.goal}\n{arguments.system}"))
    others = sorted(set(SECRET_REFERENCE.findall(json.dumps(wanted))) - named)
    if others:
        you_may = ", ".join(sorted(named)) or "none"
        raise _CallRefused(
            f"You may not use the secret {others[0]}: your goal does not name it. You may use: {you_may}."
        )


def _result(step: SubStep, report: StepReport, most_chars: int) -> str:
    """What the model is shown of a step: how it ended in our words, and everything else as data."""
    text = report.output
    if report.error:
        text = f"{report.error.message}\n{text}"
    ended = "succeeded" if report.succeeded else f"failed ({report.error.code if report.error else 'step_failed'})"
    if report.files_changed:
        ended += f" and changed {len(report.files_changed) + report.files_left_out} files"
    if not text.strip():
        return f"The call {ended}, and said nothing."
    return (
        f"The call {ended}.\n{prompts.data(prompts.head_and_tail(text, most_chars), source=step.tool, place=step.id)}"
    )


def _schema(name: str, tool: Tool) -> ToolSchema:
    described = describe(tool)
    return ToolSchema(name, described["description"], described["parameters"])


def _size(messages: Sequence[Message], schemas: Sequence[ToolSchema] = ()) -> int:
    return size_of(ModelRequest(messages, 1, tools=schemas))


def _failed(code: str, message: str) -> ToolResult:
    return ToolResult(1, error=RunError(code, message))
