"""Looks now and then what containers use, and shows it in this controller's metrics.

Each controller looks at the engine of its own machine, for the kinds that are containers there, and at its cluster for
sandboxes that are Jobs. Where the cluster has no metrics API (`metrics.k8s.io`), or does not let this controller read
it, the controller logs that once and does not ask again. The network of Jobs is not in that API.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from backplane.containers.engine import ContainerEngine
from backplane.containers.use import ContainerUse
from backplane.errors import Unavailable
from controller.containers.metrics import ContainerKind, ContainerUseMetrics

log = structlog.get_logger()


class CannotBeRead(Exception):
    """There is no such thing here, nor will there be: its words say why."""


class UsePlace(Protocol):
    async def use(self) -> Sequence[ContainerUse]:
        """Of each container that runs. Raises Unavailable, CannotBeRead."""


class EnginePlace:
    """The containers with this label at an engine."""

    def __init__(self, engine: ContainerEngine, label: str) -> None:
        self._engine = engine
        self._label = label

    async def use(self) -> Sequence[ContainerUse]:
        return await self._engine.use(self._label)


class ContainerUseLoop:
    def __init__(
        self, places: dict[ContainerKind, UsePlace], metrics: ContainerUseMetrics, *, period_seconds: float
    ) -> None:
        self._places = dict(places)
        self._metrics = metrics
        self._period = period_seconds
        self._away = set[ContainerKind]()

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._period)

    async def look(self) -> None:
        for kind, place in list(self._places.items()):
            try:
                self._metrics.read(kind, await place.use())
                self._away.discard(kind)
            except Unavailable as error:
                self._metrics.read(kind, None)
                if kind not in self._away:
                    log.warning("cannot read what containers use", kind=kind, error=error.message)
                self._away.add(kind)
            except CannotBeRead as error:
                self._metrics.read(kind, None)
                del self._places[kind]
                log.info("what containers use cannot be read here and is not asked again", kind=kind, error=str(error))
