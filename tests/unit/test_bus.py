"""Events of the bus as values: which are taken, which types fit a pattern, and what a wait asks for."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain import bus
from backplane.domain.bus import (
    EventFilter,
    check_match,
    check_pattern,
    cloud_event,
    is_part,
    matches_type,
    patterns_of,
)
from backplane.errors import InvalidInput, TooLarge

WHOLE = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"data": None},
        {"data": {"a": [1, 2.5, None, "ü"]}},
        {"data": "text"},
        {"data_base64": "AAEC"},
        {"subject": "42", "time": "2026-01-31T09:00:00Z", "datacontenttype": "application/json; charset=utf-8"},
        {"time": "2026-01-31T09:00:00.123456789+02:00"},
        {"dataschema": "https://example.org/schema"},
        {"traceparent": "00-ab", "retries": 3, "urgent": True},
        {"id": "x" * bus.ID_MAX_CHARS},
        {"source": "x" * bus.SOURCE_MAX_CHARS},
        {"subject": "x" * bus.SUBJECT_MAX_CHARS},
        {"type": "x" * bus.TYPE_MAX_CHARS},
        {"type": ".".join("x" * bus.TYPE_MAX_PARTS)},
        {"type": "runs.completed"},
        {"x" * 20: "x" * bus.EXTENSION_MAX_CHARS},
        {"count": 2**31 - 1},
        {f"e{number}": 1 for number in range(bus.EXTENSIONS_MAX)},
    ],
)
def test_an_event_that_is_whole_is_taken(more: dict[str, Any]) -> None:
    event = cloud_event({**WHOLE, **more})
    assert json.loads(event.line) == {**WHOLE, **more}


def test_an_event_is_one_line_for_every_reader() -> None:
    event = cloud_event({**WHOLE, "data": "a\n\r\x0b\x1c\x85\u2028\u2029b"})
    assert len(event.line.splitlines()) == 1
    assert json.loads(event.line)["data"] == "a\n\r\x0b\x1c\x85\u2028\u2029b"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": None}, "specversion"),
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"id": "x" * (bus.ID_MAX_CHARS + 1)}, "id"),
        ({"id": "a\nb"}, "id"),
        ({"id": "\ud800"}, "id"),
        ({"source": None}, "source"),
        ({"source": "/a b"}, "source"),
        ({"source": "x" * (bus.SOURCE_MAX_CHARS + 1)}, "source"),
        ({"subject": ""}, "subject"),
        ({"subject": "x" * (bus.SUBJECT_MAX_CHARS + 1)}, "subject"),
        ({"type": None}, "type"),
        ({"type": "order created"}, "type"),
        ({"type": "order..created"}, "type"),
        ({"type": ".order"}, "type"),
        ({"type": "order.*"}, "type"),
        ({"type": "x" * (bus.TYPE_MAX_CHARS + 1)}, "type"),
        ({"type": ".".join("x" * (bus.TYPE_MAX_PARTS + 1))}, "type"),
        ({"type": "run.completed"}, "type"),
        ({"type": "agent"}, "type"),
        ({"type": "gap"}, "type"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-01-31T09:00:00"}, "time"),
        ({"time": "2026-13-31T09:00:00Z"}, "time"),
        ({"datacontenttype": "json"}, "datacontenttype"),
        ({"dataschema": "no uri"}, "dataschema"),
        ({"data": 1, "data_base64": "AA=="}, "data_base64"),
        ({"data_base64": "ü"}, "data_base64"),
        ({"data_base64": "A"}, "data_base64"),
        ({"data": float("inf")}, "data"),
        ({"data": "\ud800"}, "data"),
        ({"Name": "x"}, "Name"),
        ({"x" * 21: "x"}, "x" * 21),
        ({"ext": {"a": 1}}, "ext"),
        ({"ext": 1.5}, "ext"),
        ({"ext": 2**31}, "ext"),
        ({"ext": "x" * (bus.EXTENSION_MAX_CHARS + 1)}, "ext"),
        ({f"e{number:02}": 1 for number in range(bus.EXTENSIONS_MAX + 1)}, "e00"),
    ],
)
def test_what_is_no_event_is_refused_and_the_message_names_the_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        cloud_event({**WHOLE, **more})
    assert refused.value.field == field
    assert refused.value.message.startswith(f"{field}: ")


def test_all_faults_of_an_event_are_named_with_its_place_in_a_batch() -> None:
    with pytest.raises(InvalidInput) as refused:
        cloud_event({"specversion": "1.0"}, field="events.3")
    assert [fault.field for fault in refused.value.faults] == ["events.3.id", "events.3.source", "events.3.type"]


def test_an_event_may_be_as_large_as_the_limit_and_no_larger() -> None:
    room = bus.EVENT_MAX_BYTES - cloud_event({**WHOLE, "data": ""}).size
    assert cloud_event({**WHOLE, "data": "x" * room}).size == bus.EVENT_MAX_BYTES
    with pytest.raises(TooLarge):
        cloud_event({**WHOLE, "data": "x" * (room + 1)})


def test_events_are_the_same_by_source_and_id() -> None:
    one, other = cloud_event(WHOLE), cloud_event({**WHOLE, "type": "order.paid", "data": 1})
    assert one.digest == other.digest
    assert (
        cloud_event({**WHOLE, "source": "/a", "id": "bc"}).digest
        != cloud_event({**WHOLE, "source": "/ab", "id": "c"}).digest
    )


@pytest.mark.parametrize("type", ["a", "a.b", "a.b.c", "order.created.eu"])
@pytest.mark.parametrize("pattern", ["*", "a", "a.*", "a.b", "a.b.*", "order.*", "ord.*", "order.created"])
def test_the_patterns_of_a_type_are_those_that_it_matches(type: str, pattern: str) -> None:
    assert (pattern in patterns_of(type)) == matches_type(pattern, type)


@pytest.mark.parametrize(
    ("pattern", "type", "fits"),
    [
        ("*", "a", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", True),
        ("a.*", "a", False),
        ("a.*", "ab.c", False),
        ("a.b", "a.b", True),
        ("a.b", "A.B", False),
    ],
)
def test_a_star_stands_for_all_further_parts(pattern: str, type: str, fits: bool) -> None:
    assert matches_type(pattern, type) == fits


@pytest.mark.parametrize("pattern", ["", "**", "*.a", "a.*.b", "a*", "a.", "a b", "x" * 200, "a.*.*"])
def test_a_star_anywhere_but_at_the_end_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput):
        check_pattern(pattern, "type")


def test_a_filter_has_so_many_patterns_and_no_more() -> None:
    names = [f"t{number}" for number in range(bus.NAMED_MAX)]
    assert len(EventFilter.of(names, names, names).types) == bus.NAMED_MAX
    for field, given in {
        "type": ([*names, "more"], (), ()),
        "source": ((), [*names, "more"], ()),
        "subject": ((), (), [*names, "more"]),
    }.items():
        with pytest.raises(InvalidInput) as refused:
            EventFilter.of(*given)
        assert refused.value.field == field


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        ({}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": False}, {"a": 0}, False),
        ({"a": None}, {}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ({"a": {"b": 1}}, {"a": [1]}, False),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ("x", "x", True),
        ({}, "x", False),
    ],
)
def test_an_object_is_part_of_one_that_has_all_its_names(part: Any, whole: Any, expected: bool) -> None:
    assert is_part(part, whole) == expected


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("match", "field"),
    [
        ({"type": "x"}, "match.type"),
        ({"subject": 1}, "match.subject"),
        ({"data": nested(bus.MATCH_MAX_DEPTH)}, "match"),
        ({"data": "x" * bus.MATCH_MAX_BYTES}, "match"),
        (5, "match"),
        ("source", "match"),
        ([["data"]], "match"),
    ],
)
def test_a_match_that_could_never_fit_or_is_too_large_is_refused(match: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_match(match)
    assert refused.value.field == field


def test_a_match_may_be_as_deep_as_the_limit() -> None:
    match = {"data": nested(bus.MATCH_MAX_DEPTH - 1)}
    assert check_match(match) == match
    assert check_match({}) is None


def test_the_event_of_a_run_that_is_removed_has_what_was_noted() -> None:
    event = bus.run_event(bus.RunNotice(7, "r1", "failed", 2, datetime(2026, 1, 31, tzinfo=UTC)), {})
    assert (event.type, event.source, event.id) == ("run.failed", "/agent/runs/r1", "r1-7")


@pytest.mark.parametrize(
    ("pattern", "match", "ends"),
    [
        ("order.paid", None, True),
        ("order.*", None, True),
        ("*", None, True),
        ("order.paid.*", None, False),
        ("orde.*", None, False),
        ("order.paid", {"subject": "42"}, True),
        ("order.paid", {"subject": "43"}, False),
        ("order.paid", {"source": "/shop", "data": {"order": {"id": 42}}}, True),
        ("order.paid", {"source": "/till"}, False),
        ("order.paid", {"data": {"order": {"id": 43}}}, False),
        ("order.paid", {"data": {"order": {"id": 42}, "more": None}}, False),
        ("order.paid", {"data": {"tags": ["a", "b"]}}, True),
        ("order.paid", {"data": {"tags": ["a"]}}, False),
    ],
)
def test_a_wait_ends_by_what_has_all_that_it_names(pattern: str, match: dict[str, Any] | None, ends: bool) -> None:
    data = {"order": {"id": 42, "total": 3.5}, "tags": ["a", "b"]}
    event = cloud_event({**WHOLE, "type": "order.paid", "subject": "42", "data": data})
    wait = bus.EventWait("w", "r", "u", "s1", pattern, match, 0, None)
    assert bus.is_awaited(wait, event) == ends
