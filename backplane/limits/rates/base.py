"""The port of rate limits: who may go on now, and who has to wait how long.

A limit protects the platform from a client that calls too often. When the limiter does not answer, that is no reason to
refuse a client: the call is let through.
"""

from abc import ABC, abstractmethod


class RateLimiter(ABC):
    @abstractmethod
    async def take(self, name: str, cost: int = 1) -> float:
        """Seconds until `name` may make a call of this cost; 0.0: granted, and counted. It does not raise when Redis
        does not answer."""
