"""Events of the bus as values: what is taken, how types are matched, and what a wait asks for.

An event is a CloudEvent 1.0 (cloudevents.io): `id`, `source` and `type` are required, `subject`, `time`, `data` and a
few extensions may be there. It belongs to a user. Its place among the user's events (`cursor`) is a number that rises
by one with each event that is stored, so a reader goes on behind the last number that it has seen.

These are not the events of a run (`backplane.domain.events`), which are the run's log.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from backplane.domain.sizes import KIB
from backplane.errors import Fault, InvalidInput, TooLarge

SPEC_VERSION = "1.0"
EVENT_MAX_BYTES = 256 * KIB
"""The largest event as JSON. CloudEvents asks for 64 KiB at least; a push to a repository of many commits has more."""
BATCH_MAX = 100
ID_MAX_CHARS = 255
SOURCE_MAX_CHARS = 512
SUBJECT_MAX_CHARS = 512
TYPE_MAX_CHARS = 128
TYPE_MAX_PARTS = 16
URI_MAX_CHARS = 1024
EXTENSIONS_MAX = 20
EXTENSION_MAX_CHARS = 512
MATCH_MAX_BYTES = 16 * KIB
MATCH_MAX_DEPTH = 32
NAMED_MAX = 10
"""The most patterns of types, sources, and subjects that one filter names."""
PLATFORM_TYPES = frozenset({"run", "agent", "deployment", "service"})
"""The first parts of types that the platform alone publishes, so that nobody can pretend that a run ended."""
GAP_TYPE = "gap"
"""The name of the frame by which a stream says that events are missing, so no event may have this type."""

_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_EXTENSION = re.compile(r"[a-z0-9]{1,20}", re.ASCII)
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(\s*;.*)?", re.ASCII)
_NO_URI = re.compile(r"[\x00-\x20\x7f<>\"{}|\\^`\ud800-\udfff]")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""Characters that JSON may hold as they are, and at which some clients of a stream end a line."""
_KNOWN = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data", "data_base64"}
)
_MATCHED = frozenset({"source", "subject", "data"})


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """`line`: the whole event as JSON without line breaks, as readers get it, and `size` its length in bytes. `digest`:
    what two events have in common that are the same, their source and id. It is made by `cloud_event`."""

    id: str
    source: str
    type: str
    subject: str | None
    line: str
    size: int
    digest: str


def cloud_event(attributes: Mapping[str, Any], *, field: str = "", of_platform: bool = False) -> CloudEvent:
    """The event with these attributes, those of the JSON format of CloudEvents. The data must be JSON that every
    database takes. `field`: the dotted path of the event in what was sent. `of_platform`: types of PLATFORM_TYPES are
    taken. Raises InvalidInput with all faults, and TooLarge."""
    given = {name: value for name, value in attributes.items() if value is not None or name == "data"}
    faults = [
        Fault(f"{field}.{name}".removeprefix("."), f"{f'{field}.{name}'.removeprefix('.')}: {message}")
        for name, message in _faults(given, of_platform=of_platform)
    ]
    if faults:
        raise InvalidInput.of(faults)
    ordered = {"specversion": SPEC_VERSION, **{name: given[name] for name in ("id", "source", "type")}, **given}
    try:
        line = json.dumps(ordered, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_LINE_ENDS)
        size = len(line.encode())
    except ValueError:
        where = f"{field}.data".removeprefix(".")
        message = f"{where}: it holds a number or a character that JSON does not have; send valid JSON in UTF-8"
        raise InvalidInput(message, field=where) from None
    if size > EVENT_MAX_BYTES:
        raise TooLarge(
            f"the event {field} has {size:,} bytes as JSON, and at most {EVENT_MAX_BYTES:,} are taken; put large data "
            "into a file and name it in the event"
        )
    id, source = given["id"], given["source"]
    digest = hashlib.sha256(json.dumps([source, id]).encode()).hexdigest()
    return CloudEvent(id, source, given["type"], given.get("subject"), line, size, digest)


