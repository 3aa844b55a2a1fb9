"""The plans of a run that a newer one has replaced, and why. The one in force is in the run's row."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from backplane.store.database import Database
from backplane.store.tables import plan_versions


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """`reason`: why it was replaced, at `replaced_at`."""

    version: int
    plan: dict[str, Any]
    replaced_at: datetime
    reason: str


class Plans:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def replaced(self, run_id: str) -> list[PlanVersion]:
        """Oldest first."""
        query = select(plan_versions).where(plan_versions.c.run_id == run_id).order_by(plan_versions.c.version)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [PlanVersion(row.version, row.plan, row.replaced_at, row.reason) for row in rows]
