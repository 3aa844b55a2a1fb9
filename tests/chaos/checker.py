"""What must be true when it is all over: pure functions from recorded facts to complaints.

Nothing here knows how the facts came about. No complaint means: no run was lost, no step was left out or done twice, no
watcher missed an event or saw one twice or out of order, and nothing was left behind.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

FINAL = ("completed", "failed", "cancelled")


class Broken(StrEnum):
    """What a complaint is about."""

    RUN_LOST = "run lost"
    RUN_FAILED = "run failed"
    STEP_MISSING = "step missing"
    STEP_DOUBLED = "step doubled"
    STEP_DISORDERED = "step out of order"
    EVENT_MISSED = "event missed"
    EVENT_REPEATED = "event repeated"
    EVENT_DISORDERED = "event out of order"
    EVENT_DIFFERS = "event differs"
    GAP_UNFOUNDED = "gap without a cause"
    END_MISSING = "end missing"
    KEY_LEFT = "key left"
    LEASE_LEFT = "lease left"
    PROCESS_LEFT = "process left"


@dataclass(frozen=True, slots=True)
class Complaint:
    broken: Broken
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.broken}: {self.subject}: {self.detail}"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """`is_ordered`: its marks show when it happened, not only that it did."""

    id: str
    is_repeatable: bool = False
    is_ordered: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """`after` and `before` are a gap's: the numbers between them are not to be had."""

    id: int
    type: str
    line: str = ""
    after: int = 0
    before: int = 0


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run that was accepted. `status` is that of its row, None without a row; `marks` are the steps that left their
    mark, in order; `events` those of the database."""

    id: str
    steps: tuple[PlannedStep, ...]
    status: str | None
    marks: tuple[str, ...]
    events: tuple[Event, ...]
    is_cancelled: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class WatcherFacts:
    """Every numbered frame that one watcher got over all its connections, in the order in which they came."""

    name: str
    run_id: str
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """`keys`: those left in Redis, with their seconds to live (-1: for ever). `permanent`: patterns of those that may
    stay, `{…}` standing for any part. `holding`: what still names a run that is over, by key."""

    keys: Mapping[str, int] = field(default_factory=dict)
    permanent: tuple[str, ...] = ()
    holding: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leases: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """`redis_was_emptied`: only then may numbers be missing, and a `gap` must say which."""

    runs: tuple[RunFacts, ...]
    watchers: tuple[WatcherFacts, ...]
    leftovers: Leftovers
    redis_was_emptied: bool = False


def check(facts: Facts) -> list[Complaint]:
    runs = {run.id: run for run in facts.runs}
    complaints: list[Complaint] = []
    for run in facts.runs:
        complaints += _end_of(run)
        complaints += _steps_of(run)
        complaints += _history_of(run, facts.redis_was_emptied)
    for watcher in facts.watchers:
        complaints += _stream_of(watcher, runs[watcher.run_id], facts.redis_was_emptied)
    return complaints + list(_left(facts.leftovers))


def _end_of(run: RunFacts) -> Iterator[Complaint]:
    if run.status not in FINAL:
        yield Complaint(
            Broken.RUN_LOST, run.id, f"it was started and is {run.status or 'in no row'} {run.error}".strip()
        )
    elif run.status == "failed":
        yield Complaint(Broken.RUN_FAILED, run.id, f"nothing in its plan can fail: {run.error}")
    elif run.status == "cancelled" and not run.is_cancelled:
        yield Complaint(Broken.RUN_LOST, run.id, "nobody asked for its cancellation")


def _steps_of(run: RunFacts) -> Iterator[Complaint]:
    times = Counter(run.marks)
    for step in run.steps:
        if not times[step.id] and run.status == "completed":
            yield Complaint(Broken.STEP_MISSING, run.id, f"step {step.id} left no mark")
        if times[step.id] > 1 and not step.is_repeatable:
            yield Complaint(Broken.STEP_DOUBLED, run.id, f"step {step.id} was done {times[step.id]} times")
    for stranger in times.keys() - {step.id for step in run.steps}:
        yield Complaint(Broken.STEP_DOUBLED, run.id, f"step {stranger} is in no plan")
    places = [run.marks.index(step.id) for step in run.steps if step.is_ordered and times[step.id]]
    if places != sorted(places):
        yield Complaint(Broken.STEP_DISORDERED, run.id, f"they were done in the order {', '.join(run.marks)}")


def _history_of(run: RunFacts, emptied: bool) -> Iterator[Complaint]:
    """The database's own events: whole, in order, with one end."""
    if run.status in FINAL:
        yield from _in_order(run.events, f"{run.id} in the database", emptied)
        yield from _one_end(run.events, f"{run.id} in the database")


