"""An event of a run, and the one encoding that it has everywhere.

The same JSON object is the pub/sub line, the Redis stream entry, the database column, the `data:` of the SSE frame and
the item of the JSON log, so that an event is encoded once, by the process that made it, and only copied afterwards.

Events of a run are numbered from 1 without holes by the worker that has the run. A number is never given twice; where
numbers had to be skipped because history was lost, the next event is a `gap` that says so. Events of LIVE_ONLY have no
number.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple


class EventType(StrEnum):
    """`backplane.domain.event_data` describes the data of each."""

    STATUS = "status"
    POSITION = "position"
    PLAN = "plan"
    STEP = "step"
    DECISION = "decision"
    MODEL = "model"
    PROGRESS = "progress"
    LOG = "log"
    GAP = "gap"
    END = "end"


LIVE_ONLY = frozenset({EventType.POSITION, EventType.PROGRESS})
"""Sent to those who watch at that moment, without a number (its `id` is 0), and kept nowhere."""

NUMBERS_SKIPPED = 1_000
"""How many numbers are left out when events may have been published that were not stored: more than a worker publishes
between two database writes."""

_BEGIN = re.compile(
    r'\{"id":([1-9][0-9]{0,18}),"run_id":"([^"\\\x00-\x1f]+)","type":"([a-z]+)","at":"([0-9T:.+Z-]+)","data":'
)
_TYPES = {type.value: type for type in EventType}
_SURROGATE = re.compile("[\ud800-\udfff]")


class UnknownEventType(ValueError):
    """The line is an event of a newer release."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; its number is 0 where it is live only. `line` is its JSON encoding, without a line break inside. `at`:
    when it was made, as it stands there; empty where the line has none."""

    run_id: str
    id: int
    type: EventType
    line: str
    at: str = ""

    @property
    def made_at(self) -> datetime | None:
        """None where the line has no time, with its zone, that can be read."""
        try:
            moment = datetime.fromisoformat(self.at)
        except ValueError:
            return None
        return moment if moment.tzinfo else None

    @property
    def status(self) -> str | None:
        """The run's state in an event of the type `status`; None for any other event. The line is parsed for it: a run
        has few such events, and they are short."""
        if self.type is not EventType.STATUS:
            return None
        data = json.loads(self.line).get("data")
        status = data.get("status") if isinstance(data, dict) else None
        return status if isinstance(status, str) else None


def encode(run_id: str, number: int, type: EventType, data: Mapping[str, Any], at: datetime | None = None) -> Event:
    """Number and encode an event. `at` is now when left out. Raises TypeError or ValueError for `data` that JSON cannot
    hold. Whatever text is in it, the line can be stored and sent."""
    moment = (at or datetime.now(UTC)).isoformat()
    body = {"id": number, "run_id": run_id, "type": type.value, "at": moment, "data": data}
    line = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        line.encode()  # cheaper than to look for what it would refuse
    except UnicodeEncodeError:
        line = whole_characters(line)
    return Event(run_id, number, type, line, moment)


def whole_characters(text: str) -> str:
    """The text with a sign in place of each half of a character, which no encoding has: neither Redis nor a database
    nor an answer of the API could hold it."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def decode(line: str) -> Event:
    """Read an encoded event back. Raises ValueError when the line is not one, UnknownEventType when its type is not
    known.

    The body of a line that begins as `encode` begins it is not looked at: whoever passes an event on needs its number
    and type only, and to parse the rest would cost more than all else that is done with it.
    """
    begin = _BEGIN.match(line)
    if begin and line.endswith("}}"):
        number, run_id, name, at = begin.groups()
        type = _TYPES.get(name)
        if type is not None:
            return Event(run_id, int(number), type, line, at)
    try:
        body = json.loads(line)
        run_id, number, name = str(body["run_id"]), int(body["id"]), str(body["type"])
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an event: {line[:80]!r}") from error
    if name not in _TYPES:
        raise UnknownEventType(f"an event of an unknown type: {line[:80]!r}")
    at = body.get("at")
    return Event(run_id, number, _TYPES[name], line, at if isinstance(at, str) else "")


class Place(NamedTuple):
    """The place of an event among all events of its user, whatever the run."""

    tx: int
    seq: int


@dataclass(frozen=True, slots=True)
class UserEvents:
    """A user's events by place, and the place up to which no event is missing or will be added."""

    events: list[tuple[Place, Event]]
    until: Place
