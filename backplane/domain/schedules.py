"""Schedules: messages to an agent at times that its user has set.

A schedule fires by a cron expression, every so many seconds, or once. Each time fires once, however many controllers
there are. Of several times that were missed, since no controller ran, one is made up for: a message that comes late is
of use, and a hundred at once are not.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from backplane.domain.cron import next_time, parse_cron
from backplane.errors import InvalidInput

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_SCHEDULES = 100
"""Of a user."""
EVERY_MIN_SECONDS = 60
"""As of cron: an agent that is to do something each second needs a loop of its own, not a message each time."""
EVERY_MAX_SECONDS = 366 * 24 * 3600
CRON_MAX_CHARS = 200


class ScheduleOverlap(StrEnum):
    """What becomes of a time at which the message of the time before is not over."""

    SKIP = "skip"
    QUEUE = "queue"


class ScheduleOutcome(StrEnum):
    """What became of the last time at which a schedule fired."""

    SENT = "sent"
    SKIPPED = "skipped"
    """The message before was not over."""
    AGENT_TERMINATED = "agent_terminated"
    """There is no further time."""
    STORAGE_FULL = "storage_full"
    """The user may not store a run more."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When a schedule fires: one of `cron`, `every_seconds` and `at`. `since`: what `every_seconds` counts from."""

    since: datetime
    cron: str | None = None
    timezone: str = "UTC"
    every_seconds: int | None = None
    at: datetime | None = None

    def next_after(self, time: datetime) -> datetime | None:
        """The first time later than this, in UTC; None where there is none any more."""
        if self.cron is not None:
            return next_time(parse_cron(self.cron), time, ZoneInfo(self.timezone))
        if self.every_seconds is not None:
            past = max(0, int((time - self.since).total_seconds() // self.every_seconds))
            found = self.since + timedelta(seconds=self.every_seconds * (past + 1))
            return found if found > time else found + timedelta(seconds=self.every_seconds)
        return self.at if self.at is not None and self.at > time else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "since": self.since.isoformat(),
            "cron": self.cron,
            "timezone": self.timezone,
            "every_seconds": self.every_seconds,
            "at": self.at.isoformat() if self.at else None,
        }

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "Timing":
        at = kept["at"]
        return cls(
            since=datetime.fromisoformat(kept["since"]),
            cron=kept["cron"],
            timezone=kept["timezone"],
            every_seconds=kept["every_seconds"],
            at=datetime.fromisoformat(at) if at else None,
        )


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """What its user sets. `data`: what the message has beside its text."""

    agent_id: str
    timing: Timing
    text: str
    data: Any = None
    overlap: ScheduleOverlap = ScheduleOverlap.SKIP


@dataclass(frozen=True, slots=True)
class Schedule:
    """`next_at`: None while it is paused, or where no time is left. `last_at`: the last time that fired, with its
    `last_outcome`; `last_run_id`: the last message that it sent. `sent`: how many."""

    id: str
    user_id: str
    name: str
    given: NewSchedule
    created_at: datetime
    updated_at: datetime
    next_at: datetime | None
    paused_at: datetime | None = None
    last_at: datetime | None = None
    last_outcome: ScheduleOutcome | None = None
    last_run_id: str | None = None
    sent: int = 0

    def message_key(self, time: datetime) -> str:
        """The idempotency key of the message of this time. No key of a request can be the same: they have no line
        breaks."""
        return f"schedule\n{self.id}\n{time.astimezone(UTC).isoformat()}"


def check_timing(timing: Timing) -> Timing:
    """Raises InvalidInput, which names the field."""
    given = [name for name in ("cron", "every_seconds", "at") if getattr(timing, name) is not None]
    if len(given) != 1:
        what = " and ".join(given) + " do not go together" if given else "none is there"
        raise InvalidInput(f"give one of cron, every_seconds and at: {what}", field=given[1] if given else "cron")
    try:
        ZoneInfo(timing.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(
            f"timezone: {timing.timezone[:100]!r} is not known here; write a name such as Europe/Berlin, or UTC",
            field="timezone",
        ) from None
    if timing.cron is not None:
        try:
            parse_cron(timing.cron)
        except ValueError as error:
            raise InvalidInput(f"cron: {error}", field="cron") from None
    if timing.at is not None and timing.at <= timing.since:
        raise InvalidInput("at: this time is past; give one to come", field="at")
    return timing
