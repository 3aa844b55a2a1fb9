"""The errors that the API answers, and their codes."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, Field

from app.schemas.described import DescribedAs


class ProblemCode(StrEnum):
    """What went wrong, as a stable word. A newer release may add words."""

    # The platform's own, as `backplane.errors` and its rooms name them.
    AGENT_BUSY = "agent_busy"
    AGENT_TERMINATED = "agent_terminated"
    ASK_CIRCLE = "ask_circle"
    BUDGET_EXHAUSTED = "budget_exhausted"
    CONFLICT = "conflict"
    DEPLOYMENT_AUTOSCALED = "deployment_autoscaled"
    DEPLOYMENT_EXISTS = "deployment_exists"
    DEPLOYMENTS_OFF = "deployments_off"
    FILES_GONE = "files_gone"
    FORBIDDEN = "forbidden"
    FOREIGN_ORIGIN = "foreign_origin"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    INTERNAL_ERROR = "internal_error"
    INVALID_INPUT = "invalid_input"
    INVALID_PATH = "invalid_path"
    INVALID_PLAN = "invalid_plan"
    MAILBOX_FULL = "mailbox_full"
    MODEL_ERROR = "model_error"
    NAMESPACE_TAKEN = "namespace_taken"
    NOT_FOUND = "not_found"
    OUTSIDE_REFUSED = "outside_refused"
    PART_REFUSES = "part_refuses"
    PART_UNAVAILABLE = "part_unavailable"
    PROMPT_NOT_UNDERSTOOD = "prompt_not_understood"
    QUEUE_FULL = "queue_full"
    QUEUE_OF_ANOTHER = "queue_of_another"
    RATE_LIMITED = "rate_limited"
    READ_ONLY = "read_only"
    REFUSED = "refused"
    SECRETS_NOT_KEPT = "secrets_not_kept"
    STORAGE_QUOTA_EXCEEDED = "storage_quota_exceeded"
    SUPERSEDED = "superseded"
    TOO_LARGE = "too_large"
    TOO_MANY_STREAMS = "too_many_streams"
    TOO_MANY_TRANSFERS = "too_many_transfers"
    TOO_MANY_JOBS = "too_many_jobs"
    TOO_MANY_WAITING = "too_many_waiting"
    TRANSITION_NOT_ALLOWED = "transition_not_allowed"
    UNAUTHENTICATED = "unauthenticated"
    WORKSPACE_QUOTA_EXCEEDED = "workspace_quota_exceeded"
    # Of HTTP.
    CLIENT_DISCONNECTED = "client_disconnected"
    DUPLICATE_NAME = "duplicate_name"
    HEAD_TOO_LARGE = "head_too_large"
    HTTP_ERROR = "http_error"
    HTTP_VERSION_NOT_SUPPORTED = "http_version_not_supported"
    MALFORMED_HTTP = "malformed_http"
    MALFORMED_JSON = "malformed_json"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    PATH_TOO_LONG = "path_too_long"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    REQUEST_TIMEOUT = "request_timeout"


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
