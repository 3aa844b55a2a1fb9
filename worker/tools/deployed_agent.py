"""A step that a deployed agent carries out: an image that the run's user has deployed, called by HTTP.

The address comes from the deployment's row alone, which a controller wrote, so no user can name another one, and
OUTSIDE_HOSTS does not matter. No redirect is followed, no proxy is asked, and no secret is sent: what an agent needs is
in the Secrets that its manifest names. Each line of the answer is shown the moment it comes
(`worker.tools.agent_answer`). When the run is cancelled or the time is over, the connection ends, by which the agent
sees it.

The key of the call is the same at each try. The platform repeats a call that may have happened only where its plan says
so, as the API does for an agent whose manifest says that it knows the key (`idempotent`).
"""

import asyncio
import hashlib
import json
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from pydantic import Field, JsonValue

from backplane import VERSION
from backplane.domain.deployed_call import TIMEOUT_MAX_SECONDS, TOOL
from backplane.domain.deployments import DEPLOYMENT_PATTERN, Deployment, DeploymentStatus, explanation
from backplane.domain.retry import retry_after
from backplane.domain.runs import RunError
from backplane.domain.sizes import readable_size, shortened
from backplane.errors import TooLarge
from backplane.settings.fixed import HANDLER_VALUE_MAX_BYTES
from backplane.store import DeploymentStore
from worker.llm.untrusted_json import NotJson, parse_value
from worker.sandbox.base import Call
from worker.tools.agent_answer import (
    AgentAnswer,
    AgentFailed,
    AnswerBrokenOff,
    AnswerWrong,
    answer_of,
    printable,
    words_of,
)
from worker.tools.base import Effect, Risk, Tool, ToolArguments, ToolContext, ToolResult
from worker.tools.request_progress import RequestProgress

CONNECT_SECONDS = 10.0
REFUSAL_BYTES = 8 * 1024
"""Of a refusal, what is read."""
_MAY_PASS = frozenset((408, 425, 429))
"""Beside 5xx, the statuses after which the same call may succeed later."""


class DeployedAgentArguments(ToolArguments):
    deployment: str = Field(
        pattern=DEPLOYMENT_PATTERN,
        description="The id of a deployment of yours, or the agent_id that only one of them has.",
    )
    input: JsonValue = Field(None, description="What the agent is given.")
    path: str = Field("/run", pattern=r"^/[!$-~]{0,999}$", description="The path that is posted to.")
    timeout_seconds: int | None = Field(
        None, ge=1, le=TIMEOUT_MAX_SECONDS, description="Of the whole answer; the step's own limit when left out."
    )


class DeployedAgent(Tool):
    name = TOOL
    description = (
        "Let a deployed agent of the user work on an input (JSON). Shows its lines as they come, and gives its result."
    )
    arguments = DeployedAgentArguments
    risk = Risk.HIGH
    announces_changes = True

    def __init__(self, deployments: DeploymentStore) -> None:
        self._deployments = deployments

    async def run(self, arguments: DeployedAgentArguments, context: ToolContext) -> ToolResult:
        call = context.call
        content = _content(call, arguments)
        deployment = await self._deployments.named(call.user_id, arguments.deployment)
        urls = deployment.rollout.urls
        if not urls or deployment.status is DeploymentStatus.STOPPED:
            return _not_running(deployment)
        headers = {
            "content-type": "application/json",
            "accept": "application/json, application/x-ndjson, text/event-stream, text/plain",
            "accept-encoding": "identity",
            "user-agent": f"agent-platform/{VERSION}",
            "idempotency-key": call_key(call, deployment.id, arguments),
        }
        await context.about_to_change()
        seconds = arguments.timeout_seconds or context.limits.wall_seconds
        progress = RequestProgress()
        try:
            async with (
                asyncio.timeout(seconds),
                _answered(urls, arguments.path, headers, content, progress) as response,
            ):
                return await _result(response, deployment, progress, context)
        except TimeoutError:
            message = f"{_named(deployment)} had not answered as a whole within {seconds:g} s"
            return _failed("deployment_timeout", message, True, _effect(progress))
        except httpx.HTTPError as error:
            why = shortened(printable(str(error)), 300) or type(error).__name__
            message = f"{_named(deployment)} gave no whole answer: {why}"
            return _failed("deployment_unreachable", message, True, _effect(progress))


