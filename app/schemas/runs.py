"""What the API answers about runs: models of their own, apart from the domain's values."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.schemas.dead_letters import FailureView
from app.schemas.described import DescribedAs
from app.schemas.events import Event
from app.schemas.fields import NextCursor, RunId
from app.schemas.outcomes import ErrorView, OriginKind, PriorityName, ReasonCode, RunResult, StepResult, WebhookEvent
from backplane.domain.budgets import RunBudget
from backplane.domain.plans import Plan
from backplane.domain.runs import DEFAULT_QUEUE, Run, RunStatus
from backplane.domain.steps import StepStatus
from backplane.domain.webhooks import DeliveryStatus
from backplane.queue.base import Standing

PlanView = Annotated[dict[str, Any], DescribedAs(Plan)]


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
    queue: str = Field(DEFAULT_QUEUE, description="Where it waits for a worker.", examples=["default"])
    handler: str | None = Field(None, description="The function that carries it out, in place of a plan.")
    parent: RunId | None = Field(None, description="The run whose handler has started it.")

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
            "origin": run.origin if run.origin and "run_id" in run.origin else None,
            "worker": run.worker_id,
            "queue": run.queue,
            "handler": run.handler,
            "parent": run.parent_id,
        }


class ListedRunView(RunSummary):
    user: str = Field(description="Whose it is, by name.", examples=["ada"])
    cost_usd: str = Field(description="What its calls of models cost so far.", examples=["0.012"])


class RunCount(BaseModel):
    count: int = Field(description="Up to 10,000.", examples=[42])
    is_more: bool = Field(description="There may be more: 10,000 were counted, or 20,000 looked through.")


class WebhookView(BaseModel):
    """What became of the newest message to the run's webhook."""

    url: str
    event: Annotated[str, DescribedAs(WebhookEvent)] | None = Field(
        None, description="Null while there is nothing to report."
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
    input: Any = Field(None, description="What its handler is given.")
    timeout_seconds: int
    max_retries: int
    cancel_requested: bool
    plan: PlanView | None = Field(description="The plan in force; before there is one, the plan that was given.")
    plan_version: int = Field(description="From 1; GET /agent/runs/{run_id}/plans has the earlier ones.")
    steps: list[StepView]
    steps_left_out: int | None = Field(
        None, description="How many steps come before these, where a handler has more than 1,000."
    )
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


class ExecuteResponse(QueueStanding, RunState):
    planner: str | None = Field(
        None, description="Of a new run, who will make its plan, as far as is known: given, runbook or model."
    )
    planner_note: str | None = Field(None, description="Where there is a choice: how to choose the other planner.")


class RunPage(BaseModel):
    runs: list[ListedRunView]
    next_cursor: NextCursor


class EventView(BaseModel):
    id: int
    run_id: RunId
    type: str = Field(examples=["log"])
    at: datetime
    data: dict[str, Any]


class LogMatch(BaseModel):
    id: int = Field(description="The event's number.")
    at: datetime
    line: str
    step: str | None = Field(None, description="The step that wrote it; null: the platform.")
    level: str | None = Field(None, description="Where the platform says it: info or warning.")
    file: str | None = Field(None, description="The file of the run that has the whole output.")


class LogMatches(BaseModel):
    matches: list[LogMatch]
    next_after: int | None = Field(
        description="Give it as `after` to look on; null: all that there is was looked through.", examples=[5000]
    )


class EventPage(BaseModel):
    events: list[Annotated[EventView, DescribedAs(Event)]]
    next_after: int = Field(description="Give it as `after` for what comes next.")
    ended: bool = Field(description="The run's last event is among these or before them.")


class ReasonView(BaseModel):
    code: Annotated[str, DescribedAs(ReasonCode)] = Field(description="`text` says what it means.")
    text: str = Field(examples=["4 runs are taken before it"])


class Explanation(QueueStanding, RunState):
    """Why a run does not go on, or that it does."""

    text: str = Field(description="All reasons in words.")
    reasons: list[ReasonView] = Field(description="What it waits for, the nearest first.")
    priority: Annotated[str, DescribedAs(PriorityName)]
    queue: str = Field(description="Where it waits for a worker.", examples=["default"])
    waiting_seconds: float | None = Field(description="How long it has waited so far.")
    ahead: int | None = Field(description="Runs of its queue that are taken before it, as things stand.")
    cap: int | None = Field(description="Where a cap holds it back: so many runs at once.")
    next_attempt_at: datetime | None
    free_slots: int | None = Field(description="Runs that could be taken now.")
    max_concurrent: int | None = Field(description="Runs that the live workers that serve its queue can hold at once.")
    workers: int | None = Field(description="Live worker processes that serve its queue.")
