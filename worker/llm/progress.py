"""Shows the watchers of a run that a model is at work: how many tokens it has given so far, and the end of its text.

A run shows at most one of its calls at a time, twice a second, whatever number of them are under way; and nothing of a
call that is over within a moment. What is shown is stored nowhere: the call's result is published when it ends.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from worker.llm.answer import estimated_tokens
from worker.llm.untrusted_json import storable

MOMENT_SECONDS = 1.0
"""A call that takes no longer than this is not shown."""
INTERVAL_SECONDS = 0.5
SILENCE_SECONDS = 5.0
"""A call that gives nothing new is shown again after so many seconds, so that watchers see that it goes on."""
TEXT_CHARS = 200
"""How much of the end of the text is shown."""
TEXT_MAX_CHARS = 64 * 1024
"""Of a longer text the end is not shown: all of it is redacted each time, as a secret may begin anywhere."""

Show = Callable[[Mapping[str, Any]], None]


class Progress:
    """The progress of one run's calls. `show` publishes a live event, `show_nothing` drops one that is not published
    yet, and `redact` takes the run's secrets out of a text that goes on."""

    def __init__(self, show: Show, show_nothing: Callable[[], None], redact: Callable[[str], str]) -> None:
        self._show = show
        self._show_nothing = show_nothing
        self._redact = redact
        self._calls: list[CallProgress] = []
        self._timer: asyncio.TimerHandle | None = None
        self._shown_at = 0.0

    def of_call(self, about: Mapping[str, Any], *, with_text: bool) -> "CallProgress":
        """Use it in a `with` for the time of a call. `about`: fields of its events."""
        return CallProgress(self, about, with_text)

    def begin(self, call: "CallProgress") -> None:
        self._calls.append(call)
        self._schedule()

    def end(self, call: "CallProgress") -> None:
        self._calls.remove(call)
        self._show_nothing()
        self._schedule()

    def _schedule(self) -> None:
        """Set the timer for the call that is due next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._calls:
            due = max(min(call.due_at for call in self._calls), self._shown_at + INTERVAL_SECONDS)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(due - time.monotonic(), 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        # The one that was shown least recently goes first, so that each is shown.
        call = min(self._calls, key=lambda one: one.due_at)
        if call.is_worth_showing(now):
            self._shown_at = now
            self._show(call.shown(now, self._redact))
        call.due_at = now + INTERVAL_SECONDS
        self._schedule()


@dataclass(eq=False, slots=True)
class CallProgress:
    """`bytes`: of the answer so far, with what is not shown of it. `due_at`: by the monotonic clock, as all times."""

    _progress: Progress
    _about: Mapping[str, Any]
    _with_text: bool
    bytes: int = 0
    began_at: float = field(default_factory=time.monotonic)
    due_at: float = 0.0
    _text: list[str] = field(default_factory=list)
    _chars: int = 0
    _shown_bytes: int = -1
    _shown_at: float = 0.0

    def has(self, size: int) -> None:
        """The answer has so many bytes by now."""
        self.bytes = size

    def text(self, piece: str) -> None:
        if self._with_text and self._chars <= TEXT_MAX_CHARS:
            self._text.append(piece)
            self._chars += len(piece)

    def is_worth_showing(self, now: float) -> bool:
        return self.bytes != self._shown_bytes or now - self._shown_at >= SILENCE_SECONDS

    def shown(self, now: float, redact: Callable[[str], str]) -> Mapping[str, Any]:
        self._shown_bytes, self._shown_at = self.bytes, now
        shown = {
            **self._about,
            "output_tokens": estimated_tokens(self.bytes),
            "seconds": round(now - self.began_at, 1),
        }
        if self._text and self._chars <= TEXT_MAX_CHARS:
            self._text = ["".join(self._text)]
            text = redact(self._text[0])
            shown["text"] = storable(text if len(text) <= TEXT_CHARS else f"…{text[-TEXT_CHARS:]}")
        return shown

    def __enter__(self) -> Self:
        self.due_at = self.began_at + MOMENT_SECONDS
        self._progress.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.end(self)
