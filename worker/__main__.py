"""python -m worker: signals and settings; the rest is `worker.service`.

SIGTERM and SIGINT drain; a second one ends at once, and the leases do the rest. `--check` prints what this machine
offers to a worker as one JSON object and exits 1 when settings ask for more.
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys

import uvloop
from pydantic import ValidationError

from backplane import process_log
from backplane.errors import PlatformError
from backplane.settings import Settings, complaint
from worker.sandbox.local import open_local_sandbox
from worker.service import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Takes runs and carries them out.")
    parser.add_argument("--check", action="store_true", help="print which sandbox this machine offers, as JSON")
    arguments = parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        print(complaint(error), file=sys.stderr)
        return 2
    process_log.configure(format=settings.log_format, level=settings.log_level, process="worker")
    gc.freeze()  # what is loaded by now stays, so the collector need not go through it again
    try:
        uvloop.run(_check() if arguments.check else _serve(settings))
    except PlatformError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await serve(settings, stop)


async def _check() -> None:
    sandbox = await open_local_sandbox(require_isolation=False)
    found = sandbox.isolation
    await sandbox.close()
    print(json.dumps({"sandbox": {"name": found.name, "isolated": found.isolated, "missing": found.missing}}))


if __name__ == "__main__":
    sys.exit(main())
