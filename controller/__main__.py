"""python -m controller: signals and settings; the rest is `controller.service`.

SIGTERM and SIGINT let what is being sent come to its end; a second one ends at once, and leases do the rest.
"""

import argparse
import asyncio
import os
import signal
import sys

import uvloop
from pydantic import ValidationError

from backplane import process_log
from backplane.errors import PlatformError
from backplane.settings import Settings, complaint
from controller.service import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m controller", description="Sends webhooks, removes what is old.")
    parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        print(complaint(error), file=sys.stderr)
        return 2
    process_log.configure(format=settings.log_format, level=settings.log_level, process="controller")
    try:
        uvloop.run(_serve(settings))
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


if __name__ == "__main__":
    sys.exit(main())
