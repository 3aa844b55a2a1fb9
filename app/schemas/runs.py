"""What the API takes and gives: the wire's own models, apart from the values inside.

Requests are strict and refuse unknown fields, so that a misspelt `max_retires` is an error and not silence.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.schemas.described import DescribedAs
from app.schemas.events import Event
from app.schemas.outcomes import ErrorView, OriginKind, PriorityName, ReasonCode, RunResult, StepResult, WebhookEvent
from app.schemas.problems import ProblemCode
from backplane.domain.budgets import RunBudget
from backplane.domain.dead_letters import DeadReason, Failure
from backplane.domain.plans import MAX_NAMES, Plan
from backplane.domain.runs import AGENT_PATTERN, Run, RunStatus
from backplane.domain.steps import StepStatus
from backplane.domain.webhooks import URL_MAX_CHARS, DeliveryStatus, check_url
from backplane.errors import InvalidInput
from backplane.queue.base import Standing

RunId = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        examples=["01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"],
        description="Id of a run, as `create` gave it.",
    ),
]

Limit = Annotated[int, Query(ge=1, le=200, description="At most so many.")]
"""Entries on a page of a list."""

EXAMPLE_PROMPT = "# Count words\n\n```sh\necho one two three > words.txt\nwc -w words.txt\n```\n"
EXAMPLE_PLAN = {
    "steps": [
        {"id": "write", "tool": "file_write", "arguments": {"path": "words.txt", "content": "one two three\n"}},
        {"id": "count", "tool": "shell", "arguments": {"script": "wc -w words.txt"}, "needs": ["write"]},
    ]
}


MAX_DEPTH = 64
"""Objects and lists within one another: more than anybody means, less than any JSON library refuses."""
MAX_VALUES = 50_000
"""The most keys and values in one JSON value: what is looked through here holds up everybody else meanwhile (some 20
ms)."""


_SURROGATE = re.compile("[\ud800-\udfff]")


def _storable(value: Any) -> Any:
    """The value, when every database and every JSON reader takes it as it is: what is accepted can be given back."""
    # Only lists and objects are kept for later, since there may be many values and all others wait for this.
    pending: list[tuple[Iterable[Any], int]] = [((value,), 0)]
    left = MAX_VALUES
    while pending:
        parts, depth = pending.pop()
        for part in parts:
            if isinstance(part, str):
                _check_text(part)
            elif isinstance(part, dict | list):
                if depth > MAX_DEPTH:
                    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels; make it flatter")
                left -= len(part) * (2 if isinstance(part, dict) else 1)
                if left < 0:
                    raise ValueError(f"it holds more than {MAX_VALUES:,} values; put large data into a file of the run")
                if part:
                    pending.append((part, depth + 1))
                    if isinstance(part, dict):
                        pending.append((part.values(), depth + 1))
            elif isinstance(part, float) and not isfinite(part):
                raise ValueError("it contains a number that JSON does not have (NaN or infinite); leave it out")
    return value


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("it contains a NUL character (U+0000); remove it")
    if not text.isascii() and _SURROGATE.search(text):
        raise ValueError("it contains a lone surrogate, which is no character; send valid UTF-8")


Text = Annotated[str, AfterValidator(_storable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
GivenPlan = Annotated[JsonObject, DescribedAs(Plan)]
PlanView = Annotated[dict[str, Any], DescribedAs(Plan)]


def _webhook_url(url: str) -> str:
    try:
        check_url(url)
    except InvalidInput as error:
        raise ValueError(error.message.removeprefix("webhook_url: ")) from None
    return url


WebhookUrl = Annotated[Text, AfterValidator(_webhook_url)]


class StrictRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GivenBudget(RunBudget):
    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_names(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_NAMES:
            raise ValueError(f"it has {len(value):,} names; at most {MAX_NAMES} are possible")
        return value


class PlannerName(StrEnum):
    RUNBOOK = "runbook"
    MODEL = "model"


AgentName = Annotated[
    str,
    Field(
        pattern=AGENT_PATTERN,
        examples=["researcher"],
        description="The agent's name among its user's: its memory and its artifacts are kept under it.",
    ),
]


class NewRun(StrictRequest):
    prompt: Text = Field(min_length=1, description="What the agent is to do.", examples=[EXAMPLE_PROMPT])
    plan: GivenPlan | None = Field(
        None, description="The steps to carry out, when no planner is to make them.", examples=[EXAMPLE_PLAN]
    )
    metadata: JsonObject = Field(
        default_factory=dict,
        description="Kept with the run and given back; not interpreted.",
        examples=[{"ticket": 42}],
    )
    timeout_seconds: int | None = Field(
        None, ge=1, description="Limit of each attempt; the server's default when left out."
    )
    max_retries: int | None = Field(None, ge=0, description="Further attempts after a failure that may pass.")
    webhook_url: WebhookUrl | None = Field(
        None,
        max_length=URL_MAX_CHARS,
        description="Is told by POST when the run is over, or waits for a person; signed (see /agent/webhook-secret).",
        examples=["https://example.org/hook"],
    )
    resource: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="A named resource that it needs and that only so many runs may use at once (RESOURCE_CONCURRENCY).",
    )
    agent: AgentName = "default"
    model: str | None = Field(
        None,
        max_length=200,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/[!-~]{1,135}$",
        description="SERVER/NAME of the model for its planner and agents; the server's own (MODEL) when left out.",
        examples=["ollama/qwen2.5:7b"],
    )
    planner: PlannerName | None = Field(
        None, strict=False, description="Who makes the plan, when none is given; found by the prompt when left out."
    )
    budget: GivenBudget | None = Field(
        None, description="The most that it may spend; it asks a person when that is used up.", examples=[{"usd": 0.5}]
    )
    mcp_servers: list[Annotated[Text, Field(min_length=1, max_length=64)]] | None = Field(
        None, max_length=10, description="Names of MCP servers (MCP_SERVERS) whose tools its steps may use."
    )


class CreateRun(NewRun):
    """Make a run without starting it, so that files can be put into its workspace first."""

    action: Literal["create"]


class CreateAndStartRun(NewRun):
    """Make a run and put it in the queue at once."""

    action: Literal["run"]


class StartRun(StrictRequest):
    """Put a created run in the queue. Starting a queued or running one again changes nothing."""

    action: Literal["start"]
    run_id: RunId


class CancelRun(StrictRequest):
    """End a run. A queued one ends at once; a running one within a heartbeat, its sandboxes with it."""

    action: Literal["cancel"]
    run_id: RunId


class UncertainStep(StrEnum):
    """What to do with a step that may have happened, or has, and did not end well."""

    REPEAT = "repeat"
    DONE = "done"


class RetryRun(StrictRequest):
    """Put a failed run in the queue again, or let a waiting one go on. Steps that were completed are not repeated."""

    action: Literal["retry"]
    run_id: RunId
    uncertain_step: UncertainStep | None = Field(
        None,
        strict=False,
        description="Of a run with a step that may have happened: repeat the step, or take it as done. It has to be "
        "said where there is one (409).",
    )
    from_step: Text | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Do this step and all that require it again, with the files as they were without them. A completed "
        "run is retried only so. It is done again also where it may have happened; for another step that may have "
        "happened, uncertain_step is needed (409). A step that is done again cannot be taken as done (422).",
    )


class ForkRun(StrictRequest):
    """Make a new run that goes on from where a step of another had ended, with the files as they were then."""

    action: Literal["fork"]
    run_id: RunId
    step: Text | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="The last step that is taken over, with all that had ended by then; null: none.",
        examples=["write"],
    )
    prompt: Text | None = Field(None, min_length=1, description="In place of the run's own.")
    plan: GivenPlan | None = Field(
        None, description="In place of the run's own; the steps that are taken over must be in it as they were."
    )
    start: bool = Field(True, description="Put it in the queue at once.")


class ReplayRun(StrictRequest):
    """Make a new run that goes the way of another by its records: models' answers, decisions, results of steps."""

    action: Literal["replay"]
    run_id: RunId
    execute: bool = Field(False, description="Carry its steps out again instead, requests to the outside too.")


