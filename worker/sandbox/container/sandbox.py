"""A command in a Docker or Podman container of its own, for machines with an image for foreign code.

One `run --rm` a command, in the foreground, so that the engine's program is held like any child process. /workspace is
the checkout's own folder, mounted and not copied: what is measured, taken over and kept by the worker is what the
command wrote. So the engine has to be on the worker's machine, and run as a user that may see the worker's folders.

Process 1 of the container is a small shell script. It takes the exit status of whatever loses its parent, cannot be
killed from within, joins output and error in one pipe (an engine moves the two apart, and mixes up their order), and
says on its own standard error, which no command has, when the command begins, how it ended, and whether the kernel
killed something for the container's memory. An end is believed only where that report and the exit code of the
engine's program do not contradict each other, for the code alone may as well be an engine's failure.

What a command reads is a file that is mounted too, for Podman gives up the rest of the output when a command ends
before it has read all that comes through a pipe. So are its variables: they may be secrets, and what the engine is told
can be seen by every user of the machine (its arguments) or whoever may ask the engine (`inspect`).

A container is named after its call. A call that comes a second time ends what the first had left, and begins anew; the
output that the first had given is not told twice, because a call whose command has begun fails for good when the
engine is lost. Nothing of a container stays; those of a worker that was killed go with the next one that starts.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import resource
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import structlog

from backplane.domain import sandbox_labels
from backplane.errors import PlatformError, Unavailable
from backplane.process.tasks import in_thread, uninterrupted
from backplane.workspace.files import open_folder
from worker.sandbox.base import (
    EVERYWHERE,
    UMASK,
    Call,
    Command,
    Ending,
    Isolation,
    Limits,
    NoticeSink,
    Outcome,
    OutputSink,
    Sandbox,
    SandboxError,
    SandboxImageNotFound,
    SandboxRefused,
)
from worker.sandbox.container.engine import PROXY_NAMES, Engine, Kind, identify, refusal
from worker.sandbox.container.owner import is_gone, own_mark
from worker.sandbox.container.seccomp import SystemCalls, strengthened
from worker.sandbox.local.disk import DiskWatch, Unseen
from worker.sandbox.local.egress_socket import INSIDE, egress_socket
from worker.sandbox.local.pipes import OutputPipe
from worker.sandbox.local.process import EXTRA_PROCESSES, OPEN_FILES, SIGNALS_OF_LIMITS
from worker.sandbox.local.watch import first_end

KIND = "container"
USER_ID = 1000
SHARED_MEMORY_BYTES = 64 * 1024**2
LEAST_PROCESSES = 16
"""What an OCI runtime needs until the container's own first process is there."""

GET_ENGINE = (
    "install podman or docker and let the worker's user run containers, or name the program and its options in "
    "SANDBOX_CONTAINER_ENGINE (docs/sandbox.md)"
)

_INPUT = "/run/sandbox-input"
_VARIABLES = "/run/sandbox-variables"
_FIRST_PROCESS = f"""
exec 9>&2 2>/dev/null
umask {UMASK:04o}
[ -e {_INPUT} ] && exec < {_INPUT}
echo sandbox-started >&9
([ -e {_VARIABLES} ] && . {_VARIABLES}; exec "$@" 2>&1 9>&-)
code=$?
echo "sandbox-ended $code" >&9
for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ -r $file ] && while read -r name count; do echo "$name $count" >&9; done < $file
done
exit $code
"""
_STARTED = b"sandbox-started\n"
_ENDED = re.compile(rb"^sandbox-ended (\d+)$", re.MULTILINE)
_OOM_KILLS = re.compile(rb"^oom_kill [1-9]", re.MULTILINE)
_REPORT_BYTES = 64 * 1024

_SETTLE_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0
_MOST_PROCESSES = 2**20
_NAME_TAKEN = "is already in use"

log = structlog.get_logger(__name__)


