"""The effects of a handler that are carried out as tools are: a function, an approval, a call of a model.

They stand beside the tools of the run while its handler is carried out, and only its own effects can use them.
"""

import asyncio
import inspect
import linecache
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import Field

from backplane.domain.decisions import DecisionKind
from backplane.domain.model_calls import CallKey
from backplane.domain.runs import RunError
from backplane.errors import PlatformError
from backplane.process.loop_watchdog import blocks_reported
from backplane.process.tasks import in_own_thread
from worker.handlers.code import file_of, in_words_blocked
from worker.handlers.run import APPROVE, MODEL, STEP, EffectRequest
from worker.handlers.values import NotStorable, as_json
from worker.llm import prompts
from worker.llm.base import Message, ModelRequest
from worker.llm.untrusted_json import find_object, storable
from worker.tools.base import Effect, NeedsPerson, Tool, ToolArguments, ToolContext, ToolResult

NOT_OWN = ("/worker/handlers/", "/worker/roles/", "/asyncio/")
"""Folders whose lines are none of a handler or of somebody's role."""
MODEL_ANSWERS = 3
"""How often a model may answer until its answer fits the schema."""
WORDS_CHARS = 2_000


class FunctionArguments(ToolArguments):
    args: list[Any] = Field(default_factory=list)


class FunctionTool(Tool):
    """Calls a function of the handler. `calls`: by the id of the step, what is to be called."""

    name = STEP
    description = "Call a function of the handler."
    arguments = FunctionArguments
    changes_outside = True

    def __init__(self, requests: Mapping[str, EffectRequest]) -> None:
        self._requests = requests

    async def run(self, arguments: FunctionArguments, context: ToolContext) -> ToolResult:
        """Errors: function_failed, step_timeout, result_not_storable. Lets PlatformError pass."""
        step_id, seconds = context.call.step_id, context.limits.wall_seconds
        request = self._requests[step_id]
        assert request.function is not None
        # A person may have changed the arguments when they approved the step.
        is_as_asked = arguments.args == request.arguments["args"]
        call = partial(request.function, *(request.args if is_as_asked else arguments.args))
        try:
            async with asyncio.timeout(seconds) as limit:
                with blocks_reported(
                    lambda place, seconds: context.notice(in_words_blocked(place, seconds)),
                    file_of(request.function),
                    context.call.run_id,
                ):
                    value = await _called(call)
        except PlatformError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if not limit.expired():
                return ToolResult(1, error=RunError("function_failed", in_words(error)))
            message = f"the function of step {step_id!r} took longer than {seconds:g} s (timeout_seconds)"
            return ToolResult(1, error=RunError("step_timeout", message), effect=Effect.POSSIBLE)
        try:
            return ToolResult(value=as_json(value, f"what the function of step {step_id!r} returned"))
        except NotStorable as error:
            return ToolResult(1, error=RunError("result_not_storable", str(error)), effect=Effect.CERTAIN)


async def _called(call: "partial[Any]") -> Any:
    """A function that is not `async` is called in a thread, so that the loop goes on."""
    function = call.func
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await call()
    value = await in_own_thread(call)
    return await value if inspect.isawaitable(value) else value


def in_words(error: BaseException) -> str:
    """The error, and the last line of the code itself that it passed."""
    message = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(folder in frame.filename for folder in NOT_OWN)]
    if not own:
        return message
    frame = own[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    where = f"{frame.filename.rpartition('/')[2]}, line {frame.lineno}, in {frame.name}"
    return f"{message} ({where}: {line})" if line else f"{message} ({where})"


class ApproveArguments(ToolArguments):
    text: str = Field(min_length=1, max_length=4_000)


class ApproveTool(Tool):
    name = APPROVE
    description = "Ask the person for whom this is done to approve something."
    arguments = ApproveArguments
    repeatable = True

    async def run(self, arguments: ApproveArguments, context: ToolContext) -> ToolResult:
        if context.answer is None:
            raise NeedsPerson(
                DecisionKind.APPROVAL,
                {"tool": APPROVE, "arguments": {"text": arguments.text}, "reason": arguments.text},
            )
        return ToolResult(value=True)


class ModelArguments(ToolArguments):
    prompt: str = Field(min_length=1)
    system: str = ""
    model: str | None = Field(None, max_length=200)
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ModelTool(Tool):
    """`requests`: by the id of the step; a function there checks the answer. `output_tokens`: of one answer."""

    name = MODEL
    description = "Ask a model."
    arguments = ModelArguments
    repeatable = True
    delegates = True

    def __init__(self, requests: Mapping[str, EffectRequest], output_tokens: int) -> None:
        self._requests = requests
        self._output_tokens = output_tokens

    async def run(self, arguments: ModelArguments, context: ToolContext) -> ToolResult:
        """Errors: no_model, model_output_invalid. Lets ModelError and BudgetExhausted pass."""
        if context.models is None:
            message = "a model is needed: set MODEL or OLLAMA_HOST (docs/models.md), or name one for the run"
            return ToolResult(1, error=RunError("no_model", message))
        asked = [Message("user", storable(arguments.prompt))]
        if arguments.system:
            asked.insert(0, Message("system", storable(arguments.system)))
        check = self._requests[context.call.step_id].function
        messages, wrong = asked, ""
        for number in range(1, MODEL_ANSWERS + 1):
            request = ModelRequest(tuple(messages), self._output_tokens, schema=arguments.schema_)
            key = CallKey(context.call.step_id, "turn", number, context.round)
            answer = (await context.models.ask(request, key, model=arguments.model)).text
            if check is None:
                return ToolResult(value=as_json(storable(answer), "the model's answer"))
            try:
                return ToolResult(value=as_json(check(find_object(answer, lambda _: True)), "the model's answer"))
            except (ValueError, NotStorable) as error:
                wrong = prompts.head_and_tail(storable(str(error)), WORDS_CHARS)
            shown = storable(prompts.head_and_tail(answer, WORDS_CHARS)).strip() or "(no answer)"
            messages = [*asked, Message("assistant", shown), Message("user", f"Your answer does not fit: {wrong}")]
        message = f"the model gave nothing that fits the schema, in {MODEL_ANSWERS} answers; the last: {wrong}"
        return ToolResult(1, error=RunError("model_output_invalid", message, retryable=True))
