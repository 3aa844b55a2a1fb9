"""python -m controller.pools: starts processes of agents' pools on this machine, as many as their agents need, and ends
those that stand empty. They end with it.

It needs what workers need (credentials of models among it), since its children inherit its environment. So it is a
process of its own beside the controller, which has less.
"""

import argparse
import asyncio
import sys

from backplane.entry_point import run
from backplane.errors import InvalidInput
from backplane.settings import Settings
from controller.pools.service import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m controller.pools", description="Starts processes of pools.")
    parser.add_argument(
        "--logs", metavar="FOLDER", help="where the logs of the processes go; standard error when left out"
    )
    logs = parser.parse_args().logs

    async def work(settings: Settings, stop: asyncio.Event) -> None:
        if settings.agent_launcher != "processes":
            message = f"AGENT_LAUNCHER is {settings.agent_launcher}; set it to processes, for the controller too"
            raise InvalidInput(message, field="AGENT_LAUNCHER")
        await serve(settings, stop, logs)

    return run("pools", work)


if __name__ == "__main__":
    sys.exit(main())
