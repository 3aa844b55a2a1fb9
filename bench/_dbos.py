"""The same steps by DBOS, in a process of the peers' environment: `python _dbos.py URL STEPS ROUNDS` prints the seconds
of each round as JSON, after one that is not counted."""

import asyncio
import json
import sys
import time

from dbos import DBOS, DBOSConfig


@DBOS.step()  # type: ignore[untyped-decorator]
async def nothing(number: int) -> int:
    return number


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def empty_steps(count: int) -> int:
    for number in range(count):
        await nothing(number)
    return count


async def measured(steps: int, rounds: int) -> list[float]:
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        await empty_steps(steps)
        found.append(time.perf_counter() - began)
    return found[1:]


def main() -> None:
    url, steps, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config: DBOSConfig = {"name": "bench", "system_database_url": url, "log_level": "ERROR"}
    DBOS(config=config)
    DBOS.launch()
    seconds = asyncio.run(measured(steps, rounds))
    DBOS.destroy()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
