"""The HTTP server's access log has no query strings, which may hold what nobody is to read in a log (a token, a
search). How its lines are written is `backplane.process.log`'s.
"""

import logging

from backplane.process.terminal_text import escaped

_PATH = 2
"""The arguments of a line of the access log: client, method, path with its query, version of HTTP, status."""


def clean_server_log() -> None:
    """Cleans the server's log from now on, however the server was started. A second call changes nothing."""
    logging.getLogger("uvicorn.access").addFilter(without_query)


def without_query(record: logging.LogRecord) -> bool:
    """A filter: changes the record, and lets it pass."""
    if isinstance(record.args, tuple) and len(record.args) > _PATH:
        arguments = list(record.args)
        arguments[_PATH] = escaped(str(arguments[_PATH]).partition("?")[0])
        record.args = tuple(arguments)
    return True
