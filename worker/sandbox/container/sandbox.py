"""A command in a Docker or Podman container of its own, for machines with an image for foreign code.

Each command is one `run --rm`. /workspace is the checkout's own folder, mounted and not copied: what the worker
measures, takes over and keeps is what the command wrote. So the engine has to be on the worker's machine, and run as a
user that may see the worker's folders.

A container is named after its call. A call that comes a second time ends what the first one left, and begins anew; the
output of the first one is not published twice, because a call whose command has begun fails for good when the engine is
lost. Nothing of a container stays; those of a worker that was killed go with the next one that starts.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog

from backplane.domain import sandbox_labels
from backplane.errors import Unavailable
from backplane.process.tasks import in_thread, uninterrupted
from worker.sandbox.base import (
    Command,
    Isolation,
    NoticeSink,
    Outcome,
    OutputSink,
    Sandbox,
    SandboxError,
)
from worker.sandbox.container.arguments import ContainerSettings, Mounted, container_name, run_words
from worker.sandbox.container.container import Container
from worker.sandbox.container.engine import refusal
from worker.sandbox.container.handover import hand_over, input_file, variables_file
from worker.sandbox.container.owner import is_gone, own_mark
from worker.sandbox.local.disk import DiskWatch, Unseen
from worker.sandbox.local.egress_socket import INSIDE, egress_socket
from worker.sandbox.local.pipes import OutputPipe
from worker.sandbox.local.watch import first_end

KIND = "container"

log = structlog.get_logger(__name__)


class ContainerSandbox(Sandbox):
    """Made by `open_container_sandbox`. Any number of commands may run at once; it keeps nothing between them."""

    def __init__(
        self,
        settings: ContainerSettings,
        *,
        started: Callable[[str, str, float], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self.engine = settings.engine
        self.image = settings.image
        self._settings = settings
        self._started = started
        self._failed = failed
        self._mark = own_mark()
        self._disk = DiskWatch()
        self.isolation = Isolation(settings.engine.kind.value, isolated=True)

    async def run(self, command: Command, folder: Path, output: OutputSink, notice: NoticeSink) -> Outcome:
        given_at = time.monotonic()
        try:
            async with egress_socket(command, INSIDE) as (with_egress, egress):
                with ExitStack() as opened:
                    mounted = await self._mount(with_egress, folder, egress, opened)
                    return await self._run(with_egress, mounted, output, notice, given_at)
        except (Unavailable, SandboxError) as error:
            self._failed(KIND, error.code)
            raise

    async def _mount(self, command: Command, folder: Path, egress: Path | None, opened: ExitStack) -> Mounted:
        await in_thread(hand_over, folder)
        given = await in_thread(input_file, command.stdin, opened) if command.stdin else None
        variables = await in_thread(variables_file, command.environment, opened) if command.environment else None
        return Mounted(folder, given, variables, egress)

    async def _run(
        self, command: Command, mounted: Mounted, output: OutputSink, notice: NoticeSink, given_at: float
    ) -> Outcome:
        settings = self._settings
        name, words = container_name(command.call), run_words(settings, command, mounted, self._mark)
        with OutputPipe(output) as out, Container(self.engine, self.image, name, words, settings.pass_fds) as container:
            try:
                if not await container.start(out, settings.start_seconds):
                    notice("a container of an earlier try of this command was still there, and was removed")
                    await container.start(out, settings.start_seconds)
                began = time.monotonic()
                self._started(KIND, "cold", began - given_at)
                out.close_write_end()
                ending, code, detail = await first_end(
                    container.exited(),
                    self._disk.full(command.call.user_id, mounted.folder, command.limits, Unseen()),
                    command.limits,
                    out,
                )
                lasted = time.monotonic() - began
            finally:
                await uninterrupted(container.remove())
            out.drain()
            if out.broken.done():
                out.broken.result()
            return Outcome(code, ending, lasted, detail)

    async def close(self) -> None:
        """No container is kept, only the list of system calls."""
        if self._settings.system_calls is not None:
            self._settings.system_calls.close()

    async def remove_abandoned(self) -> None:
        """Remove the containers of workers of this machine that are no more."""
        label = f"label={sandbox_labels.PART}={sandbox_labels.SANDBOX}"
        answer = await self.engine.ask("ps", "--all", "--quiet", "--no-trunc", "--filter", label)
        if answer.code != 0:
            raise refusal(self.engine, self.image, answer.error)
        if not (found := answer.output.split()):
            return
        # One that goes meanwhile makes the code 1; the others are listed all the same.
        form = f'{{{{.Id}}}} {{{{index .Config.Labels "{sandbox_labels.WORKER}"}}}}'
        answer = await self.engine.ask("container", "inspect", "--format", form, *found)
        marks = (line.split() for line in answer.output.splitlines())
        gone = [parts[0] for parts in marks if len(parts) == 2 and is_gone(parts[1])]
        if gone:
            log.info("removing what workers that are no more have left", containers=len(gone))
            await self.engine.remove(*gone)
