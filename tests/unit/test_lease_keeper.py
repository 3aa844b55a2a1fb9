"""Leases of a process whose event loop is blocked: when they are renewed beside it, and when no longer."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from backplane.resources import LeaseConnections
from tests.waiting import wait_until
from worker.lease_keeper import BLOCKED_LEASES, KeeperAction, KeeperRules, LeaseKeeper, ProcessLeases

RULES = KeeperRules(lease=15.0, heartbeat=5.0)
NEVER = float("inf")
LONG_SECONDS = 30.0


@pytest.mark.parametrize(
    ("blocked", "since_renewal", "action"),
    [
        (1.0, NEVER, KeeperAction.RENEW),  # nobody knows how old the last heartbeat is
        (2.0, 1.0, KeeperAction.WAIT),
        (6.0, 4.99, KeeperAction.WAIT),
        (6.0, 5.0, KeeperAction.RENEW),
        (45.0, 5.0, KeeperAction.RENEW),  # three leases
        (59.9, 5.0, KeeperAction.RENEW),
        (60.0, 5.0, KeeperAction.GIVE_UP),
        (60.0, 0.0, KeeperAction.GIVE_UP),
        (600.0, NEVER, KeeperAction.GIVE_UP),
    ],
)
def test_leases_of_a_blocked_loop_are_renewed_each_heartbeat_up_to_a_bound(
    blocked: float, since_renewal: float, action: KeeperAction
) -> None:
    assert RULES.action(blocked, since_renewal) is action


def test_a_loop_that_blocks_right_before_its_heartbeat_is_renewed_within_its_lease() -> None:
    """At worst: a heartbeat ago the leases were renewed, then it is asked, and waited for."""
    assert RULES.heartbeat + 2 * RULES.look < RULES.lease / 2
    assert BLOCKED_LEASES > 3


class Renewals:
    """In place of a process's leases. `each`: what a renewal does."""

    def __init__(self, each: list[bool | Exception]) -> None:
        self.count = 0
        self.arrived = threading.Event()
        self.threads: set[str] = set()
        self._each = each

    async def renew(self, own: LeaseConnections, seconds: float) -> bool:
        self.threads.add(threading.current_thread().name)
        self.count += 1
        if self.count >= len(self._each):
            self.arrived.set()
        result = self._each[min(self.count, len(self._each)) - 1]
        if isinstance(result, Exception):
            raise result
        return result


class Kept:
    """A keeper of this loop's, with leases of a tenth of a second."""

    def __init__(self, *each: bool | Exception, lease: float = 0.1) -> None:
        self.renewals = Renewals(list(each))
        self.gave_up = threading.Event()
        self.open = 0
        rules = KeeperRules(lease=lease, heartbeat=0.02)
        leases = cast(ProcessLeases, self.renewals)
        self.keeper = LeaseKeeper(rules, leases, self._connect, self.gave_up.set)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Any]:
        self.open += 1
        yield None
        self.open -= 1

    def __enter__(self) -> "Kept":
        self.keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.end()


def hold_until(event: threading.Event) -> None:
    """Block the event loop."""
    assert event.wait(LONG_SECONDS)


async def test_leases_are_renewed_in_a_thread_again_and_again_while_the_loop_is_blocked() -> None:
    with Kept(True, True, True, lease=LONG_SECONDS) as kept:
        hold_until(kept.renewals.arrived)
        assert kept.open == 1
        await wait_until(lambda: kept.open == 0)
    assert kept.renewals.threads == {"lease keeper"}
    assert not kept.gave_up.is_set()


@pytest.mark.parametrize("first", [False, LookupError("a fault of the keeper's")])
async def test_a_renewal_that_went_wrong_is_tried_again(first: bool | Exception) -> None:
    with Kept(first, True, lease=LONG_SECONDS) as kept:
        hold_until(kept.renewals.arrived)


async def test_a_loop_that_goes_on_opens_no_connection() -> None:
    with Kept(True, lease=LONG_SECONDS) as kept:
        for _ in range(20):
            await asyncio.sleep(0.005)
    assert kept.renewals.count == 0 or kept.renewals.threads  # a machine that is busy may have stopped the loop
    assert kept.open == 0


async def test_a_loop_that_is_blocked_for_too_long_is_given_up_and_nothing_more_is_renewed() -> None:
    with Kept(True) as kept:
        hold_until(kept.gave_up)
        count = kept.renewals.count
        threading.Event().wait(0.1)
        assert kept.renewals.count == count
        await wait_until(lambda: kept.open == 0)
