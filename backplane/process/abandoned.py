"""Sandboxes that outlived the worker that began to make them.

Bubblewrap dies with its worker, and so does the first process of its sandbox, but for one moment: when the worker is
killed before that process has asked the kernel for it, it waits for ever for a parent that is gone. It has carried out
nothing and never will. It is found by the worker's folder, which stands in its command line, and ended by whoever
removes that folder.
"""

import contextlib
import os
import signal
from pathlib import Path

BUBBLEWRAP = b"bwrap"


def end_sandboxes_of(folder: Path) -> int:
    """Kill each bubblewrap in whose command line something below this folder stands, and that this user may kill.
    Returns how many. The worker of the folder must be gone."""
    below, killed = os.fsencode(folder) + b"/", 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                process = os.pidfd_open(int(entry.name))
                try:
                    # Read after it is open: the number may be another process's by now.
                    program, *arguments = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                    if os.path.basename(program) == BUBBLEWRAP and any(one.startswith(below) for one in arguments):
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                        killed += 1
                finally:
                    os.close(process)
    return killed
