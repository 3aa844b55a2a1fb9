"""When something that failed is tried again, or never: a pure decision.

Exponential backoff with "equal jitter" (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): the
pause is drawn evenly from the upper half of the doubling span, so that runs which failed together do not return
together.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`retries` further tries after the first; pauses in seconds: `base` before the second, doubling up to
    `longest`."""

    retries: int
    base: float
    longest: float

    def pause(self, attempt: int, *, retryable: bool, draw: float) -> float | None:
        """Seconds to wait after the failed try number `attempt` (from 1); None: not again. `draw` is in [0, 1)."""
        if not retryable or attempt > self.retries:
            return None
        span = min(self.longest, self.base * 2.0 ** min(attempt - 1, 62))
        return span * (0.5 + draw / 2)