class GetRunStatus(StrictRequest):
    """Answer the state of a run."""

    action: Literal["status"]
    run_id: RunId


class ValidateRun(StrictRequest):
    """Say all that is wrong with a run of these fields (those of `create`), and which steps it would have. Makes no
    run."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"action": "validate", "prompt": "…"}]})

    action: Literal["validate"]


ExecuteRequest = Annotated[
    CreateRun | CreateAndStartRun | ValidateRun | StartRun | CancelRun | RetryRun | ForkRun | ReplayRun | GetRunStatus,
    Field(discriminator="action"),
]


class FailureView(BaseModel):
    """An attempt that failed. `error.step` names the step, whose output is among the run's steps."""

    attempt: int = Field(description="Which try it was, from 1; retrying a failed run begins at 1 again.")
    at: datetime
    error: ErrorView
    worker_id: str | None = Field(None, description="For admins.")
    traceback: str | None = Field(None, description="For admins: of a fault of the platform.")

    @classmethod
    def of(cls, failure: Failure, *, with_traceback: bool) -> "FailureView":
        return cls(
            attempt=failure.attempt,
            at=failure.at,
            error=ErrorView(**failure.error.as_dict()),
            worker_id=failure.worker_id if with_traceback else None,
            traceback=failure.traceback or None if with_traceback else None,
        )