def _faults(given: Mapping[str, Any], *, of_platform: bool) -> Iterable[tuple[str, str]]:
    """By name of the attribute, what is wrong with it."""
    if given.get("specversion") != SPEC_VERSION:
        yield "specversion", 'send "1.0", the version of CloudEvents that is spoken here'
    for name, most in (("id", ID_MAX_CHARS), ("source", SOURCE_MAX_CHARS), ("subject", SUBJECT_MAX_CHARS)):
        if name == "subject" and name not in given:
            continue
        value = given.get(name)
        if not isinstance(value, str) or not value or len(value) > most:
            yield name, f"send a text of 1 to {most} characters"
        elif name == "source" and _NO_URI.search(value):
            yield name, "send a URI or a path, such as /shop/orders, without spaces"
        elif _NO_TEXT.search(value):
            yield name, "it contains a control character, or one that is none; remove it"
    type = given.get("type")
    if not isinstance(type, str) or not is_type(type):
        yield "type", type_rule()
    elif not of_platform and type.split(".")[0] in PLATFORM_TYPES:
        yield (
            "type",
            f"types that begin with {_listed(PLATFORM_TYPES)} are the platform's own; choose another",
        )
    elif type == GAP_TYPE:
        yield "type", f"{GAP_TYPE} is the name of a frame of the stream; choose another one"
    if "time" in given and not _is_time(given["time"]):
        yield "time", "send a time with its offset, such as 2026-01-31T09:00:00Z"
    if "datacontenttype" in given and not _is_text(given["datacontenttype"], EXTENSION_MAX_CHARS, _MEDIA_TYPE):
        yield "datacontenttype", "send a media type, such as application/json"
    if "dataschema" in given:
        schema = given["dataschema"]
        if not _is_text(schema, URI_MAX_CHARS) or _NO_URI.search(schema) or ":" not in schema:
            yield "dataschema", f"send a URI of at most {URI_MAX_CHARS} characters"
    if "data" in given and "data_base64" in given:
        yield "data_base64", "send data or data_base64, not both"
    if "data_base64" in given and not _is_base64(given["data_base64"]):
        yield "data_base64", "send bytes in base64"
    extensions = {name: value for name, value in given.items() if name not in _KNOWN}
    if len(extensions) > EXTENSIONS_MAX:
        yield sorted(extensions)[0][:20], f"at most {EXTENSIONS_MAX} extensions are taken; put more into data"
        return
    for name, value in extensions.items():
        if not _EXTENSION.fullmatch(name):
            yield name, "names of extensions have 1 to 20 letters a to z and digits; put other things into data"
        elif isinstance(value, str):
            if not _is_text(value, EXTENSION_MAX_CHARS):
                yield name, f"send a text of at most {EXTENSION_MAX_CHARS} characters without control characters"
        elif not isinstance(value, bool) and not (isinstance(value, int) and -(2**31) <= value < 2**31):
            yield name, "an extension is a text, true, false, or a whole number of 32 bits; put other things into data"


def _is_text(value: Any, most: int, form: re.Pattern[str] | None = None) -> bool:
    fits = isinstance(value, str) and len(value) <= most and not _NO_TEXT.search(value)
    return fits and (form is None or form.fullmatch(value) is not None)


def _is_time(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 64 or not _TIME.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value.upper())
    except ValueError:
        return False
    return True


def _is_base64(value: Any) -> bool:
    try:
        return isinstance(value, str) and base64.b64decode(value, validate=True) is not None
    except ValueError:
        return False


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{name}." for name in sorted(names))


def is_type(text: str) -> bool:
    parts = text.count(".") + 1
    return len(text) <= TYPE_MAX_CHARS and parts <= TYPE_MAX_PARTS and _TYPE.fullmatch(text) is not None


def type_rule() -> str:
    return (
        f"send a dotted name such as order.created: letters, digits, _ and - in at most {TYPE_MAX_PARTS} parts, "
        f"{TYPE_MAX_CHARS} characters in all"
    )


def check_pattern(pattern: str, field: str) -> str:
    """A type, a type's beginning with `.*` behind it, or `*`. Raises InvalidInput."""
    if pattern == "*" or is_type(pattern.removesuffix(".*")):
        return pattern
    raise InvalidInput(f"{field}: send a type, a beginning of types such as order.*, or *", field=field)


def patterns_of(type: str) -> list[str]:
    """All patterns that this type matches: there are as many as it has parts, and one."""
    parts = type.split(".")
    beginnings = [".".join(parts[:count]) + ".*" for count in range(1, len(parts))]
    return ["*", *beginnings, type]


