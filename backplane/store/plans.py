"""The plans of a run that a newer one has replaced, and why. The one in force is in the run's row."""

from sqlalchemy import select

from backplane.domain.plans import PlanVersion
from backplane.store.database import Database
from backplane.store.tables import plan_versions


class Plans:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def replaced(self, run_id: str) -> list[PlanVersion]:
        """Oldest first."""
        query = select(plan_versions).where(plan_versions.c.run_id == run_id).order_by(plan_versions.c.version)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [PlanVersion(row.version, row.plan, row.replaced_at, row.reason) for row in rows]
