"""How many log lines a run may tell: a token bucket, on whatever clock its caller reads."""


class TokenBucket:
    """`rate` tokens a second, at most `burst` at once, which it begins with. A rate of 0: there is always one."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token, if there is one. `now` is in seconds; a clock that goes back gives none."""
        if not self._rate:
            return True
        self._tokens = min(self._burst, self._tokens + max(now - self._at, 0.0) * self._rate)
        self._at = max(now, self._at)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
