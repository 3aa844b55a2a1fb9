"""Whose queue a Redis holds, and in which layout: one key beside the queue, "format id".

Two platforms that share a Redis and a prefix would take each other's runs, find nothing of them in their databases and
drop them. So the id of the database stands in Redis, and each script that changes the queue compares it (platform.lua).
When Redis was emptied, the first script that runs then writes the key again.

A layout that changes gets the next number, and a script that brings the one before it there. Processes of an older
release that still run are refused from then on; their runs go on elsewhere when their leases end.
"""

from dataclasses import dataclass

from backplane.errors import QueueOfAnother

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Owner:
    """`database`: the id of the database whose runs are queued; empty: nobody has written it yet."""

    format: int = 0
    database: str = ""

    @classmethod
    def read(cls, text: str | None) -> "Owner":
        """The owner that the key's value names; a value that cannot be read counts as another platform's."""
        format, _, database = (text or "").partition(" ")
        if not text:
            return cls()
        return cls(int(format), database) if format.isdigit() else cls(FORMAT, text)

    def __str__(self) -> str:
        return f"{self.format} {self.database}" if self.database else ""


def check(found: Owner, database: str, prefix: str) -> None:
    """Raises QueueOfAnother when this process must not touch the queue."""
    if found.database and found.database != database:
        raise QueueOfAnother(
            f"Redis holds the queue of another platform: REDIS_KEY_PREFIX {prefix!r} there belongs to the database "
            f"{found.database}, and this one is {database}. Set REDIS_KEY_PREFIX to one that no other platform uses; "
            "or, when this database has replaced that one, let it take the queue over (docs/operations.md)."
        )
    if found.format > FORMAT:
        raise QueueOfAnother(
            f"the queue in Redis has format {found.format}, and this release knows formats up to {FORMAT}: a newer "
            "release has migrated it. Start that release, or a newer one; or set another REDIS_KEY_PREFIX."
        )
