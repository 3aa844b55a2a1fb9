"""How many processes a pool gets, and which of them end."""

from datetime import UTC, datetime

import pytest

from backplane.domain.agents import Pool
from controller.pools.decision import PoolNeeds, ProcessLoad, change_of

EMPTY_SECONDS = 60.0


def pool(least: int = 0, most: int = 4) -> Pool:
    return Pool("p", "developer", datetime.now(UTC), agents_per_process=10, min_processes=least, max_processes=most)


def process(
    name: str, agents: int, empty_seconds: float = 0.0, started: float = 0.0, capacity: int = 10
) -> ProcessLoad:
    return ProcessLoad(name, capacity, agents, empty_seconds, started)


FULL, ELEVENTH = process("full", 10), process("eleventh", 1)


@pytest.mark.parametrize(
    ("needs", "start"),
    [
        pytest.param(PoolNeeds(pool(), 0, []), 0, id="a pool that nobody uses has no process"),
        pytest.param(PoolNeeds(pool(), 1, []), 1, id="the first agent starts one"),
        pytest.param(PoolNeeds(pool(), 1, [FULL]), 1, id="when all are full the next agent starts one"),
        pytest.param(PoolNeeds(pool(), 1, [ELEVENTH]), 0, id="an agent for which there is room starts none"),
        pytest.param(PoolNeeds(pool(), 25, []), 3, id="many agents start as many as they fill"),
        pytest.param(PoolNeeds(pool(), 15, [], coming=2), 0, id="those that are coming have room"),
        pytest.param(PoolNeeds(pool(), 25, [], coming=2), 1, id="those that are coming may not be enough"),
        pytest.param(PoolNeeds(pool(most=2), 99, [FULL]), 1, id="a pool has no more than its maximum"),
        pytest.param(PoolNeeds(pool(most=1), 99, [FULL]), 0, id="a pool at its maximum starts none"),
        pytest.param(PoolNeeds(pool(least=2), 0, []), 2, id="a pool has its minimum without any agent"),
        pytest.param(PoolNeeds(pool(least=2), 0, [FULL]), 1, id="what is short of the minimum is started"),
        pytest.param(PoolNeeds(pool(least=3, most=1), 0, []), 3, id="the minimum counts where it is above the maximum"),
        pytest.param(
            PoolNeeds(pool(), 3, [process("small", 2, capacity=2)]), 1, id="an older capacity counts as it is"
        ),
    ],
)
def test_processes_are_started_for_agents_that_need_room(needs: PoolNeeds, start: int) -> None:
    change = change_of(needs, empty_seconds=EMPTY_SECONDS)
    assert (change.start, change.end) == (start, ())


LONG, BRIEF = 61.0, 59.0


@pytest.mark.parametrize(
    ("needs", "ended"),
    [
        pytest.param(PoolNeeds(pool(), 0, [process("a", 0, LONG)]), ("a",), id="one that stands empty ends"),
        pytest.param(PoolNeeds(pool(), 0, [process("a", 0, BRIEF)]), (), id="one that is empty for a moment stays"),
        pytest.param(PoolNeeds(pool(), 0, [process("a", 1, LONG)]), (), id="one that has an agent stays"),
        pytest.param(PoolNeeds(pool(least=1), 0, [process("a", 0, LONG)]), (), id="the minimum stays"),
        pytest.param(
            PoolNeeds(pool(least=1), 0, [process("old", 0, LONG, 1.0), process("young", 0, LONG, 2.0)]),
            ("young",),
            id="of two the younger one ends",
        ),
        pytest.param(
            PoolNeeds(pool(), 0, [process("a", 0, LONG, 2.0), process("b", 0, LONG, 1.0), FULL]),
            ("a", "b"),
            id="all that are empty end",
        ),
        pytest.param(
            PoolNeeds(pool(), 3, [process("a", 0, LONG)]), (), id="one stays for agents that are about to be placed"
        ),
        pytest.param(
            PoolNeeds(pool(most=1), 0, [process("a", 0, BRIEF), FULL]), ("a",), id="a lower maximum ends what is empty"
        ),
        pytest.param(PoolNeeds(pool(most=1), 0, [ELEVENTH, FULL]), (), id="a lower maximum ends none that has agents"),
    ],
)
def test_processes_end_that_nobody_needs(needs: PoolNeeds, ended: tuple[str, ...]) -> None:
    change = change_of(needs, empty_seconds=EMPTY_SECONDS)
    assert (change.start, change.end) == (0, ended)
