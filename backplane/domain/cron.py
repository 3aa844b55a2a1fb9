"""Times of a cron expression: five fields, read in a time zone.

Clocks are put forward and back, so a wall time may not exist or exist twice. An hour that is named (`30 2 * * *`) fires
once a day all the same: a time that is skipped fires as if the clock had not been put forward, and one that comes twice
fires the first time. Where the hour is `*` or a step of it, the expression follows the hours as they pass.

It computes and does not wait; whoever fires is in `controller/schedules`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import product
from zoneinfo import ZoneInfo

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
# 29 February comes again after 8 years at most, as in 1896 and 1904.
_LOOK_AHEAD_DAYS = 366 * 8 + 2


@dataclass(frozen=True)
class _Field:
    name: str
    least: int
    most: int
    words: tuple[str, ...] = ()
    first_word: int = 0


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS, 1),
    _Field("day of the week", 0, 7, _WEEKDAYS, 0),
)


@dataclass(frozen=True)
class Cron:
    """A cron expression that was read. Sunday is 0."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    is_any_hour: bool
    is_any_day: bool
    is_any_weekday: bool

    def has(self, day: date) -> bool:
        """Whether it fires on this day. Where both kinds of days are named, one of them is enough, as cron has it."""
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return in_month and in_week if self.is_any_day or self.is_any_weekday else in_month or in_week


def parse_cron(text: str) -> Cron:
    """Read an expression. Raises `ValueError` with a sentence that names the field."""
    words = _SHORT.get(text.strip().lower(), text).split()
    if len(words) != len(_FIELDS):
        names = ", ".join(field.name for field in _FIELDS)
        raise ValueError(f"a cron expression has five fields ({names}), this one has {len(words)}")
    minutes, hours, days, months, weekdays = (_values(word, field) for word, field in zip(words, _FIELDS, strict=True))
    cron = Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=days,
        months=months,
        weekdays=frozenset(weekday % 7 for weekday in weekdays),
        is_any_hour=words[1].startswith("*"),
        is_any_day=words[2].startswith("*"),
        is_any_weekday=words[4].startswith("*"),
    )
    if next(_days(cron, date(2000, 1, 1)), None) is None:
        raise ValueError(f"no year has such a day: {words[2]} of month {words[3]}")
    return cron


def next_time(cron: Cron, after: datetime, zone: ZoneInfo) -> datetime:
    """The first time later than `after`, in UTC. Both are whole: `after` needs an offset."""
    first = after.astimezone(zone).date() - timedelta(days=1)
    for day in _days(cron, first):
        for time in _times(cron, day, zone):
            if time > after:
                return time
    raise AssertionError("a day that every eight years have was not found")


def _days(cron: Cron, first: date) -> Iterator[date]:
    for offset in range(_LOOK_AHEAD_DAYS):
        day = first + timedelta(days=offset)
        if cron.has(day):
            yield day


def _times(cron: Cron, day: date, zone: ZoneInfo) -> list[datetime]:
    times: set[datetime] = set()
    for hour, minute in product(cron.hours, cron.minutes):
        for fold in (0, 1) if cron.is_any_hour else (0,):
            local = datetime(day.year, day.month, day.day, hour, minute, fold=fold, tzinfo=zone)
            time = local.astimezone(UTC)
            is_skipped = time.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None)
            if not (is_skipped and cron.is_any_hour):
                times.add(time)
    return sorted(times)


def _values(text: str, field: _Field) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, has_step, step_text = part.partition("/")
        step = _number(step_text, field, 1, field.most) if has_step else 1
        if span == "*":
            low, high = field.least, field.most
        else:
            low_text, is_range, high_text = span.partition("-")
            low = _value(low_text, field)
            high = _value(high_text, field) if is_range else field.most if has_step else low
            if high < low:
                raise ValueError(f"{field.name}: {span} ends before it begins")
        values.update(range(low, high + 1, step))
    return frozenset(values)


def _value(text: str, field: _Field) -> int:
    if text.lower() in field.words:
        return field.words.index(text.lower()) + field.first_word
    return _number(text, field, field.least, field.most)


def _number(text: str, field: _Field, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        names = f", or {field.words[0]} to {field.words[-1]}" if field.words and least == field.least else ""
        raise ValueError(f"{field.name}: {text or 'nothing'!s} is no number from {least} to {most}{names}")
    return int(text)
