"""The command of a pod, under its caps, with all that it starts."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import resource
import signal
import time
from typing import Any, BinaryIO

from worker.sandbox.kubernetes.pod.machine import dumpable, filter_system_calls, out_of_memory_kills, processes_of_all

OPEN_FILES = 1024
SPARE_PROCESSES = 2


class Process:
    """The command and all that it starts."""

    def __init__(self, call: dict[str, Any], given: BinaryIO | None, workspace: str) -> None:
        self.limits = call["limits"]
        self.began = time.monotonic()
        self.deadline = self.began + self.limits["wall_seconds"]
        self.kills_before = out_of_memory_kills()
        self.output, self._write_end = os.pipe()
        os.set_blocking(self.output, False)
        try:
            self.pid = self._start(call, given, workspace)
        finally:
            os.close(self._write_end)

    def _start(self, call: dict[str, Any], given: BinaryIO | None, workspace: str) -> int:
        environment = {"PATH": os.environ["PATH"], "HOME": workspace, "LANG": "C.UTF-8", "TERM": "dumb"}
        environment.update(call["environment"])
        most = processes_of_all() + self.limits["processes"] + SPARE_PROCESSES
        # By architecture, for the worker does not know which one the node has. One without has the engine's own filter.
        program = call.get("filters", {}).get(os.uname().machine)
        failed_read, failed_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            # Nothing may leave this block: two runners would go on.
            try:
                os.setsid()
                os.umask(call.get("umask", 0o022))
                os.dup2(given.fileno() if given else os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(self._write_end, 1)
                os.dup2(self._write_end, 2)
                dumpable(True)
                # The kernel ends the command, not the runner, when the memory of both is used up.
                with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                    score.write("1000")
                os.closerange(3, failed_write)
                os.closerange(failed_write + 1, 4096)
                os.set_inheritable(failed_write, False)
                for cap, soft, hard in (
                    (resource.RLIMIT_CORE, 0, 0),
                    (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
                    (resource.RLIMIT_FSIZE, self.limits["file_bytes"], self.limits["file_bytes"]),
                    (resource.RLIMIT_CPU, self.limits["cpu_seconds"], self.limits["cpu_seconds"] + 1),
                    (resource.RLIMIT_NPROC, most, most),
                ):
                    resource.setrlimit(cap, (soft, hard))
                for number in range(1, signal.NSIG):
                    with contextlib.suppress(OSError, ValueError):
                        signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                os.chdir(workspace)
                if program:
                    filter_system_calls(base64.b64decode(program))
                os.execvpe(call["argv"][0], call["argv"], environment)  # noqa: S606
            except OSError as error:
                os.write(failed_write, str(error.errno).encode())
                os._exit(127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126)
            finally:
                os._exit(126)
        os.close(failed_write)
        with os.fdopen(failed_read, "rb") as failed:
            self.start_error = int(failed.read() or 0)
        return pid
