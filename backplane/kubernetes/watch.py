"""All objects that a label selector selects, followed for ever: a list, then a watch from there, again after each end.

The connection may break, the server may forget how far a watch was, or send what nobody can read. The follower sees
nothing of that: it only gets what there is, what changed and what went. While the server cannot be reached `trouble`
says why.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from backplane.errors import PlatformError
from backplane.kubernetes.api import ApiRefused, ApiServer
from backplane.process.retrying import pauses

LASTING_SECONDS = 5.0
"""A watch that lasted so long was no failure: the pause after it is short again."""

log = structlog.get_logger(__name__)

Json = dict[str, Any]


class Follower(Protocol):
    """What is called with the JSON of objects, in the order of the changes."""

    def listed(self, items: list[Json]) -> None:
        """These are all that there are now."""

    def changed(self, item: Json) -> None: ...
    def removed(self, item: Json) -> None: ...


class ObjectWatch:
    """`list` once, then `keep`. `name` is what the log calls the objects; `refused` makes an error of what the server
    does not allow."""

    def __init__(
        self,
        api: ApiServer,
        path: str,
        selector: str,
        follower: Follower,
        *,
        name: str,
        refused: Callable[[ApiRefused], PlatformError],
    ) -> None:
        self.trouble = ""
        """Why the server cannot be reached at the moment; empty while the watch goes on."""
        self._api = api
        self._path = path
        self._query = [("labelSelector", selector)]
        self._follower = follower
        self._name = name
        self._refused = refused
        self._version = ""

    async def list(self) -> None:
        """Begin anew with all objects that there are. Raises Unavailable, and what `refused` makes."""
        try:
            answer = await self._api.call("GET", self._path, self._query)
        except ApiRefused as refused:
            raise self._refused(refused) from None
        self._follower.listed(answer["items"])
        self._version = answer["metadata"]["resourceVersion"]
        self.trouble = ""

    async def keep(self) -> None:
        """Follow the objects through every loss of the connection. Never returns."""
        clock = asyncio.get_running_loop().time
        wait = pauses()
        while True:
            begun = clock()
            try:
                if not self._version:
                    await self.list()
                await self._follow()
            except ApiRefused as refused:
                # Whatever it is that the server does not like about this watch, a new list is a clean start.
                self._version = ""
                log.info("a watch begins anew", objects=self._name, cause=refused.message)
            except PlatformError as error:
                if not self.trouble:
                    log.warning("a watch is interrupted", objects=self._name, cause=error.message)
                self.trouble = error.message
            except Exception:
                # Whatever the server sent that cannot be read: without this watch no wait would ever end.
                self._version = ""
                log.exception("a watch begins anew", objects=self._name)
            if clock() - begun > LASTING_SECONDS:
                wait = pauses()
            await asyncio.sleep(next(wait))

    async def _follow(self) -> None:
        async with contextlib.aclosing(self._api.watch(self._path, self._query, self._version)) as events:
            async for kind, item in events:
                self.trouble = ""
                if kind == "DELETED":
                    self._follower.removed(item)
                elif kind != "BOOKMARK":
                    self._follower.changed(item)
                self._version = item["metadata"]["resourceVersion"]
