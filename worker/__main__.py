"""python -m worker; the work is `worker.service`. When it is asked to end, it drains.

`--check` prints what this machine offers to a worker, as one JSON object.
"""

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict
from functools import partial

from prometheus_client import CollectorRegistry

from backplane.entry_point import end_at_once, run
from backplane.settings import Settings
from worker.metrics import WorkerMetrics
from worker.sandbox.open import open_sandbox
from worker.service import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Takes runs and carries them out.")
    parser.add_argument("--check", action="store_true", help="print which sandbox this machine offers, as JSON")
    parser.add_argument("--queues", metavar="NAME,…", help="the queues that it serves; WORKER_QUEUES when left out")
    arguments = parser.parse_args()
    if arguments.queues is not None:
        os.environ["WORKER_QUEUES"] = arguments.queues
    return run("worker", _check if arguments.check else partial(serve, give_up=end_at_once))


async def _check(settings: Settings, _: asyncio.Event) -> None:
    async with open_sandbox(settings, "check", WorkerMetrics(CollectorRegistry())) as sandbox:
        found = sandbox.isolation
    print(json.dumps({"sandbox": asdict(found)}))


if __name__ == "__main__":
    sys.exit(main())
