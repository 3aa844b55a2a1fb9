"""How far a request came that changes something, and so what it may have done when it failed.

Before a byte of it left (the name does not resolve, nothing accepts the connection, TLS fails) it has done nothing.
After that only an answer shows it, and only one that says that the request was not taken:

    425, 429, 501, 505, other 4xx   the server refuses it: nothing was done
    307, 308                        it is to be sent somewhere else: nothing was done here
    2xx                             it was done
    301, 302, 303                   it was done, mostly: browsers and servers take them so for POST
    408, other 5xx, none            nobody knows (a 408 is also what a proxy says when the server behind it is slow)

RFC 9110 (9.2.2, 15) and RFC 6585 (4) have the statuses.
"""

from typing import Any

from worker.tools.base import Effect

KEEP_METHOD = frozenset((307, 308))
_REFUSED = frozenset((501, 505))
_REQUEST_TIMEOUT = 408


class RequestProgress:
    """The progress of one request, with those to which its redirects lead."""

    def __init__(self) -> None:
        self._sent = False
        self._status: int | None = None
        self._before = Effect.NONE

    async def trace(self, event: str, details: Any) -> None:
        """As httpx's extension `trace`: called before and after each part of a request."""
        if event.endswith("send_request_headers.started"):
            self._sent, self._status = True, None

    def answered(self, status: int) -> None:
        self._status = status

    def redirected(self, status: int) -> None:
        """The answer sends it on; what follows is another request."""
        if status not in KEEP_METHOD:
            self._before = Effect.POSSIBLE
        self._sent, self._status = False, None

    @property
    def effect(self) -> Effect:
        """Of a request that failed, as a whole."""
        if self._before is not Effect.NONE or not self._sent:
            return self._before
        return effect_of_status(self._status) if self._status is not None else Effect.POSSIBLE


def effect_of_status(status: int) -> Effect:
    """Of a request that had this answer, and failed all the same."""
    if 200 <= status < 300:
        return Effect.CERTAIN
    refused = 400 <= status < 500 and status != _REQUEST_TIMEOUT
    return Effect.NONE if refused or status in KEEP_METHOD or status in _REFUSED else Effect.POSSIBLE
