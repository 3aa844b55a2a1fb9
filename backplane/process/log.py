"""The process's own log, for operators: one structured line for each event, on standard error.

It is not the log of a run, which consists of events. No prompt, output or secret is logged here, only ids and errors.
Errors repeat what others wrote (a name of a file, a server's answer), so every text is cleaned here, on its way out: of
the secrets that the task works with, and of characters that would begin a new line or steer a terminal. JSON escapes
that by itself.

What libraries and the HTTP server log by Python's `logging` goes the same way, so with LOG_FORMAT=json every line is
JSON, tracebacks and warnings too. What this does not do: turn over or ship files. Whoever runs the process keeps what
it writes.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from pydantic import ValidationError

from backplane.domain.validation_messages import sentence_of
from backplane.process.log_stream import LogStream, last_words
from backplane.process.terminal_text import escaped

SERVER_LOGS = ("uvicorn", "uvicorn.error", "uvicorn.access")
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)

_clean_text: ContextVar[Callable[[str], str] | None] = ContextVar("clean_text", default=None)

_OF_LINES = ("stack", "exception")
"""Fields of several lines, which stand below the line of the log."""

log = structlog.get_logger()


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
        else structlog.dev.ConsoleRenderer(colors=True)
        if stream.isatty()
        else _in_words
    )

    def name_process(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        entry.setdefault("process", process)
        return entry

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name_process,
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
    root = logging.getLogger()
    if not root.handlers:
        # None of the libraries finds the standard log without an owner and takes it over.
        root.addHandler(LibraryLog())
        root.setLevel(logging.WARNING)
    take_over_server_logs()


def take_over_server_logs() -> None:
    """Let the HTTP server's own log be written as this one is. It sets that up by itself, before or after this. Where
    whoever started it gave it a configuration of their own, that stays."""
    for name in SERVER_LOGS:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if type(handler.formatter).__module__.startswith("uvicorn."):
                logger.removeHandler(handler)
                logger.propagate = True
            elif isinstance(handler, logging.StreamHandler) and not isinstance(handler.stream, LogStream):
                handler.setStream(LogStream(handler.stream))


def own_this_process() -> None:
    """For a process that does nothing else: warnings, and faults that end a thread or the process, become lines of the
    log."""
    logging.captureWarnings(True)
    sys.excepthook = _on_fault
    threading.excepthook = lambda fault: _on_fault(fault.exc_type, fault.exc_value, fault.exc_traceback)
    sys.unraisablehook = lambda fault: _on_fault(fault.exc_type, fault.exc_value, fault.exc_traceback)


def _on_fault(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    log.critical("a fault that nothing expected", exc_info=(kind, error, trace))


def refuse_to_start(text: str) -> None:
    """Say why this process does not start, before it has settings: JSON where the environment asks for it."""
    wanted = next((value for name, value in os.environ.items() if name.upper() == "LOG_FORMAT"), "")
    say_last(text, as_json=wanted.lower() == "json")


def say_last(text: str, *, as_json: bool) -> None:
    """Say why this process ends, to whoever started it."""
    if as_json:
        fields = {"event": text, "level": "critical", "timestamp": datetime.now(UTC).isoformat()}
        text = json.dumps(fields)
    last_words(text)


class LibraryLog(logging.Handler):
    """What is logged by the standard module, as lines of this log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = max((level for level in _LEVELS if level <= record.levelno), default=logging.DEBUG)
        text = record.getMessage() if record.args else str(record.msg)
        # Nothing can report that a line could not be logged.
        with suppress(Exception):
            log.log(level, text.strip(), logger=record.name, exc_info=record.exc_info or None)


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
            entry[name] = _indented(value) if name in _OF_LINES else escaped(value)
        elif (shown := escaped(repr(value))) != repr(value):
            entry[name] = shown
    return entry


def _in_words(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> str:
    """A line as structlog's renderer for terminals writes it, without its colours and in a sixth of its time: each
    request has one."""
    timestamp, level, event = entry.pop("timestamp", ""), entry.pop("level", ""), entry.pop("event", "")
    below = [entry.pop(name) for name in _OF_LINES if name in entry]
    values = " ".join(
        f"{name}={value if isinstance(value, str) and value and ' ' not in value else repr(value)}"
        for name, value in sorted(entry.items())
    )
    line = f"{timestamp} [{level:<9}] {event!s:<30} {values}".rstrip()
    return "\n".join([line, *below])


def _indented(traceback: str) -> str:
    """The traceback's lines, indented so that none of them can be taken for a line of the log."""
    return "\n".join(f"    {escaped(line)}" for line in traceback.rstrip("\n").split("\n"))


def complaint(error: ValidationError) -> str:
    """What is wrong with the environment: one line for each fault, with the variable's name. Values are not shown."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in fault["loc"]).upper() or "settings"
        lines.append(f"{name}: {sentence_of(fault)}")
    return "\n".join(["the settings cannot be used:", *lines])