def _stream_of(watcher: WatcherFacts, run: RunFacts, emptied: bool) -> Iterator[Complaint]:
    subject = f"{watcher.name} of {run.id}"
    yield from _in_order(watcher.events, subject, emptied)
    yield from _one_end(watcher.events, subject)
    stored = {event.id: event for event in run.events}
    seen = {event.id for event in watcher.events}
    holes = _gaps(watcher.events)
    missed = [number for number in stored if number not in seen and not _covered(number, holes)]
    if missed:
        yield Complaint(Broken.EVENT_MISSED, subject, f"it never saw {_short(missed)}, which the database has")
    lost = _gaps(run.events)
    for event in watcher.events:
        kept = stored.get(event.id)
        if event.type == "gap" and (kept is None or kept.type != "gap"):
            continue  # sent by the API to this watcher alone
        if kept is None and not _covered(event.id, lost):
            yield Complaint(Broken.EVENT_DIFFERS, subject, f"it saw {event.id} ({event.type}), which is not kept")
        elif kept is not None and kept.line != event.line:
            yield Complaint(Broken.EVENT_DIFFERS, subject, f"it saw another {event.id} than is kept")


def _in_order(events: Sequence[Event], subject: str, emptied: bool) -> Iterator[Complaint]:
    last, seen = 0, set[int]()
    for event in events:
        if event.type == "gap":
            if not emptied:
                detail = f"gap ({event.after}, {event.before}), and Redis was never emptied"
                yield Complaint(Broken.GAP_UNFOUNDED, subject, detail)
            if event.after > last:
                yield _missed(subject, last, event.after + 1)
            last = max(last, event.before - 1, event.id)
            seen.add(event.id)
            continue
        if event.id in seen:
            yield Complaint(Broken.EVENT_REPEATED, subject, f"{event.id} ({event.type}) came again after {last}")
        elif event.id < last:
            yield Complaint(Broken.EVENT_DISORDERED, subject, f"{event.id} ({event.type}) came after {last}")
        elif event.id > last + 1:
            yield _missed(subject, last, event.id)
        seen.add(event.id)
        last = max(last, event.id)


def _missed(subject: str, last: int, following: int) -> Complaint:
    return Complaint(Broken.EVENT_MISSED, subject, f"after {last} came {following}, and no gap says why")


def _one_end(events: Sequence[Event], subject: str) -> Iterator[Complaint]:
    ends = [place for place, event in enumerate(events) if event.type == "end"]
    if not ends:
        yield Complaint(Broken.END_MISSING, subject, f"the last is {events[-1].type if events else 'nothing'}")
    elif ends[0] != len(events) - 1:
        after = ", ".join(f"{event.id} ({event.type})" for event in events[ends[0] + 1 :])
        yield Complaint(Broken.EVENT_REPEATED, subject, f"after its end came {after}")


def _gaps(events: Iterable[Event]) -> list[tuple[int, int]]:
    return [(event.after, event.before) for event in events if event.type == "gap"]


def _covered(number: int, gaps: Sequence[tuple[int, int]]) -> bool:
    return any(after < number < before for after, before in gaps)


def _left(leftovers: Leftovers) -> Iterator[Complaint]:
    for key, seconds in leftovers.keys.items():
        if seconds < 0 and not is_permanent(key, leftovers.permanent):
            yield Complaint(Broken.KEY_LEFT, key, "it has no lifetime and is not declared permanent")
    for key, ids in leftovers.holding.items():
        yield Complaint(Broken.KEY_LEFT, key, f"it still names {_short(ids)}, which are over")
    for lease in leftovers.leases:
        yield Complaint(Broken.LEASE_LEFT, lease, "somebody still holds it")
    for process in leftovers.processes:
        yield Complaint(Broken.PROCESS_LEFT, process, "it outlived the platform")


def is_permanent(key: str, patterns: Iterable[str]) -> bool:
    """Whether a key's name is one of these patterns, in which `{…}` stands for any part."""
    return any(re.fullmatch(_expression(pattern), key) for pattern in patterns)


def _expression(pattern: str) -> str:
    parts = re.split(r"(\{[^{}]*\})", pattern)
    return "".join(".+" if part.startswith("{") else re.escape(part) for part in parts)


def _short(values: Iterable[object], limit: int = 5) -> str:
    listed = [str(value) for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
