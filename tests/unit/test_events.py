"""The one encoding of an event."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.domain.events import Event, EventType, decode, encode
from tests.event_data import data_of

BEGUN = '{"id":1,"run_id":"run-1","type":"log","at":"2030-01-02T03:04:05+00:00","data":{"line":"cut he'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.integers(1, 2**31), st.sampled_from(EventType), st.dictionaries(st.text(), JSON, max_size=4))
def test_what_is_encoded_can_be_read_back(number: int, type: EventType, data: dict[str, object]) -> None:
    event = encode("run-1", number, type, data)
    assert decode(event.line) == event
    assert data_of(event) == data


@settings(max_examples=40)
@given(st.integers(1, 2**31), st.sampled_from(EventType), st.dictionaries(st.text(), JSON, max_size=4))
def test_an_event_that_others_encoded_in_another_form_is_read_too(
    number: int, type: EventType, data: dict[str, object]
) -> None:
    line = json.dumps({"type": type, "data": data, "run_id": "run-1", "id": number})
    assert decode(line) == Event("run-1", number, type, line)


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_whatever_a_run_is_called_and_says_it_is_the_same_event(run_id: str, text: str) -> None:
    event = encode(run_id, 7, EventType.LOG, {"line": text})
    assert decode(event.line) == event


@given(st.text())
def test_a_line_has_no_line_break_inside(text: str) -> None:
    line = encode("run-1", 1, EventType.LOG, {"line": text}).line
    assert "\n" not in line
    assert "\r" not in line


def test_the_time_of_an_event_is_the_one_it_was_given() -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert '"at":"2030-01-02T03:04:05+00:00"' in encode("run-1", 1, EventType.LOG, {}, moment).line


@pytest.mark.parametrize(
    ("type", "data", "status"),
    [
        (EventType.STATUS, {"status": "queued", "attempt": 2}, "queued"),
        (EventType.STATUS, {"attempt": 2, "status": "running"}, "running"),
        (EventType.STATUS, {"error": {"message": '"status":"queued"'}, "status": "failed"}, "failed"),
        (EventType.STATUS, {"status": None}, None),
        (EventType.STATUS, {}, None),
        (EventType.LOG, {"line": '{"status":"queued"}', "status": "queued"}, None),
    ],
)
def test_only_an_event_of_the_type_status_has_one_wherever_the_words_stand(
    type: EventType, data: dict[str, object], status: str | None
) -> None:
    event = encode("run-1", 1, type, data)
    assert (event.status, decode(event.line).status) == (status, status)


@pytest.mark.parametrize("as_others_write_it", [False, True])
def test_the_time_of_an_event_is_read_from_its_envelope_and_not_from_its_data(*, as_others_write_it: bool) -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    line = encode("run-1", 1, EventType.LOG, {"at": "1999-01-01T00:00:00+00:00"}, moment).line
    if as_others_write_it:
        body = json.loads(line)
        line = json.dumps({"data": body.pop("data"), **body})
    assert decode(line).made_at == moment


@pytest.mark.parametrize("at", ["", "yesterday", "2030-13-01T00:00:00+00:00", "2030-01-01T00:00:00"])
def test_an_event_without_a_time_that_can_be_read_has_none(at: str) -> None:
    assert decode(json.dumps({"id": 1, "run_id": "r", "type": "log", "at": at, "data": {}})).made_at is None


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "{}", '{"id":1}', '{"run_id":"r","id":1,"type":"unknown"}', "null", BEGUN),
        *("[" * 200_000, '{"a":' * 200_000, '{"run_id":"r","id":1e999,"type":"log"}'),
    ],
)
def test_what_is_no_event_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which of the many ways it is wrong does not matter
        decode(line)
