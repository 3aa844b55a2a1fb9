"""The HTTP server's own log. Its access log has no query strings, which may hold what nobody is to read in a log (a
token, a search), and what it repeats of a request or of an error begins no line of its own.
"""

import logging

from backplane.process_log import LibraryLine
from backplane.terminal_text import escaped

_PATH = 2
"""Of the arguments of a line of the access log: client, method, path with its query, version of HTTP, status."""


def clean_server_log() -> None:
    """From here on, in whichever way the server was started. Again, it changes nothing."""
    logging.getLogger("uvicorn.access").addFilter(without_query)
    logging.getLogger("uvicorn.error").addFilter(with_marked_traceback)


def without_query(record: logging.LogRecord) -> bool:
    """A filter: changes the record, and lets it pass."""
    if isinstance(record.args, tuple) and len(record.args) > _PATH:
        arguments = list(record.args)
        arguments[_PATH] = escaped(str(arguments[_PATH]).partition("?")[0])
        record.args = tuple(arguments)
    return True


def with_marked_traceback(record: logging.LogRecord) -> bool:
    """The same."""
    if record.exc_info:
        record.exc_text = LibraryLine().formatException(record.exc_info)
    return True
