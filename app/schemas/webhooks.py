"""What the platform sends to the `webhook_url` of a run or a service: described beside the API's own operations, and
not served by it."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from pydantic import ConfigDict, Field

from app.schemas.outcomes import Described, ErrorView, WebhookEvent
from backplane.domain.decisions import DecisionKind
from backplane.domain.runs import RunStatus
from backplane.domain.services import Report, ServiceStatus

webhooks = APIRouter(tags=["webhooks"])


class WaitingDecision(Described):
    """GET /agent/runs/{run_id}/decisions has it whole."""

    decision_id: str
    kind: DecisionKind
    step: str = Field(description="Empty: the planner asks.")


class WebhookMessage(Described):
    """The state of a run at the moment when it came into it."""

    model_config = ConfigDict(defer_build=False)  # FastAPI asks for it at once

    event: WebhookEvent
    delivery_id: str = Field(description="The same in all attempts, and the same as Webhook-Id.")
    run_id: str
    status: RunStatus
    attempt: int = Field(description="Which try of the run this was, from 1.")
    error: ErrorView | None
    metadata: dict[str, Any] = Field(description="As the run was given it.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    decisions: list[WaitingDecision] | None = Field(None, description="What a waiting run asks a person.")


class ServiceMessage(Described):
    """The state of a service at the moment when it changed, or when it began to flap."""

    model_config = ConfigDict(defer_build=False)  # FastAPI asks for it at once

    event: Report
    delivery_id: str = Field(description="The same in all attempts, and the same as Webhook-Id.")
    service_id: str
    name: str
    status: ServiceStatus
    since: datetime | None
    reason: str = Field(description="What the last failed check said.")
    flapping: bool = Field(description="It goes up and down; nothing is sent until it has settled.")


_SUMMARIES = {
    WebhookEvent.COMPLETED: "A run has been completed",
    WebhookEvent.FAILED: "A run has failed, and is not tried again by itself",
    WebhookEvent.CANCELLED: "A run has been cancelled",
    WebhookEvent.WAITING: "A run waits for a person",
}


_Id = Annotated[str, Header(description="The same in all attempts: whoever has seen it passes over it.")]
_Timestamp = Annotated[int, Header(description="Of this attempt, in seconds since the epoch.")]
_Signature = Annotated[
    str,
    Header(
        description="`v1,` and the HMAC-SHA256 of `{Webhook-Id}.{Webhook-Timestamp}.{body}` in base64, by the "
        "secret of GET /agent/webhook-secret, as Standard Webhooks has it. Several, with spaces between, while a "
        "secret is being replaced."
    ),
]


async def webhook_message(
    message: WebhookMessage, webhook_id: _Id, webhook_timestamp: _Timestamp, webhook_signature: _Signature
) -> None:
    """Sent to the run's `webhook_url`. Check the signature before anything else."""


async def service_message(
    message: ServiceMessage, webhook_id: _Id, webhook_timestamp: _Timestamp, webhook_signature: _Signature
) -> None:
    """Sent to the service's `webhook_url`. Check the signature before anything else."""


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Any status from 200 to 299: it has arrived."},
    410: {"description": "It is not sent again."},
    "default": {"description": "Any other status: it is sent again later. `Retry-After` is respected."},
}

for _event, _summary in _SUMMARIES.items():
    webhooks.add_api_route(
        _event.value,
        webhook_message,
        methods=["POST"],
        operation_id=f"told_{_event.value.replace('.', '_')}",
        summary=_summary,
        responses=_ANSWERS,
        response_class=Response,
    )

_OF_SERVICES = {
    Report.UP: "A service is up",
    Report.DOWN: "A service is down",
    Report.FLAPPING: "A service goes up and down",
}

for _report, _summary in _OF_SERVICES.items():
    webhooks.add_api_route(
        _report.value,
        service_message,
        methods=["POST"],
        operation_id=_report.value.replace(".", "_"),
        summary=_summary,
        responses=_ANSWERS,
        response_class=Response,
    )
