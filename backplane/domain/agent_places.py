"""When an agent at work gives its place in a process to one that waits: a decision about values alone.

A place is for the length of a turn at least, and no turn is cut off for another agent. An agent that is idle makes room
at once (`store.agents.processes`), so this is about agents whose mailbox is never empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

PLACE_FOR = timedelta(seconds=30)
"""So long an agent keeps its place though others wait for one. It costs little to give it up: an agent is a row, and
its next turn begins in another process as well. With each turn it would cost too much."""


@dataclass(frozen=True, slots=True)
class WaitingAgent:
    """One with something to do, for which no place is free. `waits`: for how long."""

    user_id: str
    waits: timedelta


@dataclass(frozen=True, slots=True)
class UsersPlaces:
    """The places that a user's agents have in a pool. `earlier`: how many of them have theirs for longer than the agent
    about which is decided."""

    places: int
    earlier: int = 0


_NONE = UsersPlaces(0)


def gives_place(
    user_id: str, placed: timedelta, waiting: Sequence[WaitingAgent], users: Mapping[str, UsersPlaces]
) -> bool:
    """Whether an agent of this user, whose turn is over, gives its place up. `placed`: for how long it has it. `users`:
    all that have places in the pool.

    It does for an agent of the same user, or of one with fewer places, so that users come to equal shares. Those that
    have their places for longest go first, one for each that waits. Their turns may last, so after another PLACE_FOR
    whoever is the first to end a turn goes."""
    entitled = _entitled(user_id, waiting, users)
    if placed < PLACE_FOR or not entitled:
        return False
    before = sum(places.earlier for user, places in users.items() if _entitled(user, waiting, users))
    return before < len(entitled) or max(one.waits for one in entitled) >= 2 * PLACE_FOR


def _entitled(
    user_id: str, waiting: Sequence[WaitingAgent], users: Mapping[str, UsersPlaces]
) -> Sequence[WaitingAgent]:
    """Those to whom an agent of this user would give its place."""
    own = users.get(user_id, _NONE).places
    return [one for one in waiting if one.user_id == user_id or users.get(one.user_id, _NONE).places < own]
