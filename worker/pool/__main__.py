"""python -m worker.pool POOL: a process that has agents of this pool and carries out their turns. When it is asked to
end, its agents go elsewhere, and it drains."""

import argparse
import asyncio
import sys

from backplane.entry_point import end_at_once, run
from backplane.settings import Settings, fixed
from worker.pool.source import PoolSource
from worker.service import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.pool", description="Has agents of a pool.")
    parser.add_argument("pool", metavar="POOL", help="the name of the pool")
    pool = parser.parse_args().pool

    async def work(settings: Settings, stop: asyncio.Event) -> None:
        await serve(with_small_pools(settings), stop, PoolSource(settings, pool), give_up=end_at_once)

    return run(f"pool {pool}", work)


def with_small_pools(settings: Settings) -> Settings:
    """Where nothing else is set, few connections to the database: there may be many such processes."""
    small = {
        "database_pool_size": fixed.AGENT_DATABASE_POOL_SIZE,
        "database_pool_overflow": fixed.AGENT_DATABASE_POOL_OVERFLOW,
    }
    unset = {name: value for name, value in small.items() if name not in settings.model_fields_set}
    return settings.model_copy(update=unset)


if __name__ == "__main__":
    sys.exit(main())
