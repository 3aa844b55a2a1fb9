"""When a schedule fires, and what is refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backplane.domain.schedules import Timing, check_timing
from backplane.errors import InvalidInput

SINCE = datetime(2026, 11, 30, 12, 0, 30, tzinfo=UTC)


def after(**seconds: float) -> datetime:
    return SINCE + timedelta(**seconds)


@pytest.mark.parametrize(
    ("timing", "time", "expected"),
    [
        pytest.param({"every_seconds": 90}, after(), after(seconds=90), id="first"),
        pytest.param({"every_seconds": 90}, after(seconds=90), after(seconds=180), id="second"),
        pytest.param({"every_seconds": 90}, after(seconds=1000), after(seconds=1080), id="after missed ones"),
        pytest.param({"every_seconds": 90}, after(seconds=-5), after(seconds=90), id="a clock that was put back"),
        pytest.param({"at": after(hours=1)}, after(), after(hours=1), id="once"),
        pytest.param({"at": after(hours=1)}, after(hours=1), None, id="once, and never again"),
        pytest.param({"cron": "0 * * * *"}, after(), datetime(2026, 11, 30, 13, tzinfo=UTC), id="cron"),
        pytest.param(
            {"cron": "0 9 * * *", "timezone": "Asia/Kolkata"},
            after(),
            datetime(2026, 12, 1, 3, 30, tzinfo=UTC),
            id="cron in a time zone",
        ),
    ],
)
def test_the_next_time_is_later_than_the_one_before(
    timing: dict[str, Any], time: datetime, expected: datetime | None
) -> None:
    made = check_timing(Timing(since=SINCE, **timing))
    assert made.next_after(time) == expected
    assert Timing.of(made.as_dict()) == made


@pytest.mark.parametrize(
    ("timing", "field", "sentence"),
    [
        ({}, "cron", "none is there"),
        ({"cron": "* * * * *", "every_seconds": 60}, "every_seconds", "cron and every_seconds do not go together"),
        ({"cron": "* * * *"}, "cron", "has five fields"),
        ({"cron": "* * * * *", "timezone": "Mars/Olympus"}, "timezone", "write a name such as"),
        ({"cron": "* * * * *", "timezone": "../etc/passwd"}, "timezone", "is not known here"),
        ({"cron": "* * * * *", "timezone": ""}, "timezone", "is not known here"),
        ({"at": after()}, "at", "this time is past"),
    ],
)
def test_what_is_no_time_is_refused_with_its_field(timing: dict[str, Any], field: str, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refused:
        check_timing(Timing(since=SINCE, **timing))
    assert refused.value.field == field
