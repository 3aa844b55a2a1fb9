"""A host whose clock is off: Python imports this at its start when its folder is on PYTHONPATH.

CLOCK_OFFSET_SECONDS is added to every answer of `time.time`, `time.time_ns`, `datetime.now`, `datetime.utcnow` and
`date.today`. Drivers written in C make plain datetimes, others look for the type in its module: each takes the other's
for its own. The monotonic clock stays, as it does on a real host whose clock is set.
"""

import datetime as module
import os
import time

OFFSET = float(os.environ.get("CLOCK_OFFSET_SECONDS", "0"))


def shift(seconds: float) -> None:
    real_time, real_time_ns, real = time.time, time.time_ns, module.datetime
    offset, offset_ns = module.timedelta(seconds=seconds), int(seconds * 1e9)

    class Plain(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real)

        def __subclasscheck__(cls, kind: type) -> bool:
            return issubclass(kind, real)

    class Shifted(real, metaclass=Plain):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: module.tzinfo | None = None) -> module.datetime:
            return real.now(tz) + offset

        @classmethod
        def utcnow(cls) -> module.datetime:
            return real.now(module.UTC).replace(tzinfo=None) + offset

        @classmethod
        def today(cls) -> module.datetime:
            return real.now() + offset

    Shifted.__name__ = Shifted.__qualname__ = "datetime"
    Shifted.__module__ = "datetime"
    module.datetime = Shifted  # type: ignore[misc]
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + offset_ns


if OFFSET:
    shift(OFFSET)
