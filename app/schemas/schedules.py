"""What the API takes and gives of schedules: messages to agents at times that their user has set."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path
from pydantic import AwareDatetime, BaseModel, Field

from app.schemas.fields import ID_PATTERN, JsonValue, RunId, StrictRequest, Text
from backplane.domain.schedules import (
    CRON_MAX_CHARS,
    EVERY_MAX_SECONDS,
    EVERY_MIN_SECONDS,
    NAME_PATTERN,
    NewSchedule,
    Schedule,
    ScheduleOutcome,
    ScheduleOverlap,
    Timing,
    check_timing,
)

_AGENT_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"

ScheduleName = Annotated[
    str, Path(pattern=NAME_PATTERN, examples=["weekly"], description="Small letters, digits, `.`, `_`, `-`.")
]


class ScheduleSetting(StrictRequest):
    """One of `cron`, `every_seconds` and `at` says when."""

    agent_id: str = Field(pattern=ID_PATTERN, description="Who gets the message.", examples=[_AGENT_ID])
    text: Text = Field(min_length=1, description="What the agent is asked.", examples=["Write the weekly report."])
    data: JsonValue = Field(None, description="What programs need beside it; at most 256 KiB.")
    cron: Text | None = Field(
        None,
        max_length=CRON_MAX_CHARS,
        description="Minute, hour, day of the month, month, day of the week.",
        examples=["0 9 * * mon-fri"],
    )
    timezone: Text = Field(
        "UTC", max_length=100, description="Of `cron`: a name of the tz database.", examples=["Europe/Berlin"]
    )
    every_seconds: int | None = Field(
        None, ge=EVERY_MIN_SECONDS, le=EVERY_MAX_SECONDS, description="Counted from now on."
    )
    at: AwareDatetime | None = Field(None, strict=False, description="Once, then.")
    overlap: Annotated[ScheduleOverlap, Field(strict=False)] = Field(
        ScheduleOverlap.SKIP,
        description="Where its message before is not over. skip: leave this time out; queue: send it all the same.",
    )

    def checked(self, now: datetime) -> NewSchedule:
        """Raises InvalidInput."""
        timing = Timing(
            since=now.astimezone(UTC),
            cron=self.cron,
            timezone=self.timezone,
            every_seconds=self.every_seconds,
            at=self.at.astimezone(UTC) if self.at else None,
        )
        return NewSchedule(self.agent_id, check_timing(timing), self.text, self.data, self.overlap)


class ScheduleView(BaseModel):
    name: str = Field(examples=["weekly"])
    agent_id: str = Field(examples=[_AGENT_ID])
    text: str = Field(examples=["Write the weekly report."])
    data: Any = None
    cron: str | None = Field(None, examples=["0 9 * * mon-fri"])
    timezone: str = Field(examples=["Europe/Berlin"])
    every_seconds: int | None = None
    at: datetime | None = None
    overlap: ScheduleOverlap
    next_at: datetime | None = Field(description="When it fires next; null while it is paused or where it is over.")
    last_at: datetime | None = Field(description="The last time that was due.")
    last_outcome: ScheduleOutcome | None = Field(description="What became of that time.")
    last_run_id: RunId | None = Field(description="The last message that it sent.")
    sent: int = Field(description="How many messages it has sent.", examples=[12])
    paused_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, schedule: Schedule) -> "ScheduleView":
        given, timing = schedule.given, schedule.given.timing
        return cls(
            name=schedule.name,
            agent_id=given.agent_id,
            text=given.text,
            data=given.data,
            cron=timing.cron,
            timezone=timing.timezone,
            every_seconds=timing.every_seconds,
            at=timing.at,
            overlap=given.overlap,
            next_at=schedule.next_at,
            last_at=schedule.last_at,
            last_outcome=schedule.last_outcome,
            last_run_id=schedule.last_run_id,
            sent=schedule.sent,
            paused_at=schedule.paused_at,
            created_at=schedule.created_at,
            updated_at=schedule.updated_at,
        )


class ScheduleList(BaseModel):
    schedules: list[ScheduleView] = Field(description="By name.")
