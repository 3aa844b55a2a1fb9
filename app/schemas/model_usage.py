"""What models took, as the API says it."""

import re
from datetime import date
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from app.schemas.described import DescribedAs
from app.schemas.fields import Limit, NextNumber
from backplane.domain.budgets import Resource, amount_text
from backplane.domain.model_usage import GROUPS_MAX, ModelTotals, UsageKey

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def _written_out(day: object) -> object:
    """pydantic would take a text of digits as seconds since 1970."""
    if isinstance(day, str) and not _DAY.fullmatch(day):
        raise PydanticCustomError("date_type", "Input should be a day: 2026-11-30")
    return day


Day = Annotated[date, BeforeValidator(_written_out)]


class ModelUsageQuery(BaseModel):
    """All of them but `by` need `by`."""

    by: list[UsageKey] = Field(
        [],
        max_length=len(UsageKey),
        description="What models took, grouped by these, in place of what is stored. It may stand several times.",
        examples=[["model", "day"]],
    )
    first: Day | None = Field(None, alias="from", description="The first day, in UTC.", examples=["2026-11-01"])
    last: Day | None = Field(None, alias="to", description="The last day, in UTC.", examples=["2026-11-30"])
    user: str | None = Field(
        None, max_length=200, description="Only of this user, a name or an id. An administrator sees all without it."
    )
    cursor: int | None = Field(None, ge=1, le=GROUPS_MAX, description="`next_cursor` of the page before.")
    limit: Limit = 50


class ModelTotalsView(BaseModel):
    calls: int = Field(description="Calls that ended, whether or not with an answer.", examples=[42])
    unpriced: int = Field(
        description="Of those, the ones that took something whose price is not known: `usd` is without it.",
        examples=[0],
    )
    input_tokens: int = Field(examples=[81_000])
    output_tokens: int = Field(examples=[9_500])
    usd: str = Field(description="Dollars, exact to the millionth.", examples=["1.2345"])

    @classmethod
    def of(cls, totals: ModelTotals) -> "ModelTotalsView":
        return cls(**fields_of(totals))


class ModelUsageGroupView(ModelTotalsView):
    user_id: str | None = Field(None, description="Where it is grouped by user.")
    user: str | None = Field(None, description="The user's name.", examples=["ada"])
    agent: str | None = Field(
        None, description="Where it is grouped by agent: the name under which it keeps memory.", examples=["default"]
    )
    agent_name: str | None = Field(None, description="Of an agent that lives and is there, its name.", examples=["mia"])
    model: str | None = Field(None, description="Where it is grouped by model.", examples=["openai/gpt-4o-mini"])
    day: date | None = Field(None, description="Where it is grouped by day: the day in UTC.", examples=["2026-11-30"])
    role: str | None = Field(
        None, description="Where it is grouped by role; empty: no agent of a pool asked.", examples=["developer"]
    )
    pool: str | None = Field(
        None, description="Where it is grouped by pool; empty: as above.", examples=["developer_pool"]
    )


class ModelUsageView(BaseModel):
    by: list[Annotated[str, DescribedAs(UsageKey)]] = Field(examples=[["model", "day"]])
    groups: list[ModelUsageGroupView] = Field(description="Days in their order, and the highest cost first.")
    totals: ModelTotalsView = Field(description="Of all groups, also those of other pages.")
    next_cursor: NextNumber


def fields_of(totals: ModelTotals) -> dict[str, int | str]:
    return {
        "calls": totals.calls,
        "unpriced": totals.unpriced,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "usd": amount_text(Resource.MICRO_USD, totals.micro_usd),
    }