class StepView(BaseModel):
    id: str
    title: str
    tool: str
    status: Annotated[str, DescribedAs(StepStatus)] = Field(examples=["completed"])
    tries: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: Annotated[dict[str, Any], DescribedAs(StepResult)] | None = Field(
        None, examples=[{"exit_code": 0, "output": "3 words.txt\n", "duration_ms": 12, "files_changed": []}]
    )


class RunState(BaseModel):
    run_id: RunId
    status: RunStatus


class QueueStanding(BaseModel):
    """All are null when the run is not queued."""

    position: int | None = Field(None, description="Place in the queue, from 1.")
    estimated_wait_seconds: float | None = Field(
        None, description="Until it is taken: half of such runs wait no longer. Null while no worker is alive."
    )
    estimated_wait_p90_seconds: float | None = Field(
        None, description="Nine of ten such runs wait no longer. Null while no worker is alive."
    )

    @classmethod
    def standing_fields(cls, standing: Standing) -> dict[str, Any]:
        return {
            "position": standing.position,
            "estimated_wait_seconds": round(standing.wait.p50, 1) if standing.wait else None,
            "estimated_wait_p90_seconds": round(standing.wait.p90, 1) if standing.wait else None,
        }


class OriginView(BaseModel):
    """What a run was made from."""

    kind: Annotated[str, DescribedAs(OriginKind)]
    run_id: RunId
    step: str | None = Field(None, description="The last step that was taken over.")
    execute: bool | None = Field(None, description="Of a replay: whether its steps are carried out.")


class RunSummary(RunState):
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int = Field(description="Which try this is, from 1.")
    priority: Annotated[str, DescribedAs(PriorityName)]
    prompt: str = Field(description="In lists: its first 200 characters.")
    metadata: dict[str, Any]
    error: ErrorView | None
    agent: str = Field("default", examples=["default"])
    model: str | None = Field(None, description="As the run names it; null: the server's own.")
    origin: OriginView | None = None
    worker: str | None = Field(None, description="The worker that took it last.")

    @classmethod
    def fields_of(cls, run: Run) -> dict[str, Any]:
        return {
            "run_id": run.id,
            "status": run.status,
            "created_at": run.created_at,
            "queued_at": run.queued_at,
            "started_at": run.started_at,
            "finished_at": run.finished_at,
            "attempt": run.attempt,
            "priority": run.priority.name.lower(),
            "prompt": run.prompt,
            "metadata": run.metadata,
            "error": run.error.as_dict() if run.error else None,
            "agent": run.agent,
            "model": run.model,
            "origin": run.origin,
            "worker": run.worker_id,
        }


class WebhookView(BaseModel):
    """What became of the newest message to the run's webhook."""

    url: str
    event: Annotated[str, DescribedAs(WebhookEvent)] | None = Field(
        None, description="Null while there is nothing to tell."
    )
    status: DeliveryStatus | None = None
    attempts: int = 0
    last_error: str | None = None
    response_code: int | None = None
    next_at: datetime | None = Field(None, description="While pending: when it is sent at the earliest.")


class WebhookSecretView(BaseModel):
    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    previous_signs_until: datetime | None = Field(
        None, description="So long, what is sent carries a signature of the secret before, too."
    )


class RunView(QueueStanding, RunSummary):
    timeout_seconds: int
    max_retries: int
    cancel_requested: bool
    plan: PlanView | None = Field(description="The plan in force; before there is one, the plan that was given.")
    plan_version: int = Field(description="From 1; GET /agent/runs/{run_id}/plans has the earlier ones.")
    steps: list[StepView]
    result: Annotated[dict[str, Any], DescribedAs(RunResult)] | None = Field(
        description="Once it is over: what came of it, in words, and what it took.",
        examples=[
            {
                "summary": "3 words were counted.",
                "files": ["words.txt"],
                "cost": {"input_tokens": 0, "output_tokens": 0, "usd": 0.0, "model_calls": 0, "seconds": 0.01},
            }
        ],
    )
    budget: Annotated[dict[str, Any], DescribedAs(RunBudget)] | None = Field(description="As the run names it.")
    mcp_servers: list[str] = Field(description="As the run names them.")
    failures: list[FailureView] = Field(description="What its failed attempts died of, oldest first.")
    webhook: WebhookView | None = Field(None, description="When the run names a webhook_url.")
    files_expired_at: datetime | None = Field(
        None, description="Since when its files are gone, because it ended too long ago; it is not started any more."
    )


