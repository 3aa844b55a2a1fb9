"""A queue as tests want it: no caps, no limits, and one call for one run."""

from collections.abc import Sequence

from backplane.domain.runs import RunStatus
from backplane.queue.base import Caps, Claim, Queue, QueueRoom, RunOutcome, Settlement, Whereabouts
from backplane.queue.redis import RedisQueue
from backplane.redis.client import RedisClients

NO_CAPS = Caps()
NO_LIMITS = QueueRoom()


def redis_queue(
    clients: RedisClients,
    *,
    lease_seconds: float = 600,
    run_seconds: float = 60,
    ageing_seconds: float = 300,
    caps: Caps = NO_CAPS,
    room: QueueRoom = NO_LIMITS,
) -> RedisQueue:
    """Leases are so long that none ends in a test that does not say so."""
    return RedisQueue(
        clients,
        lease_seconds=lease_seconds,
        initial_run_seconds=run_seconds,
        ageing_seconds=ageing_seconds,
        caps=caps,
        room=room,
    )


async def finish(queue: Queue, claim: Claim, seconds: float | None = None) -> None:
    await queue.settle([Settlement(claim, RunOutcome.FINISHED, RunStatus.COMPLETED, duration_seconds=seconds)])


async def hand_back(queue: Queue, claim: Claim) -> None:
    await queue.settle([Settlement(claim, RunOutcome.HANDED_BACK)])


async def postpone(queue: Queue, claim: Claim, seconds: float) -> None:
    await queue.settle([Settlement(claim, RunOutcome.POSTPONED, delay_seconds=seconds)])


async def known(queue: Queue, run_ids: Sequence[str]) -> list[bool]:
    """Which of these runs wait, are scheduled or are running."""
    there = (Whereabouts.WAITS, Whereabouts.SCHEDULED, Whereabouts.CLAIMED)
    return [await queue.whereabouts(run_id) in there for run_id in run_ids]
