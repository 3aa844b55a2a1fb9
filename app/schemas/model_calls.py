"""What the API says of the calls of models that a run has made."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.schemas.described import DescribedAs
from app.schemas.fields import NextNumber
from app.schemas.outcomes import ErrorView
from backplane.domain.budgets import MICRO
from backplane.domain.model_calls import CallStatus, RecordedCall


class ModelCallView(BaseModel):
    call_id: str
    step: str = Field(description="Empty for the planner.")
    purpose: str = Field(examples=["plan"])
    number: int = Field(description="Counts the calls of this step and purpose, from 1.")
    status: Annotated[str, DescribedAs(CallStatus)]
    server: str
    model: str
    input_tokens: int
    output_tokens: int
    usd: float | None = Field(description="Dollars; null where the price is not known.")
    started_at: datetime
    finished_at: datetime | None
    error: ErrorView | None

    @classmethod
    def fields_of(cls, call: RecordedCall) -> dict[str, Any]:
        totals = call.totals
        return {
            "call_id": call.id,
            "step": call.key.step_id,
            "purpose": call.key.purpose,
            "number": call.key.number,
            "status": call.status,
            "server": call.server,
            "model": call.model,
            "input_tokens": totals.input_tokens,
            "output_tokens": totals.output_tokens,
            "usd": None if totals.micro_usd is None else totals.micro_usd / MICRO,
            "started_at": call.started_at,
            "finished_at": call.finished_at,
            "error": call.error.as_dict() if call.error else None,
        }


class ModelCallDetails(ModelCallView):
    request: dict[str, Any] | None = Field(description="What the model was asked, as it was sent but for secrets.")
    response: dict[str, Any] | None = Field(description="Null while there is none.")


class ModelCallPage(BaseModel):
    calls: list[ModelCallView]
    next_cursor: NextNumber
