"""The port of token buckets: how many model tokens an agent and a user may have generated in a second.

It differs from `rates`: nobody is refused, a call waits until it may go on; what it takes is an estimate that is
corrected afterwards; and one call takes from several buckets at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bucket:
    """`per_second` tokens flow in (0: no limit), and `burst` are in it when it is full."""

    name: str
    per_second: float
    burst: float


class TokenBuckets(ABC):
    @abstractmethod
    async def take(
        self, run_id: str, buckets: Sequence[Bucket], estimate: float, on_wait: Callable[[float], None]
    ) -> None:
        """Waits until each of the buckets holds `estimate` tokens, or is full where that is more than it can hold;
        then takes the estimate from all of them at once. A level may fall below zero by what exceeds the burst.

        `on_wait` gets the seconds that it will take, as far as is known, each time it is asked again. Nothing is
        raised while Redis is away: it waits. Cancelled, it takes nothing.
        """

    @abstractmethod
    async def settle(self, buckets: Sequence[Bucket], estimate: float, actual: float) -> None:
        """Give back the tokens that were taken too many, or take those that were too few. Raises Unavailable; then the
        estimate stays."""

    @abstractmethod
    async def level(self, bucket: Bucket) -> float:
        """Tokens in it now; below zero while it owes. Raises Unavailable."""
