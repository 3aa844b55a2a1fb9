"""What a user notices of another one whose valid token floods what needs none: the description, metrics, readiness.

The flood is a process of its own with FLOODING connections, each asking again as soon as it is answered. Once with the
limit on calls that the product has, and once without one, which shows what each answer costs.
"""

import asyncio
import contextlib
import sys
import time
from itertools import chain, repeat
from statistics import median

from backplane.domain.users import Tier
from backplane.resources import connect_store
from backplane.settings import Settings
from bench._platform import HOST, Platform, platform
from bench._result import Goal, report, spread
from bench.strangers import flooding

PATHS = ("/openapi.json", "/metrics", "/docs", "/docs/swagger-ui-bundle.js", "/health/ready")
CALLS = 60
FLOODING = 64
LONGEST_SECONDS = 120.0


async def flood(port: int, path: str, token: str) -> None:
    """Until it is killed, or LONGEST_SECONDS."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_SECONDS):
            print("flooding", flush=True)
            await asyncio.gather(*[_ask(port, path, token) for _ in range(FLOODING)])


async def _ask(port: int, path: str, token: str) -> None:
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(HOST, port)
            # A token counts as a user's once it was checked.
            for asked in chain(["/agent/me"], repeat(path)):
                writer.write(f"GET {asked} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)


def calls(started: Platform) -> list[float]:
    """Seconds of each call of the other user."""
    seconds = []
    with contextlib.closing(started.connection()) as connection:
        for _ in range(CALLS):
            began = time.perf_counter()
            connection.request("GET", "/agent/me", headers=started.headers)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"a user was answered {response.status}")
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)  # within the limit on calls
    return seconds


async def _other_token(started: Platform) -> str:
    settings = Settings.model_validate({"database_url": started.environment["DATABASE_URL"]})
    async with connect_store(settings) as store:
        _, token = await store.users.create_token("flooder", Tier.STANDARD)
    return token


def main() -> None:
    values: dict[str, object] = {}
    goals = []
    for limit, name in (("50", "with the limit on calls"), ("0", "without it")):
        with platform("sqlite", workers=0, API_RATE_PER_SECOND=limit) as started:
            token = asyncio.run(_other_token(started))
            calls(started)
            alone = calls(started)
            values[f"alone, {name}"] = spread(alone)
            for path in PATHS:
                with flooding("bench.token_floods", str(started.port), path, token):
                    beside = calls(started)
                values[f"beside {path}, {name}"] = spread(beside)
                if limit != "0":
                    goals.append(Goal(f"p50 beside a flood of {path}, to that alone", _ratio(beside, alone), 3.0))
    report("token_floods", values, goals)


def _ratio(beside: list[float], alone: list[float]) -> float:
    return round(median(beside) / median(alone), 2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--flood"]:
        asyncio.run(flood(int(sys.argv[2]), sys.argv[3], sys.argv[4]))
    else:
        main()