class PlanVersionView(BaseModel):
    version: int
    plan: PlanView
    replaced_at: datetime | None = Field(None, description="Null for the plan in force.")
    reason: str | None = Field(None, description="Why it was replaced.")


class PlanVersions(BaseModel):
    plans: list[PlanVersionView] = Field(description="Oldest first; none before there is a plan.")


class DeadLetterSummary(BaseModel):
    run_id: RunId
    reason: DeadReason
    at: datetime = Field(description="When it was dead-lettered.")
    attempts: int
    crashes: int = Field(description="Workers that were lost while they held it.")
    user_id: str
    user: str = Field(description="Name of its owner.")
    created_at: datetime
    prompt: str = Field(description="Its first 200 characters.")
    error: ErrorView | None


class DeadLetterView(DeadLetterSummary):
    failures: list[FailureView] = Field(description="What its failed attempts died of, oldest first.")


class DeadLetterPage(BaseModel):
    dead_letters: list[DeadLetterSummary]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")


class Redriven(BaseModel):
    redriven: int
    left: int = Field(description="Dead letters that there still are.")


class Purged(BaseModel):
    purged: int


class ExecuteResponse(QueueStanding, RunState):
    planner: str | None = Field(
        None, description="Of a new run, who will make its plan, as far as is known: given, runbook or model."
    )
    planner_note: str | None = Field(None, description="Where there is a choice: how to choose the other planner.")


class RunPage(BaseModel):
    runs: list[RunSummary]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")


class EventView(BaseModel):
    id: int
    run_id: RunId
    type: str = Field(examples=["log"])
    at: datetime
    data: dict[str, Any]


class EventPage(BaseModel):
    events: list[Annotated[EventView, DescribedAs(Event)]]
    next_after: int = Field(description="Give it as `after` for what comes next.")
    ended: bool = Field(description="The run's last event is among these or before them.")


class FileView(BaseModel):
    path: str
    size: int = Field(description="Bytes.")
    modified_at: datetime
    etag: str


class FileList(BaseModel):
    files: list[FileView]
    next_cursor: str | None = Field(
        None, description="Give it as `cursor` for the next page; null on the last one, and where no `limit` was given."
    )


class ReasonView(BaseModel):
    code: Annotated[str, DescribedAs(ReasonCode)] = Field(description="`text` says what it means.")
    text: str = Field(examples=["4 runs are taken before it"])


class Explanation(QueueStanding, RunState):
    """Why a run does not go on, or that it does."""

    text: str = Field(description="All reasons in words.")
    reasons: list[ReasonView] = Field(description="What it waits for, the nearest first.")
    priority: Annotated[str, DescribedAs(PriorityName)]
    waiting_seconds: float | None = Field(description="How long it has waited so far.")
    ahead: int | None = Field(description="Runs that are taken before it, as things stand.")
    cap: int | None = Field(description="Where a cap holds it back: so many runs at once.")
    next_attempt_at: datetime | None
    free_slots: int | None = Field(description="Runs that could be taken now.")
    max_concurrent: int | None = Field(description="Runs that the live workers can hold at once.")
    workers: int | None = Field(description="Live worker processes.")


class PartHealth(BaseModel):
    ok: bool
    latency_ms: float
    error: str | None = None


class Readiness(BaseModel):
    ok: bool
    parts: dict[str, PartHealth]


class FaultView(BaseModel):
    field: str | None = Field(None, examples=["plan.steps.3.arguments.path"])
    detail: str
    line: int | None = Field(None, description="In a text, from 1.")


class Problem(BaseModel):
    """RFC 9457. `code` is stable; `detail` says what to do."""

    type: str = Field("about:blank")
    title: str
    status: int
    code: Annotated[str, DescribedAs(ProblemCode)]
    detail: str
    field: str | None = Field(None, description="For 422: the dotted path of the value at fault.")
    errors: list[FaultView] | None = Field(
        None, description="For 422: all that is wrong, at most 100, where there is more than one fault."
    )
