"""How many processes a pool is to have: a decision about numbers alone.

A process is started when agents need room and nobody has any, or when the pool is to have more of them in any case. One
that has stood empty for a while is ended, the youngest first, as long as what is left has room for who needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from backplane.domain.agents import Pool


@dataclass(frozen=True, slots=True)
class ProcessLoad:
    """A process that lives and does not drain. `empty_seconds`: for how long it has had no agent; 0: it has some.
    `started`: when, in seconds of any clock; only the order counts."""

    process_id: str
    capacity: int
    agents: int
    empty_seconds: float
    started: float


@dataclass(frozen=True, slots=True)
class PoolNeeds:
    """`unplaced`: agents that need room and have none. `coming`: processes that were started and have not entered
    themselves yet."""

    pool: Pool
    unplaced: int
    processes: Sequence[ProcessLoad]
    coming: int = 0


@dataclass(frozen=True, slots=True)
class ProcessChange:
    """How many processes to start, and which to end. `wanted`: how many the pool has then."""

    wanted: int
    start: int = 0
    end: tuple[str, ...] = ()


def change_of(needs: PoolNeeds, *, empty_seconds: float) -> ProcessChange:
    """What to do now. `empty_seconds`: how long a process has to be empty before it is ended."""
    pool, processes = needs.pool, needs.processes
    there = len(processes) + needs.coming
    room = sum(max(one.capacity - one.agents, 0) for one in processes) + needs.coming * pool.agents_per_process
    lacking = max(needs.unplaced - room, 0)
    wanted = max(there + ceil(lacking / pool.agents_per_process), pool.min_processes)
    wanted = min(wanted, max(pool.max_processes, pool.min_processes))
    if wanted > there:
        return ProcessChange(wanted, start=wanted - there)
    empty = [one for one in processes if not one.agents and one.empty_seconds >= empty_seconds]
    empty.sort(key=lambda one: -one.started)
    ended: list[str] = []
    spare = room - needs.unplaced
    for one in empty:
        if there - len(ended) <= pool.min_processes or spare < one.capacity:
            break
        ended.append(one.process_id)
        spare -= one.capacity
    # A pool whose maximum was lowered gives up what is empty at once, and the others as their agents go to sleep.
    too_many = there - len(ended) - max(pool.max_processes, pool.min_processes)
    more = [one for one in processes if not one.agents and one.process_id not in ended]
    ended += [one.process_id for one in more[: max(too_many, 0)]]
    return ProcessChange(there - len(ended), end=tuple(ended))
