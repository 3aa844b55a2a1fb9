"""Schedules of users: which are due, and what became of their times.

A controller reads what is due, sends the message, whose key is the schedule and the time, and then writes the next time
down. So whoever is killed in between loses nothing and doubles nothing (`controller.schedules`).
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from backplane.domain.runs import new_run_id
from backplane.domain.schedules import NewSchedule, Schedule, ScheduleOutcome, ScheduleOverlap, Timing
from backplane.errors import NotFound, TooLarge
from backplane.store.agents.tables import schedules
from backplane.store.clock import database_now
from backplane.store.database import Database
from backplane.store.tables import users


class Schedules:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, user_id: str, name: str, new: NewSchedule, *, most: int) -> tuple[Schedule, bool]:
        """Make a schedule, or change the one of this name, which stays paused where it is. Its next time is counted
        from now. Answers whether it is new. Raises TooLarge when the user has `most` already."""

        def write(connection: Connection) -> tuple[Schedule, bool]:
            # One writer a user at a time, so that two of them cannot both be the last that fits.
            connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
            which, now = (schedules.c.user_id == user_id, schedules.c.name == name), database_now(connection)
            there = connection.execute(select(schedules).where(*which)).one_or_none()
            values: dict[str, Any] = {
                "agent_id": new.agent_id,
                "timing": new.timing.as_dict(),
                "text": new.text,
                "data": new.data,
                "overlap": new.overlap.value,
                "updated_at": now,
            }
            if there is None or there.paused_at is None:
                values |= _next(new.timing.next_after(now))
            if there is not None:
                changed = update(schedules).where(*which).values(values).returning(schedules)
                return _schedule(connection.execute(changed).one()), False
            count = connection.scalar(select(func.count()).where(schedules.c.user_id == user_id)) or 0
            if count >= most:
                raise TooLarge(f"a user has at most {most} schedules: delete one that is not needed any more")
            values |= {"id": new_run_id(), "user_id": user_id, "name": name, "created_at": now, "sent": 0}
            return _schedule(connection.execute(insert(schedules).values(values).returning(schedules)).one()), True

        return await self._database.write(write)

    async def list_of(self, user_id: str) -> list[Schedule]:
        query = select(schedules).where(schedules.c.user_id == user_id).order_by(schedules.c.name)
        return [_schedule(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]

    async def get(self, user_id: str, name: str) -> Schedule:
        """Raises NotFound."""
        query = select(schedules).where(schedules.c.user_id == user_id, schedules.c.name == name)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise _not_found(name)
        return _schedule(row)

    async def delete(self, user_id: str, name: str) -> None:
        """Raises NotFound."""
        statement = delete(schedules).where(schedules.c.user_id == user_id, schedules.c.name == name)
        if not await self._database.write(lambda connection: connection.execute(statement).rowcount):
            raise _not_found(name)

    async def pause(self, user_id: str, name: str) -> Schedule:
        """Again, it changes nothing. Raises NotFound."""
        return await self._change(
            user_id, name, lambda there, now: {**_next(None), "paused_at": there.paused_at or now}
        )

    async def resume(self, user_id: str, name: str) -> Schedule:
        """Let it fire again, from the first time that comes. Raises NotFound."""

        def resumed(there: Schedule, now: datetime) -> dict[str, Any]:
            if there.paused_at is None:
                return {}
            return {**_next(there.given.timing.next_after(now)), "paused_at": None}

        return await self._change(user_id, name, resumed)

    async def _change(self, user_id: str, name: str, changes: Any) -> Schedule:
        def write(connection: Connection) -> Schedule:
            which = (schedules.c.user_id == user_id, schedules.c.name == name)
            row = connection.execute(select(schedules).where(*which).with_for_update()).one_or_none()
            if row is None:
                raise _not_found(name)
            there, now = _schedule(row), database_now(connection)
            values: Mapping[str, Any] = changes(there, now)
            if not values:
                return there
            changed = update(schedules).where(*which).values(**values, updated_at=now).returning(schedules)
            return _schedule(connection.execute(changed).one())

        return await self._database.write(write)

    async def due(self, limit: int) -> list[Schedule]:
        """Those whose time has come, the longest due first."""

        def read(connection: Connection) -> list[Schedule]:
            now = database_now(connection)
            query = select(schedules).where(schedules.c.look_at <= now).order_by(schedules.c.look_at).limit(limit)
            return [_schedule(row) for row in connection.execute(query).all()]

        return await self._database.read(read)

    async def fired(self, schedule: Schedule, outcome: ScheduleOutcome, run_id: str | None = None) -> None:
        """Its time `next_at` is dealt with: the next one is the first that is not past. Again, or where the schedule
        was changed meanwhile, it changes nothing. `run_id`: the message that was sent."""
        time = schedule.next_at

        def write(connection: Connection) -> None:
            now = database_now(connection)
            here = and_(schedules.c.id == schedule.id, schedules.c.updated_at == schedule.updated_at)
            values: dict[str, Any] = {"last_at": time, "last_outcome": outcome.value}
            if run_id is not None:
                values |= {"last_run_id": run_id}
                # Another controller may have found the message before over, or not over, a moment earlier.
                is_new = or_(schedules.c.last_run_id.is_(None), schedules.c.last_run_id != run_id)
                counted = update(schedules).where(here, is_new).values(sent=schedules.c.sent + 1, **values)
                connection.execute(counted)
            is_over = outcome is ScheduleOutcome.AGENT_TERMINATED
            following = None if is_over else schedule.given.timing.next_after(now)
            connection.execute(
                update(schedules).where(here, schedules.c.next_at == time).values(**values, **_next(following))
            )

        await self._database.write(write)

    async def put_off(self, schedule: Schedule, seconds: float) -> None:
        """Its time could not be dealt with; look again after so many seconds."""

        def write(connection: Connection) -> None:
            here = and_(schedules.c.id == schedule.id, schedules.c.next_at == schedule.next_at)
            look_at = database_now(connection) + timedelta(seconds=seconds)
            connection.execute(update(schedules).where(here).values(look_at=look_at))

        await self._database.write(write)


def _next(time: datetime | None) -> dict[str, Any]:
    return {"next_at": time, "look_at": time}


def _schedule(row: Row[Any]) -> Schedule:
    return Schedule(
        id=row.id,
        user_id=row.user_id,
        name=row.name,
        given=NewSchedule(row.agent_id, Timing.of(row.timing), row.text, row.data, ScheduleOverlap(row.overlap)),
        created_at=row.created_at,
        updated_at=row.updated_at,
        next_at=row.next_at,
        paused_at=row.paused_at,
        last_at=row.last_at,
        last_outcome=ScheduleOutcome(row.last_outcome) if row.last_outcome else None,
        last_run_id=row.last_run_id,
        sent=row.sent,
    )


def _not_found(name: str) -> NotFound:
    return NotFound(f"there is no schedule {name} of yours; GET /api/v1/schedules lists those there are")