def matches_type(pattern: str, type: str) -> bool:
    return pattern in ("*", type) or (pattern.endswith(".*") and type.startswith(pattern[:-1]))


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a reader wants: of one of these patterns of types, one of these sources, and one of these subjects;
    of any, where none is named."""

    types: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()

    @classmethod
    def of(cls, types: Sequence[str], sources: Sequence[str] = (), subjects: Sequence[str] = ()) -> "EventFilter":
        """Raises InvalidInput."""
        for field, names in {"type": types, "source": sources, "subject": subjects}.items():
            if len(names) > NAMED_MAX:
                raise InvalidInput(f"{field}: at most {NAMED_MAX}; read without a filter instead", field=field)
        patterns = {check_pattern(pattern, "type") for pattern in types}
        return cls(*(tuple(sorted(names)) for names in (patterns, set(sources), set(subjects))))


@dataclass(frozen=True, slots=True)
class BusRoom:
    """What a user may have stored, before events that the user posts are refused; 0: any number."""

    events: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """`cursor`: its place among the events of its user."""

    cursor: int
    type: str
    line: str


@dataclass(frozen=True, slots=True)
class Published:
    """What became of an event that was posted. `is_new`: it was stored now; else an event of this source and id was
    there, at `cursor`."""

    id: str
    source: str
    cursor: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class StoredEvents:
    """What became of the events of one call, and the waits of runs that ended by them."""

    published: list[Published]
    matched: list["EventWait"]


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """`until`: where to go on; all matching events up to there are in the pages so far. `more`: there is something
    behind it already. `missing`: events behind the reader's cursor are not kept any more, or the cursor is one that was
    never given."""

    events: list[StoredEvent]
    until: int
    more: bool
    missing: bool


@dataclass(frozen=True, slots=True)
class Announcement:
    """A user has got `count` events of this type, the last of them at `cursor`."""

    user_id: str
    type: str
    cursor: int
    count: int = 1


class WaitStatus(StrEnum):
    OPEN = "open"
    MATCHED = "matched"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class EventWait:
    """A run waits for an event of its user. `key` names the wait in its run, so that it is made once. Events count that
    are behind `after`. `event`: the first that matches, as JSON; it stays here when the event itself is removed."""

    id: str
    run_id: str
    user_id: str
    key: str
    pattern: str
    match: Mapping[str, Any] | None
    after: int
    timeout_at: datetime | None
    status: WaitStatus = WaitStatus.OPEN
    event: str | None = None


class EventArrived(Exception):
    """The event that a run would wait for is there already, so the run need not wait. `wait` has it."""

    def __init__(self, wait: EventWait) -> None:
        super().__init__(f"the event that {wait.run_id} would wait for has arrived")
        self.wait = wait


def check_match(match: Mapping[str, Any] | None, field: str = "match") -> Mapping[str, Any] | None:
    """What an event must have: `source` and `subject` as they are, and of `data` at least what is named. Raises
    InvalidInput."""
    if not match:
        return None
    if not isinstance(match, Mapping):
        raise InvalidInput(f"{field}: send an object that names source, subject or data", field=field)
    if unknown := sorted(set(match) - _MATCHED):
        raise InvalidInput(f"{field}.{unknown[0]}: name source, subject or data", field=f"{field}.{unknown[0]}")
    for name in ("source", "subject"):
        if name in match and not isinstance(match[name], str):
            raise InvalidInput(f"{field}.{name}: send a text", field=f"{field}.{name}")
    if _depth(match) > MATCH_MAX_DEPTH:
        raise InvalidInput(f"{field}: it is nested deeper than {MATCH_MAX_DEPTH} levels; make it flatter", field=field)
    if len(json.dumps(match)) > MATCH_MAX_BYTES:
        raise InvalidInput(f"{field}: at most {MATCH_MAX_BYTES:,} bytes of JSON; name fewer values", field=field)
    return match


def _depth(value: Any) -> int:
    """How deep lists and objects stand in one another, counted no further than the limit."""
    level, depth = [value], 0
    while level and depth <= MATCH_MAX_DEPTH:
        inside: list[Any] = []
        for each in level:
            if isinstance(each, Mapping):
                inside += each.values()
            elif isinstance(each, list):
                inside += each
        level, depth = [each for each in inside if isinstance(each, Mapping | list)], depth + 1
    return depth


def is_awaited(wait: EventWait, event: CloudEvent | StoredEvent) -> bool:
    """Whether the event is of the pattern and has what the wait asks for."""
    return matches_type(wait.pattern, event.type) and has(wait.match, event.line)


def has(match: Mapping[str, Any] | None, line: str) -> bool:
    """Whether the event with this JSON has what `match` names."""
    if not match:
        return True
    event = json.loads(line)
    if any(event.get(name) != match[name] for name in ("source", "subject") if name in match):
        return False
    return "data" not in match or ("data" in event and is_part(match["data"], event["data"]))


def is_part(part: Any, whole: Any) -> bool:
    """Whether an object has all that another names; lists and single values must be equal. 1 is 1.0, and no true."""
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(
            name in whole and is_part(value, whole[name]) for name, value in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(whole, list)
            and len(part) == len(whole)
            and all(_equal(one, other) for one, other in zip(part, whole, strict=True))
        )
    return _equal(part, whole)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


RUN_EVENTS_SOURCE = "/agent/runs/"


@dataclass(frozen=True, slots=True)
class RunNotice:
    """A run came into a state, in this attempt. `number` names the notice."""

    number: int
    run_id: str
    status: str
    attempt: int
    at: datetime


def run_event(notice: RunNotice, more: Mapping[str, Any]) -> CloudEvent:
    """The event of what a notice says. `more`: further data, where the run is still in that state."""
    data = {"run_id": notice.run_id, "status": notice.status, "attempt": notice.attempt, **more}
    attributes = {
        "specversion": SPEC_VERSION,
        "id": f"{notice.run_id}-{notice.number}",
        "source": f"{RUN_EVENTS_SOURCE}{notice.run_id}",
        "type": f"run.{notice.status}",
        "time": notice.at.astimezone(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }
    return cloud_event(attributes, of_platform=True)
