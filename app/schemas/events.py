"""The events of a run, each with its data: items of the JSON log, and the `data` of a stream's frames."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from app.schemas.outcomes import Asked, Described, ErrorView, GivenAnswer, OriginKind, RunResult
from backplane.domain.decisions import DecisionKind, DecisionStatus
from backplane.domain.events import EventType
from backplane.domain.runs import RunStatus


class EventBase(Described):
    id: int = Field(
        ge=0, description="Its number in the run's log, from 1. 0: it is shown to watchers and not kept.", examples=[7]
    )
    run_id: str = Field(examples=["01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"])
    at: datetime


class RunOrigin(Described):
    """What a run was made from."""

    kind: OriginKind
    run_id: str
    step: str | None = Field(None, description="The last step that was taken over.")
    execute: bool | None = Field(None, description="Of a replay: whether its steps are carried out.")


class StatusData(Described):
    status: RunStatus
    attempt: int | None = Field(None, description="Which try this is, from 1.")
    error: ErrorView | None = None
    reason: str | None = Field(None, description="Why it runs, or waits in the queue, again.")
    origin: RunOrigin | None = None


class StatusEvent(EventBase):
    """The run has this state from now on."""

    type: Literal[EventType.STATUS]
    data: StatusData


class PositionData(Described):
    position: int = Field(description="Place in the queue, from 1.")
    estimated_wait_seconds: float | None = Field(description="Half of such runs wait no longer.")
    estimated_wait_p90_seconds: float | None = Field(description="Nine of ten such runs wait no longer.")


class PositionEvent(EventBase):
    """Where a queued run stands. Shown to watchers and not kept."""

    type: Literal[EventType.POSITION]
    data: PositionData


class PlanEventStep(Described):
    id: str
    title: str
    tool: str


class PlanData(Described):
    planner: str = Field(description="Who made it.", examples=["given"])
    version: int = Field(description="From 1; each plan that replaces another has the next number.")
    reason: str | None = Field(None, description="Why it replaces the one before.")
    note: str | None = Field(None, description="Where there was a choice: how to choose the other planner.")
    steps: list[PlanEventStep] = Field(description="In an order in which they can be carried out.")


class PlanEvent(EventBase):
    """The plan that is carried out from now on."""

    type: Literal[EventType.PLAN]
    data: PlanData


class StepEventStatus(StrEnum):
    """`retrying`: a try failed, and another follows. `interrupted`: its run was cancelled, ran out of time or is handed
    back."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    UNCERTAIN = "uncertain"
    RETRYING = "retrying"
    INTERRUPTED = "interrupted"


class StepData(Described):
    step: str = Field(description="Its id.")
    title: str
    tool: str
    status: StepEventStatus
    exit_code: int | None = None
    duration_ms: int | None = None
    files_changed: list[str] | None = None
    files_left_out: int | None = Field(None, description="How many more changed, where the list is cut.")
    error: ErrorView | None = None
    effect: Literal["answered", "possible", "certain"] | None = None
    final: bool | None = None
    pause_seconds: float | None = Field(None, description="Until the next try.")
    reason: str | None = Field(None, description="Why it was interrupted.")


class StepEvent(EventBase):
    """A step begins, or a try of it has ended. The platform publishes what it prints line by line, in `log` events."""

    type: Literal[EventType.STEP]
    data: StepData


class DecisionData(Described):
    decision: str = Field(description="Its id.")
    step: str = Field(description="The step that asks; empty: the planner.")
    kind: DecisionKind
    status: DecisionStatus
    asked: Asked | None = Field(None, description="While it is pending; long texts are cut.")
    answer: GivenAnswer | None = None


class DecisionEvent(EventBase):
    """A person is asked, or has answered."""

    type: Literal[EventType.DECISION]
    data: DecisionData


class ModelCallStatus(StrEnum):
    """`retrying`: a try failed, and another follows. `cancelled`: it was cut off."""

    COMPLETED = "completed"
    FAILED = "failed"
    RETRYING = "retrying"
    CANCELLED = "cancelled"


class ModelFault(Described):
    code: str
    message: str


class ModelData(Described):
    step: str = Field(description="Empty: the planner, or the summary of the run.")
    purpose: str = Field(examples=["plan"])
    number: int = Field(description="Counts the calls of this step and purpose, from 1.")
    model: str = Field(description="SERVER/NAME.", examples=["ollama/qwen2.5:7b"])
    status: ModelCallStatus
    duration_ms: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    usd: float | None = Field(None, description="Dollars; null where the price is not known.")
    error: ModelFault | None = None
    replayed: bool | None = Field(None, description="True where the answer is that of another run's call.")


class ModelEvent(EventBase):
    """A try of a model's call has ended."""

    type: Literal[EventType.MODEL]
    data: ModelData


class ProgressData(Described):
    step: str
    purpose: str
    number: int
    model: str
    output_tokens: int = Field(description="About so many have come.")
    seconds: float = Field(description="Since the call began.")
    text: str | None = Field(None, description="The end of what has come.")
    done: float | None = Field(None, description="Of a handler: how much is done.")
    total: float | None = Field(None, description="Of a handler: of so much.")


class ProgressEvent(EventBase):
    """How far a model's call is. Shown to watchers and not kept."""

    type: Literal[EventType.PROGRESS]
    data: ProgressData


class LogData(Described):
    line: str
    step: str | None = Field(None, description="The step that printed it.")
    level: Literal["info", "warning"] | None = Field(None, description="Of a line that the platform writes itself.")
    dropped_lines: int | None = Field(None, description="So many lines before are not shown.")
    file: str | None = Field(None, description="Where the whole output is, in the workspace.")


class LogEvent(EventBase):
    """A line."""

    type: Literal[EventType.LOG]
    data: LogData


class GapData(Described):
    after: int
    before: int
    reason: str


class GapEvent(EventBase):
    """The events between these two ids are not to be had."""

    type: Literal[EventType.GAP]
    data: GapData


class EndData(Described):
    status: Literal[RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED]
    error: ErrorView | None = None
    result: RunResult | None = None


class EndEvent(EventBase):
    """The run is over. The last event, unless its user retries the run."""

    type: Literal[EventType.END]
    data: EndData


Event = TypeAliasType(
    "Event",
    Annotated[
        StatusEvent
        | PositionEvent
        | PlanEvent
        | StepEvent
        | DecisionEvent
        | ModelEvent
        | ProgressEvent
        | LogEvent
        | GapEvent
        | EndEvent,
        Field(discriminator="type"),
    ],
)
