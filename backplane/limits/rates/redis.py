"""Rate limits in Redis: each is a token bucket for all processes together, kept as the one time at which it is full
again.

A process that is asked often draws a few permits ahead, and remembers a refusal until it ends, so that neither a busy
client nor a flood of calls costs a round trip for each call. What is drawn is counted at once, so all processes
together never grant more than the limit; permits that are not used within AHEAD_SECONDS are lost to their name.
"""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from backplane.errors import Unavailable
from backplane.limits.rates.base import RateLimiter
from backplane.redis.client import RedisClients, Script

TAKE = Path(__file__).parent / "lua" / "take.lua"
AHEAD = 10
AHEAD_SECONDS = 0.2
ANSWER_SECONDS = 1.0
"""How long a call may wait for Redis to say whether it may go on. It is longer than a busy machine takes: without an
answer all calls pass, and a client that makes the machine busy must not gain by it."""
AWAY_SECONDS = 1.0
"""How long Redis is not asked again after it did not answer."""
NAMES = 10_000

log = structlog.get_logger()


@dataclass(slots=True)
class _Book:
    """What this process knows of one name. Times are of the monotonic clock."""

    permits: int = 0
    drawn_at: float = 0.0
    ahead: int = 0
    refused_until: float = 0.0
    waiting: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RedisRateLimiter(RateLimiter):
    """`per_second` in the long run (0: no limit), `burst` at once after a pause."""

    def __init__(self, clients: RedisClients, *, per_second: float, burst: int) -> None:
        self._keys = clients.keys
        self._take = Script(clients, TAKE)
        self._per_second = per_second
        self._burst = burst
        self._books: dict[str, _Book] = {}
        self._away_until = 0.0

    async def take(self, name: str, cost: int = 1) -> float:
        if not self._per_second:
            return 0.0
        # More than a full bucket holds is never there.
        cost = min(cost, self._burst)
        if (book := self._books.get(name)) is None:
            if len(self._books) >= NAMES:
                self._books.clear()
            book = self._books[name] = _Book()
        book.waiting += cost
        try:
            # One asks for all who came meanwhile.
            async with book.lock:
                return await self._of_book(book, name, cost)
        finally:
            book.waiting -= cost

    async def _of_book(self, book: _Book, name: str, cost: int) -> float:
        now = time.monotonic()
        fresh = now - book.drawn_at < AHEAD_SECONDS
        if not fresh:
            book.permits = 0
        if book.permits < cost:
            if now < book.refused_until:
                return book.refused_until - now
            if now < self._away_until:
                return 0.0
            book.ahead = min(2 * book.ahead + 1, AHEAD) if fresh else 0
            try:
                wait = await self._draw(book, name, cost)
            except (Unavailable, TimeoutError) as error:
                log.warning("calls are not limited for a moment", error=str(error) or "Redis does not answer")
                self._away_until = time.monotonic() + AWAY_SECONDS
                return 0.0
            if wait:
                # A call that needs more than one permit may be refused where one permit would be granted.
                book.refused_until = time.monotonic() + wait if cost == 1 else 0.0
                return wait
        book.permits -= cost
        return 0.0

    async def _draw(self, book: _Book, name: str, cost: int) -> float:
        """Draw permits ahead. Returns the seconds until there are enough; 0.0: there are enough."""
        need = cost - book.permits
        want = max(book.waiting + book.ahead - book.permits, need)
        async with asyncio.timeout(ANSWER_SECONDS):
            granted, wait = await self._take(
                [self._keys.rate(name)], [1000 / self._per_second, self._burst, need, want]
            )
        book.permits += granted
        book.drawn_at = time.monotonic()
        return float(wait) / 1000