class ContainerSandbox(Sandbox):
    """Made by `open_container_sandbox`. Any number of commands may run at once; it holds nothing between them."""

    def __init__(
        self,
        engine: Engine,
        image: str,
        *,
        volumes: tuple[str, ...],
        system_calls: SystemCalls | None,
        tmp_bytes: int,
        start_seconds: float,
        started: Callable[[str, str, float], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self.engine = engine
        self.image = image
        self._temporary = tuple(dict.fromkeys(("/tmp", *volumes)))  # noqa: S108
        self._system_calls = system_calls
        self._tmp_bytes = tmp_bytes
        self._start_seconds = start_seconds
        self._started = started
        self._failed = failed
        self._mark = own_mark()
        self._disk = DiskWatch()
        self.isolation = Isolation(engine.kind.value, isolated=True)

    async def run(self, command: Command, folder: Path, output: OutputSink, notice: NoticeSink) -> Outcome:
        try:
            return await self._run(command, folder, output, notice)
        except (Unavailable, SandboxError) as error:
            self._failed(KIND, error.code)
            raise

    async def _run(self, command: Command, folder: Path, output: OutputSink, notice: NoticeSink) -> Outcome:
        given_at = time.monotonic()
        async with egress_socket(command, INSIDE) as (with_egress, egress):
            return await self._run_in(with_egress, folder, output, notice, egress, given_at)

    async def _run_in(
        self,
        command: Command,
        folder: Path,
        output: OutputSink,
        notice: NoticeSink,
        egress: Path | None,
        given_at: float,
    ) -> Outcome:
        await in_thread(_hand_over, folder)
        with ExitStack() as opened:
            out = opened.enter_context(OutputPipe(output))
            given = await in_thread(_input_file, command.stdin, opened) if command.stdin else None
            variables = await in_thread(_variables_file, command.environment, opened) if command.environment else None
            name, words = container_name(command.call), self._words(command, folder, given, variables, egress)
            container = opened.enter_context(_Container(self.engine, self.image, name, words, self._inherited()))
            try:
                if not await container.start(out, self._start_seconds):
                    notice("a container of an earlier try of this command was still there, and was removed")
                    await container.start(out, self._start_seconds)
                began = time.monotonic()
                self._started(KIND, "cold", began - given_at)
                out.close_write_end()
                ending, code, detail = await first_end(
                    container.exited(),
                    self._disk.full(command.call.user_id, folder, command.limits, Unseen()),
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
        if self._system_calls is not None:
            self._system_calls.close()

    async def remove_abandoned(self) -> None:
        """Remove the containers of workers of this machine that are no more."""
        label = f"label={sandbox_labels.PART}={sandbox_labels.SANDBOX}"
        answer = await self.engine.ask("ps", "--all", "--quiet", "--no-trunc", "--filter", label)
        if answer.code != 0:
            raise refusal(self.engine, self.image, answer.error)
        if not (found := answer.output.split()):
            return
        # One that goes meanwhile makes the code 1; the others are told all the same.
        form = f'{{{{.Id}}}} {{{{index .Config.Labels "{sandbox_labels.WORKER}"}}}}'
        answer = await self.engine.ask("container", "inspect", "--format", form, *found)
        marks = (line.split() for line in answer.output.splitlines())
        gone = [parts[0] for parts in marks if len(parts) == 2 and is_gone(parts[1])]
        if gone:
            log.info("removing what workers that are no more have left", containers=len(gone))
            await self.engine.remove(*gone)

    def _inherited(self) -> tuple[int, ...]:
        return () if self._system_calls is None else (self._system_calls.file,)

    def _words(
        self, command: Command, folder: Path, given: Path | None, variables: Path | None, egress: Path | None
    ) -> list[str]:
        """The whole command line."""
        for path in (folder, given, variables, egress):
            if ":" in str(path):
                raise SandboxRefused(f"what has a colon in its path cannot be mounted: {path}; set another TMPDIR")
        limits, call = command.limits, command.call
        user = USER_ID, USER_ID
        if os.geteuid() != 0:
            user = os.geteuid(), os.getegid()
        labels = {
            sandbox_labels.PART: sandbox_labels.SANDBOX,
            sandbox_labels.USER: call.user_id,
            sandbox_labels.RUN: call.run_id,
            sandbox_labels.STEP: call.step_id,
            sandbox_labels.GENERATION: call.generation,
            sandbox_labels.TRIES: call.tries,
            sandbox_labels.WORKER: self._mark,
            sandbox_labels.CREATED: int(time.time()),
        }
        environment = {"HOME": "/workspace", **EVERYWHERE}
        words = self.engine.run_words()
        words += ["--rm", "--pull", "never", "--name", container_name(call), "--log-driver", "none"]
        words += ["--network", "none", "--hostname", "sandbox", "--read-only", "--no-healthcheck"]
        words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{user[0]}:{user[1]}"]
        words += ["--security-opt", f"seccomp={self._system_calls.path}"] if self._system_calls else []
        words += ["--security-opt", "mask=/proc/cmdline:/proc/key-users"] if self.engine.kind is Kind.PODMAN else []
        words += ["--pids-limit", str(max(limits.processes + EXTRA_PROCESSES, LEAST_PROCESSES))]
        words += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
        words += ["--cpus", f"{limits.cpus:g}", "--stop-signal", "SIGKILL", "--shm-size", str(SHARED_MEMORY_BYTES)]
        for name, limit in _ulimits(limits).items():
            words += ["--ulimit", f"{name}={limit}"]
        for place in self._temporary:
            words += ["--tmpfs", f"{place}:rw,exec,nosuid,nodev,mode=1777,size={self._tmp_bytes}"]
        words += ["--volume", f"{folder}:/workspace:rw,Z", "--workdir", "/workspace"]
        words += ["--volume", f"{given}:{_INPUT}:ro,Z"] if given else []
        words += ["--volume", f"{variables}:{_VARIABLES}:ro,Z"] if variables else []
        words += ["--volume", f"{egress}:{INSIDE}:rw,Z"] if egress else []
        for name, value in labels.items():
            words += ["--label", f"{name}={value}"]
        for name, value in environment.items():
            words += ["--env", f"{name}={value}"]
        # By name alone: as in the engine's environment, where they are not. Docker has proxies in its own settings too.
        for name in PROXY_NAMES:
            words += ["--env", name]
        return [*words, "--entrypoint", "/bin/sh", self.image, "-c", _FIRST_PROCESS, "sh", *command.argv]


class _Container:
    """The container of one command: `start` until it says True, then `exited`; `remove` whatever happened before."""

    def __init__(self, engine: Engine, image: str, name: str, words: list[str], pass_fds: tuple[int, ...]) -> None:
        self._engine = engine
        self._image = image
        self._name = name
        self._words = words
        self._pass_fds = pass_fds
        self._process: asyncio.subprocess.Process | None = None
        self._report = b""
        self._started = asyncio.Event()
        self._pipe = OutputPipe(self._hear)

    def __enter__(self) -> Self:
        self._pipe.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pipe.__exit__(*error)

    def _hear(self, chunk: bytes) -> None:
        self._report = (self._report + chunk)[-_REPORT_BYTES:]
        if _STARTED in self._report:
            self._started.set()

    async def start(self, out: OutputPipe, seconds: float) -> bool:
        """Wait until the command begins. False when the name was taken, and is free now."""
        await uninterrupted(self._spawn(out))
        if not await self._begins(seconds):
            raise Unavailable(
                f"{self._engine.name} has not started a container within {seconds:g} seconds "
                "(SANDBOX_START_SECONDS); see what it is busy with",
                part="sandbox",
            )
        if self._started.is_set():
            return True
        said = self._report.decode("utf-8", "replace")
        if _NAME_TAKEN in said:
            self._report = b""
            if await self._engine.remove(self._name):
                return False
        raise refusal(self._engine, self._image, said)

    async def _spawn(self, out: OutputPipe) -> None:
        self._process = await self._engine.start(
            self._words, stdout=out.write_end, stderr=self._pipe.write_end, pass_fds=self._pass_fds
        )

    async def _begins(self, seconds: float) -> bool:
        """Whether, in that time, the command began or the engine's program gave up."""
        assert self._process is not None
        waits = {asyncio.create_task(self._started.wait()), asyncio.create_task(self._process.wait())}
        try:
            done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._pipe.drain()
        return bool(done)

    async def exited(self) -> tuple[Ending, int, str]:
        """Why a command that ended by itself ended. Raises SandboxError when it was not by itself."""
        assert self._process is not None
        code = await self._process.wait()
        self._pipe.drain()
        if (ended := self._own_end()) is None:
            said = self._report.replace(_STARTED, b"").decode("utf-8", "replace").strip()
            raise SandboxError(
                f"a container was ended from outside ({self._engine.name}: {code} {said[-500:]}): somebody stopped it, "
                "or the engine, or the machine has no memory left; how far the command came is not known"
            )
        code = int(ended[1])
        # A command that coped with the loss of a process to its memory cap is fine.
        if code != 0 and _OOM_KILLS.search(self._report, ended.end()):
            return Ending.MEMORY, code, "it used all its memory (SANDBOX_MEMORY_BYTES)"
        return Ending.EXITED, code, SIGNALS_OF_LIMITS.get(code, "")

    def _own_end(self) -> "re.Match[bytes] | None":
        """What process 1 reports of its end, if it and the engine's program both tell of that end."""
        *_, ended = (None, *_ENDED.finditer(self._report))
        if ended is None or self._process is None:
            return None
        # Docker's program, talking to a service of Podman's, says 0 of any end.
        return ended if self._process.returncode in (0, int(ended[1])) else None

    async def remove(self) -> None:
        """Leave nothing of it. The engine removes by itself what has ended by itself."""
        if self._process is None:
            return
        # An engine that is asked to remove what it is about to make has nothing to remove yet, and makes it then.
        if self._process.returncode is None and not self._started.is_set():
            await self._begins(_SETTLE_SECONDS)
        if self._own_end() is None:
            await self._engine.remove(self._name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._process.wait()
                return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


def container_name(call: Call) -> str:
    """The same for the same call, and for no other."""
    parts = (call.user_id, call.run_id, call.step_id, str(call.generation), str(call.tries))
    return f"sandbox-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


def _ulimits(limits: Limits) -> dict[str, str]:
    # Counted for all processes that a user has on the machine, so it is no cap of one container; `--pids-limit` is. It
    # is named because an engine's own default may be more than this machine lets it set.
    processes = min(_MOST_PROCESSES, int(Path("/proc/sys/kernel/pid_max").read_text("utf-8")))
    _, own = resource.getrlimit(resource.RLIMIT_NPROC)
    if own != resource.RLIM_INFINITY:
        processes = min(processes, own)
    return {
        "core": "0:0",
        "cpu": f"{limits.cpu_seconds}:{limits.cpu_seconds + 1}",
        "fsize": f"{limits.file_bytes}:{limits.file_bytes}",
        "nofile": f"{OPEN_FILES}:{OPEN_FILES}",
        "nproc": f"{processes}:{processes}",
    }


def _variables_file(environment: Mapping[str, str], opened: ExitStack) -> Path:
    """What a shell reads to have these variables. `command`: so that a name which a shell keeps for itself is left out
    and does not end it."""
    lines = [f"command export {name}={shlex.quote(value)} || :\n" for name, value in environment.items()]
    return _input_file(os.fsencode("".join(lines)), opened)


def _input_file(data: bytes, opened: ExitStack) -> Path:
    """A file that only the command's user may read, gone with `opened`."""
    file = opened.enter_context(tempfile.NamedTemporaryFile(prefix="sandbox-input-"))  # noqa: SIM115 - it is one
    file.write(data)
    file.flush()
    if os.geteuid() == 0:
        os.fchown(file.fileno(), USER_ID, USER_ID)
    return Path(file.name)


def _hand_over(folder: Path) -> None:
    """Make all in the folder its command's. A worker that is no root runs the command as itself, and need not."""
    try:
        if os.geteuid() != 0:
            os.stat(folder)
            return
        pending = [""]
        while pending:
            above = pending.pop()
            with open_folder(folder, above) as opened, os.scandir(opened) as entries:
                if os.fstat(opened).st_uid != USER_ID:
                    os.fchown(opened, USER_ID, USER_ID)
                pending += _hand_over_entries(entries, opened, above)
    except OSError as error:
        raise Unavailable(f"could not start a sandbox in {folder}: {error.strerror}", part="sandbox") from error


def _hand_over_entries(entries: Iterator["os.DirEntry[str]"], opened: int, above: str) -> Iterator[str]:
    """The folders among them, which are to be handed over themselves."""
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield f"{above}/{entry.name}" if above else entry.name
        elif entry.stat(follow_symlinks=False).st_uid != USER_ID:
            os.chown(entry.name, USER_ID, USER_ID, dir_fd=opened, follow_symlinks=False)


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
            sandbox = ContainerSandbox(
                found,
                image,
                volumes=volumes,
                system_calls=await _system_calls(found),
                tmp_bytes=tmp_bytes,
                start_seconds=start_seconds,
                started=started,
                failed=failed,
            )
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
    said = bytearray()
    with tempfile.TemporaryDirectory(prefix="sandbox-probe-", ignore_cleanup_errors=True) as folder:
        call = Call("", f"probe-{os.path.basename(folder)}", "probe", 0, 0)
        command = Command(("python3", "-c", "open('here', 'w')"), limits, call)
        outcome = await sandbox.run(command, Path(folder), said.extend, log.info)
        seen = "here" in os.listdir(folder)
    if outcome.exit_code != 0:
        text = said.decode("utf-8", "replace")
        raise Unavailable(f"a first command ended with {outcome.exit_code}: {text}{outcome.detail}", part="sandbox")
    if not seen:
        raise Unavailable(
            "what a container writes does not arrive: the engine has to be on this machine and see its temporary "
            "folders under the same path",
            part="sandbox",
        )
