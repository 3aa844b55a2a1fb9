"""The command line with which an engine starts the container of one command: all its walls and limits are options.

Values only; nothing is started here. What the command reads and its variables are files that are mounted: Podman gives
up the rest of the output when a command ends before it has read all that comes through a pipe, and variables may be
secrets, while what the engine is given can be seen by every user of the machine (its arguments) or by whoever may ask
the engine (`inspect`).
"""

import hashlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from backplane.containers.program import PROXY_NAMES
from backplane.domain import sandbox_labels
from worker.sandbox.base import EVERYWHERE, Call, Command, Limits, SandboxRefused
from worker.sandbox.container.container import FIRST_PROCESS, INPUT, VARIABLES
from worker.sandbox.container.engine import Engine, Kind
from worker.sandbox.container.seccomp import SystemCalls
from worker.sandbox.local.cgroup import CPU_SHARE
from worker.sandbox.local.egress_socket import INSIDE
from worker.sandbox.local.process import EXTRA_PROCESSES, OPEN_FILES

USER_ID = 1000
SHARED_MEMORY_BYTES = 64 * 1024**2
LEAST_PROCESSES = 16
"""What an OCI runtime needs until the container's own first process is there."""
_MOST_PROCESSES = 2**20
_USUAL_CPU_SHARES = 1024
"""The weight of a container whose command line names none, in both engines."""


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """What all containers of a worker have in common. `volumes` are the folders for which the image asks for volumes;
    `system_calls` is the list of those that are allowed, None where the engine's own is as it should be; `tmp_bytes` is
    the size of /tmp and of each volume."""

    engine: Engine
    image: str
    volumes: tuple[str, ...]
    system_calls: SystemCalls | None
    tmp_bytes: int
    start_seconds: float

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The files that the engine's program must inherit."""
        return () if self.system_calls is None else (self.system_calls.file,)


@dataclass(frozen=True, slots=True)
class Mounted:
    """What of this machine a container sees: the folder as /workspace, and files for its input, its variables and its
    way out, where it has those."""

    folder: Path
    given: Path | None = None
    variables: Path | None = None
    egress: Path | None = None


def container_name(call: Call) -> str:
    """The same for the same call, and for no other."""
    parts = (call.user_id, call.run_id, call.step_id, str(call.generation), str(call.tries))
    return f"sandbox-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


def run_words(settings: ContainerSettings, command: Command, mounted: Mounted, mark: str) -> list[str]:
    """The whole command line. `mark` is the worker's. Raises SandboxRefused for a path that cannot be mounted."""
    for path in (mounted.folder, mounted.given, mounted.variables, mounted.egress):
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
        sandbox_labels.WORKER: mark,
        sandbox_labels.CREATED: int(time.time()),
    }
    environment = {"HOME": "/workspace", **EVERYWHERE}
    words = settings.engine.run_words()
    words += ["--rm", "--pull", "never", "--name", container_name(call), "--log-driver", "none"]
    words += ["--network", "none", "--hostname", "sandbox", "--read-only", "--no-healthcheck"]
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{user[0]}:{user[1]}"]
    words += ["--security-opt", f"seccomp={settings.system_calls.path}"] if settings.system_calls else []
    words += ["--security-opt", "mask=/proc/cmdline:/proc/key-users"] if settings.engine.kind is Kind.PODMAN else []
    words += ["--pids-limit", str(max(limits.processes + EXTRA_PROCESSES, LEAST_PROCESSES))]
    words += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
    words += ["--cpu-shares", str(round(_USUAL_CPU_SHARES * CPU_SHARE))]
    words += ["--cpus", f"{limits.cpus:g}", "--stop-signal", "SIGKILL", "--shm-size", str(SHARED_MEMORY_BYTES)]
    for name, limit in _ulimits(limits).items():
        words += ["--ulimit", f"{name}={limit}"]
    for place in dict.fromkeys(("/tmp", *settings.volumes)):  # noqa: S108 - inside
        words += ["--tmpfs", f"{place}:rw,exec,nosuid,nodev,mode=1777,size={settings.tmp_bytes}"]
    words += ["--volume", f"{mounted.folder}:/workspace:rw,Z", "--workdir", "/workspace"]
    words += ["--volume", f"{mounted.given}:{INPUT}:ro,Z"] if mounted.given else []
    words += ["--volume", f"{mounted.variables}:{VARIABLES}:ro,Z"] if mounted.variables else []
    words += ["--volume", f"{mounted.egress}:{INSIDE}:rw,Z"] if mounted.egress else []
    for name, value in labels.items():
        words += ["--label", f"{name}={value}"]
    for name, value in environment.items():
        words += ["--env", f"{name}={value}"]
    # By name alone: as in the engine's environment, where they are not. Docker has proxies in its own settings too.
    for name in PROXY_NAMES:
        words += ["--env", name]
    return [*words, "--entrypoint", "/bin/sh", settings.image, "-c", FIRST_PROCESS, "sh", *command.argv]


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
