"""What `POST /agent/execute` takes: one request an action."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from app.schemas.described import DescribedAs
from app.schemas.fields import JsonObject, JsonValue, RunId, StrictRequest, Text
from backplane.domain.budgets import RunBudget
from backplane.domain.deployments import DEPLOYMENT_PATTERN
from backplane.domain.plans import MAX_NAMES, Plan
from backplane.domain.runs import AGENT_PATTERN, DEFAULT_QUEUE, HANDLER_PATTERN, QUEUE_PATTERN
from backplane.domain.webhooks import URL_MAX_CHARS, check_url
from backplane.errors import InvalidInput

EXAMPLE_PROMPT = "# Count words\n\n```sh\necho one two three > words.txt\nwc -w words.txt\n```\n"


EXAMPLE_PLAN = {
    "steps": [
        {"id": "write", "tool": "file_write", "arguments": {"path": "words.txt", "content": "one two three\n"}},
        {"id": "count", "tool": "shell", "arguments": {"script": "wc -w words.txt"}, "needs": ["write"]},
    ]
}


HANDLER_PROMPT_CHARS = 100
"""Of the prompt that a run with a handler or a deployment gets in place of one: a name that is too long is refused by
its own field."""

GivenPlan = Annotated[JsonObject, DescribedAs(Plan)]


def _webhook_url(url: str) -> str:
    try:
        check_url(url)
    except InvalidInput as error:
        raise ValueError(error.message.removeprefix("webhook_url: ")) from None
    return url


WebhookUrl = Annotated[Text, AfterValidator(_webhook_url)]


class GivenBudget(RunBudget):
    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_names(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_NAMES:
            raise ValueError(f"it has {len(value):,} names; at most {MAX_NAMES} are possible")
        return value


MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/[!-~]{1,135}$"
"""SERVER/NAME of a model."""


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


def _without_required_prompt(schema: dict[str, Any]) -> None:
    """A run with a handler or a deployed agent needs no prompt."""
    schema["required"] = [name for name in schema.get("required", ()) if name != "prompt"]


class NewRun(StrictRequest):
    model_config = ConfigDict(json_schema_extra=_without_required_prompt)

    prompt: Text = Field(
        min_length=1,
        description="What the agent is to do. Needed where no handler and no deployment is named.",
        examples=[EXAMPLE_PROMPT],
    )
    handler: str | None = Field(
        None,
        pattern=HANDLER_PATTERN,
        description="The function that carries the run out, in place of a plan (GET /agent/handlers lists them).",
        examples=["weekly-report"],
    )
    deployment: str | None = Field(
        None,
        pattern=DEPLOYMENT_PATTERN,
        description="The deployed agent that carries the run out, by its agent_id, or by its id where several have "
        "that. The run has one step of the tool deployed_agent.",
        examples=["report-writer"],
    )
    input: JsonValue = Field(
        None,
        description="What the handler or the deployed agent is given; a handler's schema says how it must look.",
        examples=[{"week": 48}],
    )
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
        description="Gets a signed POST when the run is over, or waits for a person (see /agent/webhook-secret).",
        examples=["https://example.org/hook"],
    )
    resource: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="A named resource that it needs and that only so many runs may use at once (RESOURCE_CONCURRENCY).",
    )
    queue: str = Field(
        DEFAULT_QUEUE,
        pattern=QUEUE_PATTERN,
        description="The queue where it waits; workers serve the queues that they were started with (WORKER_QUEUES).",
        examples=["default"],
    )
    agent: AgentName = "default"
    model: str | None = Field(
        None,
        max_length=200,
        pattern=MODEL_PATTERN,
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

    @model_validator(mode="before")
    @classmethod
    def _is_named_by_what_carries_it_out(cls, values: Any) -> Any:
        if isinstance(values, dict) and "prompt" not in values:
            for kind in ("handler", "deployment"):
                if isinstance(values.get(kind), str):
                    return {**values, "prompt": f"{kind} {values[kind]}"[:HANDLER_PROMPT_CHARS]}
        return values


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
