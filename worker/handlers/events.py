"""Events of the user for which a handler waits (`store.bus.waits`): each wait is made once, under its effect's id."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from backplane.domain.bus import EventWait, WaitStatus, check_match, check_pattern
from backplane.domain.runs import Run, new_run_id
from backplane.errors import InvalidInput
from backplane.process.retrying import until_available
from backplane.store import Store
from worker.handlers.values import due_after


class AwaitedEvents:
    """The waits of one run."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store = store
        self._run = run

    async def begin(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What a wait that begins now has to know later: the place behind which events count, and until when. Raises
        InvalidInput for a pattern that is none, and for a time that is none."""
        if not isinstance(asked["type"], str):
            raise InvalidInput("type: send a text, such as order.created", field="type")
        check_pattern(asked["type"], "type")
        check_match(asked.get("match"))
        seconds = asked.get("timeout")
        until = None if seconds is None else due_after(seconds, "timeout").isoformat()
        after = await until_available(lambda: self._store.bus.present(self._run.user_id))
        return {"after": after, "until": until}

    async def look(self, step_id: str, asked: Mapping[str, Any], noted: Mapping[str, Any]) -> EventWait:
        """The wait, open or with what came of it. Waits while the database is away."""
        until = noted.get("until")
        wait = EventWait(
            new_run_id(),
            self._run.id,
            self._run.user_id,
            step_id,
            asked["type"],
            asked.get("match"),
            int(noted["after"]),
            None if until is None else datetime.fromisoformat(until),
        )
        return await until_available(lambda: self._store.event_waits.open(wait))

    async def settle(self, wait: EventWait) -> None:
        await until_available(lambda: self._store.event_waits.settle([wait.id]))


def event_of(wait: EventWait) -> Any:
    """The event that ended the wait, as a JSON object; None: its time was up."""
    return json.loads(wait.event) if wait.status is WaitStatus.MATCHED and wait.event is not None else None
