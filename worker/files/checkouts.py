"""The checkouts of a run: one for each command that runs at a time, used again by later ones.

A step takes one at its first `pull` and gives it back when it has ended. The one that was used last differs least from
the workspace, so it is taken first: a run whose steps run one after another has one. Files go down and up under one
lock of the run, so a step finds what another one left either whole or not at all.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from backplane.workspace.attributes import AttributeRecord
from backplane.workspace.base import Workspace
from backplane.workspace.quota import Quota
from worker.files.checkout import Changes, Checkout, StepFiles


class Checkouts:
    """`base`, and names that begin with it, are this run's alone. `attributes`: the run's, shared by all of them.
    `log_line`: see `Checkout`."""

    def __init__(
        self,
        workspace: Workspace,
        quota: Quota,
        base: Path,
        attributes: AttributeRecord,
        log_line: Callable[[str], None],
    ) -> None:
        self.moving = asyncio.Lock()
        self._workspace = workspace
        self._attributes = attributes
        self._quota = quota
        self._base = base
        self._log_line = log_line
        self._all: list[Checkout] = []
        self._free: list[Checkout] = []

    def take(self) -> Checkout:
        if self._free:
            return self._free.pop()
        number = len(self._all) + 1
        base = self._base if number == 1 else self._base.with_name(f"{self._base.name}.{number}")
        checkout = Checkout(self._workspace, self._quota, base, attributes=self._attributes, log_line=self._log_line)
        self._all.append(checkout)
        return checkout

    def give_back(self, checkout: Checkout) -> None:
        self._free.append(checkout)

    @property
    def folders(self) -> list[Path]:
        """The folders to delete when no step of the run is carried out any more."""
        return [checkout.base for checkout in self._all]


class StepCheckout(StepFiles):
    """A step's use of a checkout. `close` it when the step has ended. A step that pulled nothing took no checkout."""

    def __init__(self, checkouts: Checkouts) -> None:
        self._checkouts = checkouts
        self._taken: Checkout | None = None

    @property
    def folder(self) -> Path:
        return self._checkout.folder

    @property
    def _checkout(self) -> Checkout:
        if self._taken is None:
            self._taken = self._checkouts.take()
        return self._taken

    async def pull(self) -> None:
        async with self._checkouts.moving:
            await self._checkout.pull()

    async def changes(self) -> Changes:
        return await self._checkout.changes()

    async def push(self, changes: Changes) -> tuple[str, ...]:
        async with self._checkouts.moving:
            return await self._checkout.push(changes)

    def close(self) -> None:
        if self._taken is not None:
            self._checkouts.give_back(self._taken)
            self._taken = None
