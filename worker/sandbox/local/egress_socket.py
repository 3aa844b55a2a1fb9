"""The way out of a sandbox on this machine: a socket in a folder of the worker's own, shown inside as one file."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from backplane.process.tasks import end
from worker.sandbox.base import EGRESS_VARIABLE, Command, Egress

INSIDE = "/run/egress.sock"
HEAD_BYTES = 64 * 1024


@asynccontextmanager
async def egress_socket(command: Command, inside: str | None) -> AsyncIterator[tuple[Command, Path | None]]:
    """The command with the variable that names its way out, and where the socket lies outside. `inside`: where it will
    be seen; None: where it lies. A command without a way out is given back as it is."""
    if command.egress is None:
        yield command, None
        return
    with tempfile.TemporaryDirectory(prefix="egress-") as folder:
        path = Path(folder, "socket")
        served = _Served(command.egress)
        server = await asyncio.start_unix_server(served.serve, path, limit=HEAD_BYTES)
        # A container may have another user inside; only the worker's gets into the folder outside.
        os.chmod(path, 0o666)  # noqa: S103
        try:
            yield replace(command, environment={**command.environment, EGRESS_VARIABLE: inside or str(path)}), path
        finally:
            server.close()
            await end(*served.tasks)


class _Served:
    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._egress(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            # The server's own callback would log it as a fault.
            return
        finally:
            self.tasks.discard(task)
