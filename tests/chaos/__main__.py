"""The long run: `python -m tests.chaos --seed 7 --seconds 300 --runs 600 --workers 3`, or `make chaos ARGS='--seed 7'`.

Starts servers of its own, breaks everything by the seed's schedule, prints counts, faults and complaints as one JSON
line, and exits 1 when there is a complaint. Then the folder with the logs stays, and is named.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.chaos.chaos_platform import LEASE_SECONDS, running_servers
from tests.chaos.checker import check
from tests.chaos.driver import Scenario, run_chaos
from tests.chaos.faults import LANES, schedule

EVERY_KIND = [kind for kinds in LANES.values() for kind in kinds]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of plans, faults and reconnects")
    parser.add_argument("--seconds", type=float, default=270.0, help="how long faults are injected")
    parser.add_argument("--runs", type=int, default=800, help="spread evenly over that time")
    parser.add_argument("--workers", type=int, default=3, help="worker processes")
    parser.add_argument("--cap", type=int, default=0, help="runs of the user at once (USER_CONCURRENCY_STANDARD)")
    parser.add_argument("--only", action="append", choices=EVERY_KIND, help="a kind of fault; all when left out")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs in any case")
    arguments = parser.parse_args()
    faults = [
        fault
        for fault in schedule(arguments.seed, arguments.seconds, LEASE_SECONDS)
        if not arguments.only or fault.kind in arguments.only
    ]
    scenario = Scenario(
        seed=arguments.seed,
        runs=arguments.runs,
        workers=arguments.workers,
        faults=faults,
        submit_seconds=arguments.seconds,
        settings={"USER_CONCURRENCY_STANDARD": str(arguments.cap)},
    )
    folder = Path(tempfile.mkdtemp(prefix="agent-chaos-"))
    folder.chmod(0o755)
    (folder / "platform").mkdir()
    with running_servers(folder) as servers:
        outcome = uvloop.run(run_chaos(scenario, servers, folder / "platform"))
    complaints = [str(complaint) for complaint in check(outcome.facts)]
    keeps = bool(complaints) or arguments.keep
    print(json.dumps({**outcome.counts, "complaints": complaints, **({"folder": str(folder)} if keeps else {})}))
    if not keeps:
        shutil.rmtree(folder)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
