"""When something that failed is tried again, or never: a pure decision.

Exponential backoff with "equal jitter" (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): the
pause is drawn evenly from the upper half of the doubling span, so that runs which failed together do not return
together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def backoff(attempt: int, *, base: float, longest: float, draw: float) -> float:
    """Seconds to pause after the failed try number `attempt` (from 1): drawn from the upper half of a span that begins
    with `base` and doubles up to `longest`. `draw` is in [0, 1)."""
    return min(longest, base * 2.0 ** min(attempt - 1, 62)) * (0.5 + draw / 2)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`retries` further tries after the first; pauses in seconds: `base` before the second, doubling up to
    `longest`."""

    retries: int
    base: float
    longest: float

    def pause(self, attempt: int, *, retryable: bool, draw: float, asked: float | None = None) -> float | None:
        """Seconds to wait after the failed try number `attempt` (from 1); None: not again. `draw` is in [0, 1).
        `asked`: seconds for which the other side asks to be left alone; it is not asked again before, so there is no
        further try when that is longer than `longest`."""
        if not retryable or attempt > self.retries:
            return None
        pause = backoff(attempt, base=self.base, longest=self.longest, draw=draw)
        if asked is None:
            return pause
        return max(pause, asked) if asked <= self.longest else None


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds for which a server asks to be left alone: `Retry-After` in seconds or as a time (RFC 9110, 10.2.3); None
    where it does not say. `headers` are by their names in lower case, or without regard to it."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    # NaN is none; infinity is as long as is ever waited.
    return max(seconds, 0.0) if seconds == seconds else None
