"""A model server that is many: machines that come and go while this worker runs (`backplane.store`, `model_servers`).

Runs name the pool, and wait in its one line, which has as many slots as all machines together: so a new machine
shortens the line at once. A call that has its turn goes to the machine with the fewest calls, and takes a slot there
too: by these the controller sees when a machine that is to stop has no calls any more. A machine that cannot be reached
is left out for a while; the call is tried again as any other, and finds another machine.

The table is read every few seconds, by workers whose settings name a provider of machines, and by no others.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import structlog

from backplane.domain.gpus import RegisteredServer
from backplane.errors import Unavailable
from backplane.limits.slots.base import NO_SLOTS, SlotRequest, Slots
from backplane.settings import fixed
from backplane.store import ModelServerTable
from worker.llm.base import (
    CallLimits,
    ModelRefused,
    ModelRequest,
    ModelResponse,
    ModelServer,
    ModelTimeout,
    ModelUnavailable,
    SizeSink,
    TextSink,
    Usage,
)
from worker.llm.catalogue import ServerSpec

LEFT_OUT_SECONDS = 30.0
"""How long a machine that could not be reached gets no calls, as long as there are others."""
EVERY_MACHINE = "machine"
"""In place of the user: the pool's line has considered whose turn it is."""

log = structlog.get_logger()

OpenServer = Callable[[ServerSpec], ModelServer]
SpecOf = Callable[[RegisteredServer], ServerSpec]


@dataclass(slots=True, eq=False)
class _Member:
    registered: RegisteredServer
    spec: ServerSpec
    server: ModelServer
    calls: int = 0
    left_out_until: float = 0.0
    is_gone: bool = False
    models: frozenset[str] = field(default_factory=frozenset)


class ServerPool(ModelServer):
    """`spec_of`: how a member is called; `open_server`: its adapter."""

    def __init__(
        self, name: str, table: ModelServerTable, slots: Slots, spec_of: SpecOf, open_server: OpenServer
    ) -> None:
        self.name = name
        self._table = table
        self._slots = slots
        self._spec_of = spec_of
        self._open = open_server
        self._members: dict[str, _Member] = {}

    @property
    def spec(self) -> ServerSpec:
        """As one server, now."""
        return ServerSpec(self.name, "ollama", "", slots=self._all_slots or NO_SLOTS)

    @property
    def _all_slots(self) -> int:
        return sum(member.spec.slots for member in self._serving)

    @property
    def _serving(self) -> list[_Member]:
        return [member for member in self._members.values() if not member.registered.draining]

    async def run(self) -> None:
        """Read which machines there are, until this is cancelled."""
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                log.warning("nobody knows whether there are other GPU machines", error=error.message)
            await asyncio.sleep(fixed.GPU_SERVERS_SECONDS)

    async def refresh(self) -> None:
        """Raises Unavailable."""
        there = {one.name: one for one in await self._table.list_all() if one.pool == self.name}
        for name, member in list(self._members.items()):
            registered = there.pop(name, None)
            if registered is None or (registered.url, registered.slots) != (
                member.registered.url,
                member.registered.slots,
            ):
                del self._members[name]
                member.is_gone = True
                await self._close_if_idle(member)
                if registered is not None:
                    there[name] = registered
            else:
                member.registered = registered
        for registered in there.values():
            spec = self._spec_of(registered)
            member = _Member(registered, spec, self._open(spec), models=frozenset(registered.models))
            self._members[registered.name] = member
            log.info("a GPU machine takes calls", server=registered.name, slots=spec.slots)
        self._slots.resize(self.name, parallel=self._all_slots or NO_SLOTS)

    async def complete(
        self,
        model: str,
        request: ModelRequest,
        limits: CallLimits,
        on_text: TextSink,
        on_size: SizeSink | None = None,
    ) -> ModelResponse:
        async with self._at_one(model) as server:
            return await server.complete(model, request, limits, on_text, on_size)

    async def embed(self, model: str, texts: Sequence[str], limits: CallLimits) -> tuple[list[list[float]], Usage]:
        async with self._at_one(model) as server:
            return await server.embed(model, texts, limits)

    async def models(self) -> list[str]:
        return sorted({model for member in self._serving for model in member.models})

    async def close(self) -> None:
        for member in self._members.values():
            await member.server.close()

    @asynccontextmanager
    async def _at_one(self, model: str) -> AsyncIterator[ModelServer]:
        member = await self._choose(model)
        call_id, member.calls = str(uuid4()), member.calls + 1
        # The pool's line has the run's own place; this one is a moment's.
        request = SlotRequest(member.spec.name, model, EVERY_MACHINE, f"machine-{call_id}", call_id)
        slots, models = member.spec.slots, member.spec.max_loaded
        try:
            async with self._slots.hold(request, parallel=slots, models=models, on_wait=lambda _: None):
                yield member.server
        except (ModelUnavailable, ModelTimeout):
            member.left_out_until = time.monotonic() + LEFT_OUT_SECONDS
            raise
        finally:
            member.calls -= 1
            await self._close_if_idle(member)

    async def _choose(self, model: str) -> _Member:
        """The machine with the fewest calls for its slots. Raises ModelUnavailable, ModelRefused."""
        there = self._serving
        offering = [one for one in there if not one.models or {model, f"{model}:latest"} & one.models]
        if not there:
            raise ModelUnavailable(f"model server {self.name}: no GPU machine is there now")
        if not offering:
            known = ", ".join(await self.models())
            raise ModelRefused(f"model server {self.name}: no GPU machine has {model!r} (they have: {known})")
        now = time.monotonic()
        reachable = [one for one in offering if one.left_out_until <= now] or offering
        loads = await self._loads(reachable)
        jitter = random.random
        return min(reachable, key=lambda one: (max(loads.get(one.spec.name, 0), one.calls) / one.spec.slots, jitter()))

    async def _loads(self, members: Sequence[_Member]) -> Mapping[str, int]:
        """Without Redis only this worker's own calls are known."""
        if len(members) == 1:
            return {}
        try:
            found = await self._slots.load([one.spec.name for one in members])
        except Unavailable:
            return {}
        return {name: load.running + load.waiting for name, load in found.items()}

    async def _close_if_idle(self, member: _Member) -> None:
        if member.is_gone and not member.calls:
            await member.server.close()
