"""The port of rate limits: who may go on now, and who has to wait how long.

A limit protects the platform from a client that calls too often; it is no reason to refuse one. So whoever cannot find
out lets the call through.
"""

from abc import ABC, abstractmethod


class RateLimiter(ABC):
    @abstractmethod
    async def take(self, name: str, cost: int = 1) -> float:
        """Seconds until `name` may do what costs so much; 0.0: granted, and taken. Does not raise for want of an
        answer."""
