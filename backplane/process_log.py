"""The process's own log, for operators: one structured line an event, on standard error.

Not the log of a run: what a run says are its events. No prompt, output or secret is logged here, only ids and errors.
"""

import logging
import sys

import structlog


def configure(*, format: str, level: str, process: str) -> None:
    """`format` is console or json; `process` names the process in each line."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    # What libraries warn of, a line each; and none of them finds the standard log without an owner and takes it over.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    structlog.contextvars.bind_contextvars(process=process)
