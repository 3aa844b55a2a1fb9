"""How much nine users and an administrator notice of a tenth user who does whatever harms.

Nine gentle users and an administrator each make, watch and start two runs a second. In every other phase a hostile
user is there too, with 10,000 starts on 32 connections, 500 streams and eight uploads without end, each tried again the
moment it is refused (`bench._neighbours`). What is compared is the 99th percentile of the time from `start` to the
first event, of the nine, and beside it that of the administrator and the time to the end of the run. The platform has
its default limits; workers have more slots than one user may take.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter

from backplane.domain.users import Tier
from backplane.process.supervisor import dies_with_parent
from backplane.resources import connect_store
from backplane.settings import Settings
from bench._platform import Platform, platform
from bench._result import Goal, report, spread

USERS = 9
ROUNDS = 4
PHASE_SECONDS = 20.0
WARM_UP_SECONDS = 5.0
GOAL = 1.5


async def tokens(started: Platform) -> tuple[list[str], str, str]:
    """Of the users, the administrator and the hostile one."""
    async with connect_store(Settings(database_url=started.environment["DATABASE_URL"])) as store:
        users = [(await store.users.create_token(f"user-{number}", Tier.STANDARD))[1] for number in range(USERS)]
        admin = (await store.users.create_token("admin", Tier.ADMIN))[1]
        hostile = (await store.users.create_token("hostile", Tier.STANDARD))[1]
    return users, admin, hostile


def begin(role: str, port: int, seconds: float, given: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench._neighbours", role, str(port), str(seconds)]
    process = subprocess.Popen(dies_with_parent(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write("\n".join(given))
    process.stdin.close()
    return process


def printed(process: "subprocess.Popen[str]") -> dict[str, list[float]]:
    assert process.stdout is not None
    text = process.stdout.read()
    if process.wait(60):
        raise RuntimeError("a client broke off")
    found: dict[str, list[float]] = json.loads(text)
    return found


def main() -> None:
    times = {
        (who, phase, what): list[float]()
        for who in ("users", "admin")
        for phase in (0, 1)
        for what in ("first", "last")
    }
    counts = Counter[str]()
    with platform(
        "postgres",
        workers=2,
        API_RATE_PER_SECOND="50",
        STREAM_WATCHERS_MAX="10000",
        STREAM_WATCHERS_USER_MAX="200",
        WORKER_CONCURRENCY="20",
    ) as started:
        users, admin, hostile = asyncio.run(tokens(started))
        printed(begin("users", started.port, WARM_UP_SECONDS, [*users, admin]))
        for number in range(2 * ROUNDS):
            is_noisy = number % 2
            attack = begin("hostile", started.port, PHASE_SECONDS, [hostile]) if is_noisy else None
            groups = {"users": users, "admin": [admin]}
            clients = {who: begin("users", started.port, PHASE_SECONDS - 2, group) for who, group in groups.items()}
            for who, client in clients.items():
                for what, found in printed(client).items():
                    times[who, is_noisy, what] += found
            if attack is not None:
                counts.update({what: int(count) for what, count in printed(attack).items()})  # type: ignore[call-overload]
    phases = ("alone", "beside")
    values = {
        who: {what: {phases[phase]: spread(times[who, phase, what]) for phase in (0, 1)} for what in ("first", "last")}
        for who in ("users", "admin")
    }
    first = values["users"]["first"]
    ratio = round(first["beside"]["p99_ms"] / first["alone"]["p99_ms"], 2)
    goal = Goal("p99 from start to the first event, of nine users beside a hostile one / without it", ratio, GOAL)
    report("noisy_neighbour", {"runs": len(times["users", 1, "first"]), **values, "hostile": counts}, [goal])


if __name__ == "__main__":
    main()
