"""How an effect, and with it the handler's run, stops without being done: for good, for a person, for a run, for a
time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from backplane.domain.bus import EventWait
from backplane.domain.decisions import Decision
from backplane.domain.runs import RunError
from worker.steps.outcomes import RunWaits


class EffectStopped(Exception):
    """The run ends with this error, which the handler cannot catch."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class EffectWaits(Exception):
    """The effect goes on when this run is over, at this time, or when this wait for an event has ended."""

    def __init__(
        self, *, run_id: str | None = None, until: datetime | None = None, event: EventWait | None = None
    ) -> None:
        super().__init__(run_id or "")
        self.run_id = run_id
        self.until = until
        self.event = event


class Sleeps(Exception):
    """The handler sleeps until then, and has nothing else to do."""

    def __init__(self, until: datetime) -> None:
        super().__init__(until.isoformat())
        self.until = until


class WaitsForRuns(Exception):
    """The handler waits for these runs, and has nothing else to do."""

    def __init__(self, run_ids: Sequence[str]) -> None:
        super().__init__(", ".join(run_ids))
        self.run_ids = run_ids


class WaitsForEvents(Exception):
    """The handler waits for an event, and has nothing else to do."""

    def __init__(self, waits: Sequence[EventWait]) -> None:
        super().__init__(", ".join(wait.pattern for wait in waits))
        self.waits = waits


@dataclass(slots=True)
class Blocked:
    """What effects wait for."""

    decisions: list[Decision] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    until: list[datetime] = field(default_factory=list)
    events: list[EventWait] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decisions or self.runs or self.until or self.events)

    def add(self, waits: EffectWaits) -> None:
        if waits.run_id is not None:
            self.runs.append(waits.run_id)
        if waits.until is not None:
            self.until.append(waits.until)
        if waits.event is not None:
            self.events.append(waits.event)

    def error(self) -> Exception:
        """The handler goes on when the first of the times comes; without one, when a person has decided."""
        if self.until:
            return Sleeps(min(self.until))
        if self.decisions:
            return RunWaits(self.decisions)
        # An event wakes a run whatever it waits for; of another run's end it must be known that it is waited for.
        return WaitsForRuns(self.runs) if self.runs else WaitsForEvents(self.events)
