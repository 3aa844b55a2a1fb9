"""The sandbox as a Docker or Podman container, from the settings, with the first engine that works."""

import os
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from backplane.errors import PlatformError, Unavailable
from backplane.process.tasks import in_thread
from backplane.settings import Settings
from worker.metrics import WorkerMetrics
from worker.sandbox.base import Call, Command, Limits, Sandbox, SandboxImageNotFound
from worker.sandbox.container.arguments import ContainerSettings
from worker.sandbox.container.engine import Engine, identify
from worker.sandbox.container.sandbox import ContainerSandbox
from worker.sandbox.container.seccomp import SystemCalls, strengthened

GET_ENGINE = (
    "install podman or docker and let the worker's user run containers, or name the program and its options in "
    "SANDBOX_CONTAINER_ENGINE (docs/sandbox.md)"
)

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_sandbox(settings: Settings, worker_id: str, metrics: WorkerMetrics) -> AsyncIterator[Sandbox]:
    sandbox = await open_container_sandbox(
        engine=settings.sandbox_container_engine,
        image=settings.sandbox_image,
        runtime=settings.sandbox_container_runtime,
        tmp_bytes=settings.sandbox_tmp_bytes,
        start_seconds=settings.sandbox_start_seconds,
        started=metrics.sandbox_started,
        failed=metrics.sandbox_failed,
    )
    try:
        yield sandbox
    finally:
        await sandbox.close()


async def open_container_sandbox(
    *,
    engine: str,
    image: str,
    runtime: str,
    tmp_bytes: int,
    start_seconds: float,
    started: Callable[[str, str, float], None],
    failed: Callable[[str, str], None],
) -> ContainerSandbox:
    """The first engine that runs a container of `image`, tried out; `engine` is a program and its options as a shell
    reads them, or empty for podman and then docker. Pulls the image when it is missing, and removes the containers of
    workers that are no more. `started` and `failed` count, as `WorkerMetrics.sandbox_started` and `sandbox_failed` do.

    Raises SandboxImageNotFound when the image is nowhere, Unavailable when no engine works, each with why.
    """
    candidates = [shlex.split(engine)] if engine else [[name] for name in ("podman", "docker") if shutil.which(name)]
    failures: list[tuple[str, PlatformError]] = []
    for words in candidates:
        try:
            found = await identify(words, runtime)
            volumes = await _volumes(found, image)
            made = ContainerSettings(found, image, volumes, await _system_calls(found), tmp_bytes, start_seconds)
            sandbox = ContainerSandbox(made, started=started, failed=failed)
            try:
                await sandbox.remove_abandoned()
                await _try_out(sandbox)
            except BaseException:
                await sandbox.close()
                raise
        except PlatformError as error:
            failures.append((" ".join(words), error))
        else:
            return sandbox
    tried = "; ".join(f"{name}: {error.message}" for name, error in failures) or "neither program is in PATH"
    message = f"SANDBOX is container and no container can be run here: {GET_ENGINE}. Tried: {tried}"
    if any(isinstance(error, SandboxImageNotFound) for _, error in failures):
        raise SandboxImageNotFound(message)
    raise Unavailable(message, part="sandbox")


async def _system_calls(engine: Engine) -> SystemCalls | None:
    """The engine's list of system calls, made stricter; None where the engine's own is as it should be."""
    if not engine.system_calls:
        return None
    try:
        return await in_thread(lambda: SystemCalls(strengthened(Path(engine.system_calls).read_text("utf-8"))))
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"cannot use the list of system calls in {engine.system_calls}: {error}"
        raise Unavailable(message, part="sandbox") from error


async def _volumes(engine: Engine, image: str) -> tuple[str, ...]:
    volumes = await engine.image_volumes(image)
    if volumes is None:
        log.info("pulling the image of the sandbox; this may take minutes", engine=engine.name, image=image)
        await engine.pull(image)
        volumes = await engine.image_volumes(image)
    return volumes or ()


async def _try_out(sandbox: ContainerSandbox) -> None:
    limits = Limits(
        wall_seconds=20,
        memory_bytes=256 * 1024**2,
        cpus=1,
        cpu_seconds=10,
        processes=16,
        file_bytes=1024**2,
        disk_bytes=1024**2,
        files=10,
    )
    output = bytearray()
    with tempfile.TemporaryDirectory(prefix="sandbox-probe-", ignore_cleanup_errors=True) as folder:
        call = Call("", f"probe-{os.path.basename(folder)}", "probe", 0, 0)
        command = Command(("python3", "-c", "open('here', 'w')"), limits, call)
        outcome = await sandbox.run(command, Path(folder), output.extend, log.info)
        seen = "here" in os.listdir(folder)
    if outcome.exit_code != 0:
        text = output.decode("utf-8", "replace")
        raise Unavailable(f"a first command ended with {outcome.exit_code}: {text}{outcome.detail}", part="sandbox")
    if not seen:
        raise Unavailable(
            "what a container writes does not arrive: the engine has to be on this machine and see its temporary "
            "folders under the same path",
            part="sandbox",
        )
