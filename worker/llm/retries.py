"""Whether a call that failed is made again at the same server, and after how long. Pure.

ModelRateLimited, ModelUnavailable, ModelTimeout   again, after what the server asks for, else after a pause that
                                                   doubles; MODEL_RETRIES times, then the next model
ModelOutputInvalid                                 the same: another answer may be whole
ModelOutputTooLong                                 the next model: the server does not keep to its limits
ModelRefused                                       the next model at once: this one says the same again
ModelContextTooLong                                the next model at once: it may take more
"""

from dataclasses import dataclass

from backplane.domain.retry import backoff
from backplane.errors import ModelError
from worker.llm.base import ModelUnavailable

FIRST_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class CallRetryPolicy:
    """`retries`: further tries at the same server. `max_seconds`: no pause is longer, whatever the server asks."""

    retries: int
    max_seconds: float


def pause_before_next(error: ModelError, tries: int, policy: CallRetryPolicy, jitter: float) -> float | None:
    """Seconds until the next try at the same server, after so many tries there; None: it is not tried again. `jitter`
    is in [0, 1): many that failed together do not come back together."""
    if not error.retryable or tries > policy.retries:
        return None
    asked = error.retry_after if isinstance(error, ModelUnavailable) else None
    if asked is not None:
        return min(asked, policy.max_seconds)
    return backoff(tries, base=FIRST_PAUSE_SECONDS, longest=policy.max_seconds, draw=jitter)