def call_key(call: Call, deployment_id: str, arguments: DeployedAgentArguments) -> str:
    """The key of a step's call: a UUID that is the same at each try. With another input (a person has changed it before
    the step was done) it is another call, and has another one."""
    asked = json.dumps([deployment_id, arguments.path, arguments.input], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{call.run_id}/{call.step_id}/{digest}"))


def _content(call: Call, arguments: DeployedAgentArguments) -> bytes:
    """Raises TooLarge."""
    size = len(json.dumps(arguments.input))
    if size > HANDLER_VALUE_MAX_BYTES:
        most = readable_size(HANDLER_VALUE_MAX_BYTES)
        raise TooLarge(f"input: {readable_size(size)} of JSON; at most {most} are sent: give the place of large data")
    body = {"run_id": call.run_id, "step_id": call.step_id, "attempt": call.tries, "input": arguments.input}
    return json.dumps(body).encode()


@asynccontextmanager
async def _answered(
    urls: tuple[str, ...], path: str, headers: dict[str, str], content: bytes, progress: RequestProgress
) -> AsyncIterator[httpx.Response]:
    """The answer of one replica. Where one takes no connection, nothing was sent, and the next is asked."""
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout) as client:
        left = random.sample(urls, len(urls))
        while True:
            request = client.build_request(
                "POST", left.pop() + path, headers=headers, content=content, extensions={"trace": progress.trace}
            )
            try:
                response = await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not left:
                    raise
                continue
            break
        progress.answered(response.status_code)
        try:
            yield response
        finally:
            await response.aclose()


async def _result(
    response: httpx.Response, deployment: Deployment, progress: RequestProgress, context: ToolContext
) -> ToolResult:
    name = _named(deployment)
    if not response.is_success:
        return await _refused(response, name, progress)
    try:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise AnswerWrong("its answer is packed in a way that was not asked for")
        answer = answer_of(response.headers.get("content-type", ""))
        await _read(response, answer, context)
    except AgentFailed as failed:
        return _failed("deployment_failed", f"{name} failed: {failed}", failed.retryable, Effect.ANSWERED)
    except AnswerWrong as wrong:
        return _failed("deployment_answer", f"{name}: {wrong}", False, Effect.ANSWERED)
    except AnswerBrokenOff as broken:
        return _failed("deployment_unreachable", f"{name}: {broken}", True, Effect.POSSIBLE)
    if not answer.has_result:
        return ToolResult()
    result = answer.result
    return ToolResult(output=result if isinstance(result, str) else json.dumps(result), value=result)


async def _read(response: httpx.Response, answer: AgentAnswer, context: ToolContext) -> None:
    # Without a size, a piece is what has come: a line is not kept back until there are more.
    async for piece in response.aiter_raw():
        for shown in answer.feed(piece):
            context.output(shown)
    for shown in answer.end():
        context.output(shown)


async def _refused(response: httpx.Response, name: str, progress: RequestProgress) -> ToolResult:
    status = response.status_code
    if 300 <= status < 400:
        return _failed(
            "deployment_status", f"{name} redirects ({status}), which is not followed", False, progress.effect
        )
    message = f"{name} answered {status}: {words_of(await _words(response))}"
    if 400 <= status < 500 and status not in _MAY_PASS:
        return _failed("deployment_refused", message, False, progress.effect)
    asked = retry_after(response.headers, datetime.now(UTC))
    if asked is not None:
        message += f"; it asks to be asked again in {asked:.0f} s"
    error = RunError("deployment_status", message, True, retry_after=asked)
    return ToolResult(1, error=error, effect=progress.effect)


async def _words(response: httpx.Response) -> Any:
    """The beginning of a refusal: a text, or what JSON it is."""
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) >= REFUSAL_BYTES:
            break
    text = bytes(body[:REFUSAL_BYTES]).decode("utf-8", "replace")
    try:
        return parse_value(text)
    except NotJson:
        return text


def _not_running(deployment: Deployment) -> ToolResult:
    message = f"{_named(deployment)} is {deployment.status.value} and takes no call: {explanation(deployment)}"
    return _failed("deployment_not_running", message, True, Effect.NONE)


def _effect(progress: RequestProgress) -> Effect:
    """Of a call without a whole answer: that it began with 200 does not say how far the agent came."""
    return Effect.POSSIBLE if progress.effect is Effect.CERTAIN else progress.effect


def _named(deployment: Deployment) -> str:
    return f"the deployed agent {deployment.agent_id} ({deployment.namespace})"


def _failed(code: str, message: str, retryable: bool, effect: Effect) -> ToolResult:
    return ToolResult(1, error=RunError(code, message, retryable), effect=effect)
