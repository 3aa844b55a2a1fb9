"""Whose connection is closed when all places are taken."""

import pytest

from app.edge.connections import ConnectionLimits, TrustedProxies


class Connection:
    peer = ""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.is_open = True
        self._limits = limits

    def check(self, now: float) -> None:
        return None

    def abort(self) -> None:
        self.is_open = False
        self._limits.closed(self)


TOTAL = 8


@pytest.fixture
def limits() -> ConnectionLimits:
    return ConnectionLimits(
        total=TOTAL, per_address=0, keep_alive_seconds=5, send_seconds=5, proxies=TrustedProxies(""), sweep_seconds=3600
    )


def opened(limits: ConnectionLimits, user_id: str | None = None) -> Connection:
    connection = Connection(limits)
    limits.opened(connection)
    if user_id is not None:
        limits.recognised(connection, user_id)
    return connection


async def test_a_user_who_has_taken_all_places_loses_the_oldest_connection_to_a_newcomer(
    limits: ConnectionLimits,
) -> None:
    of_first = [opened(limits, "first") for _ in range(TOTAL)]
    newcomer = opened(limits, "newcomer")
    assert newcomer.is_open
    assert [each.is_open for each in of_first] == [False] + [True] * (TOTAL - 1)


async def test_a_user_may_have_all_places_while_nobody_else_wants_one(limits: ConnectionLimits) -> None:
    assert all(each.is_open for each in [opened(limits, "first") for _ in range(TOTAL)])


async def test_two_users_who_each_want_all_places_share_them(limits: ConnectionLimits) -> None:
    held = {name: [opened(limits, name) for _ in range(TOTAL)] for name in ("first", "second")}
    # Where both have as many, either may lose the next one.
    assert all(sum(each.is_open for each in of) >= TOTAL // 2 - 1 for of in held.values())


async def test_strangers_take_no_place_of_users_who_have_no_more_than_they(limits: ConnectionLimits) -> None:
    users = [opened(limits, f"user {number}") for number in range(TOTAL)]
    strangers = [opened(limits) for _ in range(TOTAL)]
    assert all(each.is_open for each in users)
    assert not any(each.is_open for each in strangers)


async def test_a_connection_that_carries_requests_of_many_counts_for_the_last(limits: ConnectionLimits) -> None:
    of_first = [opened(limits, "first") for _ in range(3)]
    of_second = [opened(limits, "second") for _ in range(5)]
    for each in of_second[:3]:
        limits.recognised(each, "first")
    opened(limits)
    assert [each.is_open for each in of_first] == [False, True, True]
    assert all(each.is_open for each in of_second)


async def test_connections_that_are_closed_are_forgotten(limits: ConnectionLimits) -> None:
    for each in [opened(limits, "first") for _ in range(TOTAL)]:
        limits.closed(each)
        limits.recognised(each, "first")
    assert (limits._all, limits._user_of, limits._of_user, limits._large_users) == (set(), {}, {}, set())
