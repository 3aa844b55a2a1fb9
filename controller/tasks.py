"""What RQ carries out, each task by its name, without arguments, safe to do twice.

A task is a process that ends when it is done, because RQ's worker is there all day and should be small. The process
tells on standard output what it has done, in one line of JSON. The worker passes that on, for its controller to count.
"""

import json
import subprocess
import sys


def remove_old_sessions() -> dict[str, int]:
    """How many folders, containers, volumes and Jobs of old sessions were removed, by kind. What went wrong is in the
    process's log."""
    # Its standard input ends when this process does (`controller.exit_with_parent`).
    with subprocess.Popen(
        [sys.executable, "-m", "controller.cleanup.sessions"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            said = process.stdout.read() if process.stdout else ""
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(f"the removal of old sessions ended with {process.returncode}; see the controller's log")
    print(said.strip(), flush=True)
    removed: dict[str, int] = json.loads(said)
    return removed
