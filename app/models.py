"""What the API takes and gives: the wire's own models, apart from the values inside.

Requests are strict and refuse unknown fields, so that a misspelt `max_retires` is an error and not silence.
"""

from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from backplane.runs import Run, RunStatus

RunId = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        examples=["01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"],
        description="Id of a run, as `create` gave it.",
    ),
]

EXAMPLE_PROMPT = "# Count words\n\n```sh\necho one two three > words.txt\nwc -w words.txt\n```\n"
EXAMPLE_PLAN = {
    "steps": [
        {"id": "write", "tool": "file_write", "arguments": {"path": "words.txt", "content": "one two three\n"}},
        {"id": "count", "tool": "shell", "arguments": {"script": "wc -w words.txt"}, "needs": ["write"]},
    ]
}


MAX_DEPTH = 64
"""Objects and lists within one another: more than anybody means, less than any JSON library refuses."""


def _storable(value: Any) -> Any:
    """The value, when every database and every JSON reader takes it as it is: what is accepted can be given back."""
    pending = [(value, 0)]
    while pending:
        part, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels; make it flatter")
        if isinstance(part, dict):
            pending += [(inner, depth + 1) for item in part.items() for inner in item]
        elif isinstance(part, list):
            pending += [(inner, depth + 1) for inner in part]
        elif isinstance(part, float) and not isfinite(part):
            raise ValueError("it contains a number that JSON does not have (NaN or infinite); leave it out")
        elif isinstance(part, str):
            if "\0" in part:
                raise ValueError("it contains a NUL character (U+0000); remove it")
            if not part.isascii() and any("\ud800" <= character <= "\udfff" for character in part):
                raise ValueError("it contains a lone surrogate, which is no character; send valid UTF-8")
    return value


Text = Annotated[str, AfterValidator(_storable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NewRun(_Request):
    prompt: Text = Field(min_length=1, description="What the agent is to do.", examples=[EXAMPLE_PROMPT])
    plan: JsonObject | None = Field(
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


class Create(NewRun):
    """Make a run without starting it, so that files can be put into its workspace first."""

    action: Literal["create"]


class CreateAndStart(NewRun):
    """Make a run and put it in the queue at once."""

    action: Literal["run"]


class Start(_Request):
    """Put a created run in the queue. Starting a queued or running one again changes nothing."""

    action: Literal["start"]
    run_id: RunId


class Cancel(_Request):
    """End a run. A queued one ends at once; a running one within a heartbeat, its sandboxes with it."""

    action: Literal["cancel"]
    run_id: RunId


class UncertainStep(StrEnum):
    """What to do with a step of which a crash left unknown whether it happened."""

    REPEAT = "repeat"
    DONE = "done"


class Retry(_Request):
    """Put a failed run in the queue again, or let a waiting one go on. Steps that were completed are not repeated."""

    action: Literal["retry"]
    run_id: RunId
    uncertain_step: UncertainStep = Field(
        UncertainStep.REPEAT, strict=False, description="For a waiting run: repeat the step, or take it as done."
    )


class Status(_Request):
    """Answer the state of a run."""

    action: Literal["status"]
    run_id: RunId


ExecuteRequest = Annotated[
    Create | CreateAndStart | Start | Cancel | Retry | Status,
    Field(discriminator="action"),
]


class ErrorView(BaseModel):
    code: str = Field(examples=["command_failed"])
    message: str
    retryable: bool
    step: str | None = None


class StepView(BaseModel):
    id: str
    title: str
    tool: str
    status: str = Field(
        description="pending, started, completed, failed, skipped or uncertain.", examples=["completed"]
    )
    tries: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: dict[str, Any] | None = Field(
        None, examples=[{"exit_code": 0, "output": "3 words.txt\n", "duration_ms": 12, "files_changed": []}]
    )


class RunSummary(BaseModel):
    run_id: RunId
    status: RunStatus
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int = Field(description="Which try this is, from 1.")
    priority: str = Field(examples=["normal"])
    prompt: str = Field(description="In lists: its first 200 characters.")
    metadata: dict[str, Any]
    error: ErrorView | None

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
        }


class RunView(RunSummary):
    timeout_seconds: int
    max_retries: int
    cancel_requested: bool
    plan: dict[str, Any] | None
    steps: list[StepView]
    position: int | None = Field(None, description="Place in the queue, from 1, while queued.")
    estimated_wait_seconds: float | None = Field(None, description="While queued: about how long until it is taken.")


class ExecuteResponse(BaseModel):
    run_id: RunId
    status: RunStatus
    position: int | None = Field(None, description="Place in the queue, from 1, while queued.")
    estimated_wait_seconds: float | None = None


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
    events: list[EventView]
    next_after: int = Field(description="Give it as `after` for what comes next.")
    ended: bool = Field(description="The run's last event is among these or before them.")


class FileView(BaseModel):
    path: str
    size: int = Field(description="Bytes.")
    modified_at: datetime
    etag: str


class FileList(BaseModel):
    files: list[FileView]


class QueueView(BaseModel):
    queued: int
    running: int = Field(description="Runs that a worker holds.")
    queued_by_priority: dict[str, int] = Field(examples=[{"critical": 0, "high": 0, "normal": 3, "low": 1}])
    scheduled: int = Field(description="Runs that wait for their next attempt.")
    slots: int = Field(description="Runs that the live workers can hold at once.")
    workers: int = Field(description="Live worker processes.")
    estimated_wait_seconds: float = Field(description="For a run of normal priority that is started now.")


class PartHealth(BaseModel):
    ok: bool
    latency_ms: float
    error: str | None = None


class Readiness(BaseModel):
    ok: bool
    parts: dict[str, PartHealth]


class WhoAmI(BaseModel):
    user_id: str
    name: str
    tier: str


class Problem(BaseModel):
    """RFC 9457. `code` is stable; `detail` says what to do."""

    type: str = Field("about:blank")
    title: str
    status: int
    code: str
    detail: str
    field: str | None = Field(None, description="For 422: the dotted path of the value at fault.")
