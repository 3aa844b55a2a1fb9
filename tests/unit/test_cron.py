"""When a cron expression fires, through days on which clocks are put forward and back."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from backplane.domain.cron import next_time, parse_cron


def times(expression: str, after: str, count: int, zone: str = "UTC") -> list[str]:
    """The next times as ISO texts in the zone, with their offset."""
    cron, place, time = parse_cron(expression), ZoneInfo(zone), datetime.fromisoformat(after).replace(tzinfo=UTC)
    found = []
    for _ in range(count):
        time = next_time(cron, time, place)
        found.append(time.astimezone(place).isoformat(timespec="minutes"))
    return found


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        pytest.param("0 9 * * mon", "2026-11-30T09:00", ["2026-12-07T09:00", "2026-12-14T09:00"], id="a weekday"),
        pytest.param("*/20 8-9 * * *", "2026-01-01T08:50", ["2026-01-01T09:00", "2026-01-01T09:20"], id="steps"),
        pytest.param("5/30 0 * * *", "2026-01-01T00:05", ["2026-01-01T00:35", "2026-01-02T00:05"], id="from and step"),
        pytest.param("0 0 31 * *", "2026-01-31T00:00", ["2026-03-31T00:00", "2026-05-31T00:00"], id="short months"),
        pytest.param("0 0 29 2 *", "2026-01-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"], id="leap day"),
        pytest.param("0 0 29 2 *", "2096-03-01T00:00", ["2104-02-29T00:00"], id="no leap day in 2100"),
        pytest.param("0 0 13 * fri", "2026-11-01T00:00", ["2026-11-06T00:00", "2026-11-13T00:00"], id="either day"),
        pytest.param("0 0 */2 * fri", "2026-11-01T00:00", ["2026-11-13T00:00", "2026-11-27T00:00"], id="both days"),
        pytest.param("0 0 * * 7", "2026-11-30T00:00", ["2026-12-06T00:00"], id="Sunday is 7 too"),
        pytest.param("0 0 * jan,DEC 1-5", "2026-12-31T00:00", ["2027-01-01T00:00"], id="names in any letters"),
        pytest.param("@daily", "2026-12-31T00:00", ["2027-01-01T00:00"], id="a short form"),
    ],
)
def test_an_expression_fires_at_the_times_that_it_names(expression: str, after: str, expected: list[str]) -> None:
    assert times(expression, after, len(expected)) == [f"{time}+00:00" for time in expected]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        pytest.param(
            "30 2 * * *",
            "2026-03-28T02:00",
            ["2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00"],
            id="a skipped time fires an hour later by the clock",
        ),
        pytest.param(
            "30 2 * * *",
            "2026-10-24T12:00",
            ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"],
            id="a time that comes twice fires once",
        ),
        pytest.param(
            "30 * * * *",
            "2026-03-29T00:00",
            ["2026-03-29T01:30+01:00", "2026-03-29T03:30+02:00", "2026-03-29T04:30+02:00"],
            id="each hour, through a skipped one",
        ),
        pytest.param(
            "30 * * * *",
            "2026-10-25T00:00",
            ["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-25T03:30+01:00"],
            id="each hour, through one that comes twice",
        ),
    ],
)
def test_an_expression_fires_rightly_when_clocks_change(expression: str, after: str, expected: list[str]) -> None:
    assert times(expression, after, len(expected), "Europe/Berlin") == expected


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("* * * *", "has five fields"),
        ("60 * * * *", "minute: 60 is no number from 0 to 59"),
        ("* 9-5 * * *", "hour: 9-5 ends before it begins"),
        ("* * 0 * *", "day of the month: 0 is no number from 1 to 31"),
        ("* * * foo *", "month: foo is no number from 1 to 12, or jan to dec"),
        ("* * * * mon-", "day of the week: nothing is no number from 0 to 7, or sun to sat"),
        ("*/0 * * * *", "minute: 0 is no number from 1 to 59"),
        ("*/-1 * * * *", "minute: -1 is no number from 1 to 59"),
        ("\u0664 * * * *", "is no number"),
        ("0 0 31 2 *", "no year has such a day"),
        ("", "this one has 0"),
    ],
)
def test_an_expression_that_is_wrong_is_refused_with_its_field(expression: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_cron(expression)
