"""The error of a server that closes a connection while it is being opened.

uvloop gives the socket of a closed connection as None, and anyio (4.16), on which httpx stands, asks that for its
address. So such a server is seen as an AttributeError where a lost connection is meant, and nothing would try again.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hang_ups_as(error: type[Exception]) -> Iterator[None]:
    """Raises `error`, the client library's own of a connection that cannot be opened, where a server hangs up."""
    try:
        yield
    except AttributeError as found:
        if found.name != "getpeername" or found.obj is not None:
            raise
        raise error("the server closed the connection while it was being opened") from found
