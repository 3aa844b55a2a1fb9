"""How many runs and events each user has: counted on the indexes alone, at a cost that grows with them."""

from dataclasses import replace

from sqlalchemy import func, select

from backplane.domain.stored import Stored
from backplane.store.database import Database
from backplane.store.tables import events, runs


class UsageCounts:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_users(self) -> dict[str, Stored]:
        """Users without a run are left out."""
        of_runs = select(runs.c.user_id, func.count().label("count")).group_by(runs.c.user_id)
        of_events = select(events.c.user_id, func.count().label("count")).group_by(events.c.user_id)
        run_rows = await self._database.read(lambda connection: connection.execute(of_runs).all())
        event_rows = await self._database.read(lambda connection: connection.execute(of_events).all())
        found = {user_id: Stored(runs=count, events=0) for user_id, count in run_rows}
        # A run that was made between the two has events and was not counted.
        return found | {
            user_id: replace(found.get(user_id, Stored(runs=0)), events=count) for user_id, count in event_rows
        }
