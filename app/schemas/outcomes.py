"""Results of steps and runs, as the platform keeps and shows them: errors, results, questions and their answers."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from backplane.domain.budgets import Resource, RunBudget


class PriorityName(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"


class WebhookEvent(StrEnum):
    COMPLETED = "run.completed"
    FAILED = "run.failed"
    CANCELLED = "run.cancelled"
    WAITING = "run.waiting"


class ReasonCode(StrEnum):
    """Why a run does not go on, or that it does, as `app.explanation` finds it."""

    NOT_STARTED = "not_started"
    BEING_CANCELLED = "being_cancelled"
    RUNNING = "running"
    OVER = "over"
    WAITS_FOR_PERSON = "waits_for_person"
    WAITS_FOR_RUN = "waits_for_run"
    WAITS_FOR_EVENT = "waits_for_event"
    SLEEPS = "sleeps"
    WAITS_FOR_MODEL_SLOT = "waits_for_model_slot"
    WAITS_FOR_MODEL_TOKENS = "waits_for_model_tokens"
    QUEUE_AWAY = "queue_away"
    NEXT_ATTEMPT = "next_attempt"
    LAST_TRY_ALONE = "last_try_alone"
    NO_WORKER = "no_worker"
    QUEUE_NOT_SERVED = "queue_not_served"
    NO_FREE_SLOT = "no_free_slot"
    RUNS_AHEAD = "runs_ahead"
    NEXT = "next"
    ON_ITS_WAY = "on_its_way"
    LOST_IN_QUEUE = "lost_in_queue"
    USER_CAP = "user_cap"
    TIER_CAP = "tier_cap"
    RESOURCE_CAP = "resource_cap"
    # Of a message in the mailbox of its agent, as `app.agents.explanation` finds it.
    AGENT_BUSY = "agent_busy"
    AGENT_PAUSED = "agent_paused"
    AGENT_TERMINATED = "agent_terminated"
    MESSAGES_AHEAD = "messages_ahead"
    NO_PROCESS = "no_process"
    NUMBER_NOT_SERVED = "number_not_served"
    POOL_FULL = "pool_full"
    PROCESS_STARTS = "process_starts"
    # Of an agent itself; where a turn is open, the turn's own reason comes too.
    TURN_OPEN = "turn_open"
    MESSAGES_WAIT = "messages_wait"
    IDLE = "idle"
    ASLEEP = "asleep"
    LAST_TURN_FAILED = "last_turn_failed"
    RANGES_OVERLAP = "ranges_overlap"
    RANGES_MISSING = "ranges_missing"


class RiskName(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class OriginKind(StrEnum):
    FORK = "fork"
    REPLAY = "replay"
    CHILD = "child"
    AGENT = "agent"


class Described(BaseModel):
    """Built when the description is, since nothing else uses it."""

    model_config = ConfigDict(defer_build=True)


class ErrorView(BaseModel):
    """Why a run or a step failed. The codes are words; tools and plug-ins have codes of their own."""

    code: str = Field(examples=["command_failed"])
    message: str
    retryable: bool = Field(description="The same may succeed later.")
    step: str | None = Field(None, description="Id of the step at fault.")


class StepResult(Described):
    """Of a step whose state is uncertain there may be the error alone."""

    exit_code: int | None = Field(None, description="0 when it succeeded.", examples=[0])
    output: str | None = Field(None, description="What it printed, cut where it is long.", examples=["3 words.txt\n"])
    output_cut: bool | None = Field(None, description="True where the output is cut.")
    value: Any = Field(None, description="Of a handler's effect, what it gave.")
    duration_ms: int | None = None
    files_changed: list[str] | None = Field(None, description="Paths in the workspace.")
    files_left_out: int | None = Field(None, description="How many more changed, where the list is cut.")
    error: ErrorView | None = None
    effect: Literal["answered", "possible", "certain"] | None = Field(
        None, description="What a failed step has done outside, where that is not nothing."
    )
    final: bool | None = Field(None, description="True where no further attempt of the run carries the step out again.")


class RunCost(Described):
    input_tokens: int
    output_tokens: int
    usd: float | None = Field(description="Dollars for model calls; null where a price is not known.")
    model_calls: int
    seconds: float = Field(description="Time of all steps together.")


class RunResult(Described):
    summary: str | None = Field(description="What came of it, in words; null without a model.")
    files: list[str] = Field(description="Paths that the steps changed, by name.")
    files_left_out: int | None = Field(None, description="How many more there are, where the list is cut.")
    cost: RunCost
    value: Any = Field(None, description="What its handler returned.")


class Asked(Described):
    """What a decision is about; its kind says which of these there are."""

    tool: str | None = Field(None, description="approval: the step's tool.")
    arguments: dict[str, Any] | None = Field(None, description="approval: what the tool is to be called with.")
    earlier_arguments: dict[str, Any] | None = Field(None, description="approval: what was approved before.")
    reason: str | None = Field(None, description="approval: why a person is asked.")
    # `schema` is what pydantic calls a method of its own.
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="JSON schema that an answer must fit.")
    question: str | None = Field(None, description="question: what is asked.")
    choices: list[str] | None = Field(None, description="question: the only answers that are taken.")
    resource: Resource | None = Field(None, description="budget: what is used up.")
    account: str | None = Field(None, description="budget: whose budget it is.")
    needed: int | None = Field(None, description="budget: what the next thing costs, in units of the resource.")
    left: int | None = Field(None, description="budget: what there is.")
    message: str | None = Field(None, description="budget: the same in words.")
    by: str | None = Field(None, description="`tool` where the step's tool asks, and not the platform.")
    round: int | None = Field(None, description="Tries of the step that had failed by then.")


class GivenAnswer(Described):
    """What a person answered; the decision's status says which of these there are."""

    arguments: dict[str, Any] | None = Field(None, description="approved: the step was carried out with these.")
    budget: RunBudget | None = Field(None, description="approved: so much was added to the run's budget.")
    reason: str | None = Field(None, description="rejected: why.")
    text: str | None = Field(None, description="answered: the answer.")
