"""The process's own log, for operators: one structured line an event, on standard error.

Not the log of a run: what a run says are its events. No prompt, output or secret is logged here, only ids and errors.
Errors repeat what others wrote (a name of a file, a server's answer), so every text is cleaned here, on its way out: of
the secrets that the task works with, and of what would begin a line of its own or steer a terminal. JSON escapes that
by itself.
"""

import logging
import sys
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, TextIO, cast

import structlog

from backplane.log_stream import LogStream
from backplane.terminal_text import escaped

SERVER_LOGS = ("uvicorn", "uvicorn.error", "uvicorn.access")

_clean_text: ContextVar[Callable[[str], str] | None] = ContextVar("clean_text", default=None)


def clean_texts_of_this_task(clean: Callable[[str], str]) -> None:
    """Every text that this task, and those that it starts from here on, write to the process's log goes through
    `clean` first."""
    _clean_text.set(clean)


def configure(*, format: str, level: str, process: str) -> None:
    """`format` is console or json; `process` names the process in each line."""
    stream = LogStream(sys.stderr, as_json=format == "json")
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _clean,
            *([] if format == "json" else [_on_one_line]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, stream)),
        cache_logger_on_first_use=False,
    )
    # What libraries warn of, a line each; and none of them finds the standard log without an owner and takes it over.
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LibraryLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    guard_server_logs()
    structlog.contextvars.bind_contextvars(process=process)


def guard_server_logs() -> None:
    """Let the HTTP server's own log be written as this one is. It sets that up by itself, before or after this."""
    for name in SERVER_LOGS:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler.stream, LogStream):
                handler.setStream(LogStream(handler.stream))


def _clean(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    clean = _clean_text.get()
    if clean is not None:
        for name, value in entry.items():
            text = value if isinstance(value, str) else repr(value)
            if (cleaned := clean(text)) != text:
                entry[name] = cleaned
    return entry


def _on_one_line(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = _indented(value) if name == "exception" else escaped(value)
        elif (shown := escaped(repr(value))) != repr(value):
            entry[name] = shown
    return entry


def _indented(traceback: str) -> str:
    """Its lines, so that none of them can be taken for a line of the log."""
    return "\n".join(f"    {escaped(line)}" for line in traceback.split("\n"))


class LibraryLine(logging.Formatter):
    """What a library logs by the standard module."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(_cleaned(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:
        return _indented(_cleaned(super().formatException(ei)))


def _cleaned(text: str) -> str:
    clean = _clean_text.get()
    return text if clean is None else clean(text)
